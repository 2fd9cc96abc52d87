"""Authorities, certificates and kubeconfigs of a development cluster."""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.devcluster.layout import API, MACHINE_ADDRESS, Layout

_DAY = datetime.timedelta(days=1)
_LIFE = 365 * _DAY
_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
_USERS = {
    "admin": ("admin", "system:masters"),
    "controllers": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "dns": ("dns", "system:masters"),
    "kubelets": ("kubelets", "system:masters"),  # the API server towards the kubelets
}


def write(layout: Layout) -> None:
    """All that is needed before the first program starts."""
    layout.pki("x").parent.mkdir(parents=True, exist_ok=True)
    layout.user("x").parent.mkdir(parents=True, exist_ok=True)
    authority = _Authority("baton-dev")
    layout.pki("ca.crt").write_bytes(authority.pem)
    layout.pki("ca.key").write_bytes(_key_pem(authority.key))
    authority.serve(
        layout.pki("api"), "kube-apiserver", [*_NAMES, "localhost"], ["127.0.0.1", "10.96.0.1", MACHINE_ADDRESS]
    )
    for node in layout.nodes:
        authority.serve(layout.pki(node.name), node.name, [node.name], [node.address])
    users = {
        **_USERS,
        **{f"kubelet-{node.name}": (f"system:node:{node.name}", "system:nodes") for node in layout.nodes},
    }
    for user, (name, group) in users.items():
        authority.identify(layout.pki(user), name, group)
        _kubeconfig(layout, user, API, layout.user(user))
    _kubeconfig(layout, "admin", f"https://127.0.0.1:{layout.port}", layout.kubeconfig)
    accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    layout.pki("accounts.key").write_bytes(_key_pem(accounts))


class _Authority:
    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self.key.public_key())
        made = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.pem = made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def serve(self, path: Path, name: str, names: Sequence[str], addresses: Sequence[str]) -> None:
        found = [x509.DNSName(one) for one in names]
        found_addresses = [x509.IPAddress(ipaddress.ip_address(one)) for one in addresses]
        alternatives = x509.SubjectAlternativeName([*found, *found_addresses])
        self._write(path, [(NameOID.COMMON_NAME, name)], ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def identify(self, path: Path, name: str, group: str) -> None:
        groups = [(NameOID.ORGANIZATION_NAME, group)] if group else []
        self._write(path, [*groups, (NameOID.COMMON_NAME, name)], ExtendedKeyUsageOID.CLIENT_AUTH)

    def _write(
        self,
        path: Path,
        subject: Sequence[tuple[x509.ObjectIdentifier, str]],
        usage: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None = None,
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(*pair) for pair in subject])
        builder = self._builder(name, key.public_key()).add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if alternatives:
            builder = builder.add_extension(alternatives, critical=False)
        made = builder.sign(self.key, hashes.SHA256())
        path.with_suffix(".crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        path.with_suffix(".key").write_bytes(_key_pem(key))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        return (
            builder.serial_number(x509.random_serial_number()).not_valid_before(now - _DAY).not_valid_after(now + _LIFE)
        )


def _key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _kubeconfig(layout: Layout, user: str, server: str, path: Path) -> None:
    cluster = {"server": server, "certificate-authority": str(layout.pki("ca.crt"))}
    files = {"client-certificate": str(layout.pki(f"{user}.crt")), "client-key": str(layout.pki(f"{user}.key"))}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "baton-dev",
        "contexts": [{"name": "baton-dev", "context": {"cluster": "baton-dev", "user": user}}],
        "clusters": [{"name": "baton-dev", "cluster": cluster}],
        "users": [{"name": user, "user": files}],
    }
    path.write_text(json.dumps(config))
    path.chmod(0o600)
