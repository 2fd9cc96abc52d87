"""TLS from files that are renewed while they are in use, for every connection between a service's own parts.

Peers are known by the authority that signed them and by one name, `PEER_NAME`, which every certificate of the service's
parts carries: their addresses change with every pod.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from baton_bootstrap.auth import PEER_NAME as PEER_NAME
from baton_bootstrap.errors import SetupError
from baton_bootstrap.files import stamp

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: a certificate chain, its key, and the authority that peers' certificates must come from.

    Without `authority` a server asks its clients for no certificate.
    """

    certificate: Path
    key: Path
    authority: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.certificate, self.key) if self.authority is None else (self.certificate, self.key, self.authority)


def tls_files(
    certificate: str | None, key: str | None, authority: str | None, prefix: str = "--ssl"
) -> TlsFiles | None:
    """The files that three flags name; None when they name none. Raises `SetupError` for half a pair."""
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None:
        raise SetupError(f"{prefix}-certfile and {prefix}-keyfile belong together: give both")
    return TlsFiles(Path(certificate), Path(key), Path(authority) if authority else None)


class Tls:
    """Contexts for servers and clients. `refresh` takes renewed files over for the next connections."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises `SetupError` when the files cannot be used."""
        self.files = files
        self._stamp = stamp(files.paths)
        self._server, self.client = _load(files)
        self._door = _server_context(files)  # its certificate is never shown: each handshake changes to the latest
        self._door.sni_callback = self._choose

    @property
    def server(self) -> ssl.SSLContext:
        """For listening; one context for good, whose connections get the latest certificate and authority."""
        return self._door

    def refresh(self) -> bool:
        """Whether renewed files were taken over. Files that do not fit together yet are left for the next look."""
        now = stamp(self.files.paths)
        if now == self._stamp:
            return False
        try:
            self._server, self.client = _load(self.files)
        except SetupError as error:
            logger.warning("certificates not taken over yet: %s", error)
            return False
        self._stamp = now
        logger.info("certificates taken over from %s", self.files.certificate)
        return True

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._server


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """For one gRPC channel: the files as they are now. Raises `SetupError`."""
    chain, key, authority = _read(files)
    return grpc.ssl_channel_credentials(authority, key, chain)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """For a gRPC server, which looks at the files at every handshake. Raises `SetupError` when they are unusable."""
    _load(files)
    return grpc.dynamic_ssl_server_credentials(
        _grpc_configuration(files),
        _fetcher(files),  # type: ignore[arg-type]  # the stubs forget that it may return None
        require_client_authentication=files.authority is not None,
    )


def _fetcher(files: TlsFiles) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
    """None means that nothing has changed."""
    seen = [stamp(files.paths)]

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        now = stamp(files.paths)
        if now == seen[0]:
            return None
        try:
            _load(files)
            configuration = _grpc_configuration(files)
        except SetupError as error:
            logger.warning("certificates not taken over yet: %s", error)
            return None
        seen[0] = now
        return configuration

    return fetch


def _grpc_configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    chain, key, authority = _read(files)
    return grpc.ssl_server_certificate_configuration([(key, chain)], authority)


def _read(files: TlsFiles) -> tuple[bytes, bytes, bytes | None]:
    try:
        authority = None if files.authority is None else files.authority.read_bytes()
        return files.certificate.read_bytes(), files.key.read_bytes(), authority
    except OSError as error:
        raise SetupError(f"cannot read {error.filename}: {error.strerror}") from error


def _load(files: TlsFiles) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts for a server and for a client, from the files as they are now."""
    server, client = _server_context(files), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        client.load_cert_chain(files.certificate, files.key)
        if files.authority is not None:
            client.load_verify_locations(files.authority)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(_unusable(files, error)) from error
    return server, client


def _server_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key)
        if files.authority is not None:
            context.load_verify_locations(files.authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise SetupError(_unusable(files, error)) from error
    return context


def _unusable(files: TlsFiles, error: Exception) -> str:
    return f"certificate {files.certificate}, key {files.key} and authority {files.authority} cannot be used: {error}"
