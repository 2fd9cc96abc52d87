"""Keys and certificates, as `cryptography` makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from baton_bootstrap.auth import PEER_NAME
from baton_operator.certificates.rotate import Pair

_SKEW = timedelta(minutes=5)  # clocks of nodes differ


class KeyMaker:
    """P-256 keys. Certificates carry the one name by which the parts of a service know each other, not addresses."""

    def authority(self, now: datetime, lifetime: timedelta) -> Pair:
        """A self-signed authority; its serial number in the name tells it from the one before."""
        key, serial = ec.generate_private_key(ec.SECP256R1()), x509.random_serial_number()
        name = _name(f"baton authority {serial:x}"[:60])
        usage = _usage(signs=True)
        builder = _builder(name, name, key.public_key(), now, lifetime).serial_number(serial)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        return _pair(builder.sign(key, hashes.SHA256()), key)

    def certificate(self, authority: Pair, part: str, now: datetime, lifetime: timedelta) -> Pair:
        """For servers and clients alike, since workers are both."""
        signer = serialization.load_pem_private_key(authority.key, None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        issuer = x509.load_pem_x509_certificate(authority.certificate)
        key = ec.generate_private_key(ec.SECP256R1())
        lifetime = min(lifetime, authority.ends - now)
        builder = _builder(_name(part), issuer.subject, key.public_key(), now, lifetime)
        builder = builder.serial_number(x509.random_serial_number())
        names = x509.SubjectAlternativeName([x509.DNSName(PEER_NAME)])
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs=False), True),
            (names, False),
            (purposes, False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        return _pair(builder.sign(signer, hashes.SHA256()), key)

    def signed(self, authority: Pair, certificate: bytes) -> bool:
        """Whether the certificate is this authority's."""
        try:
            issuer = x509.load_pem_x509_certificate(authority.certificate)
            x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def read_pair(certificate: bytes, key: bytes) -> Pair | None:
    """A stored pair; None when the two are no pair, or one of them cannot be read."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError):
        return None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != found.public_key():
        return None
    return Pair(certificate, key, found.not_valid_before_utc, found.not_valid_after_utc)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.not_valid_before(now - _SKEW).not_valid_after(now + lifetime)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, pkcs8, plain),
        certificate.not_valid_before_utc.astimezone(UTC),
        certificate.not_valid_after_utc.astimezone(UTC),
    )
