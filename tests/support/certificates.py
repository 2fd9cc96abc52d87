"""Authorities and the certificates that they sign, as PEM files."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from baton_bootstrap.tls import PEER_NAME, TlsFiles

_DAY = datetime.timedelta(days=1)
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


class Authority:
    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
        )
        builder = builder.add_extension(x509.KeyUsage(**dict.fromkeys(_USAGES, True)), critical=True)
        self.pem = _pem(builder.sign(self._key, hashes.SHA256()))

    def write(self, folder: Path, *more: Authority, name: str = PEER_NAME) -> TlsFiles:
        """A new certificate with its key, and an authority file that trusts this authority and `more` of them.

        Files that are there already are replaced, one after the other.
        """
        folder.mkdir(exist_ok=True)
        files = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._name, key.public_key())
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(signer, critical=False)  # asked for since Python 3.13
        assert files.authority is not None
        _replace(files.authority, b"".join(one.pem for one in (self, *more)))
        _replace(files.certificate, _pem(builder.sign(self._key, hashes.SHA256())))
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        _replace(files.key, key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
        return files


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(now - _DAY).not_valid_after(now + _DAY)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".new")
    partial.write_bytes(content)
    partial.replace(path)
