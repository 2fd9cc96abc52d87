"""The shared token of a service's own parts: workers, gateways and bootstrap replicas."""

from __future__ import annotations

import hmac
from pathlib import Path

from baton_bootstrap.errors import SetupError

HEADER = "authorization"
PROXIED_HEADER = "x-baton-authorization"  # the same by way of an API server, which keeps HEADER for itself
PEER_NAME = "baton"  # a DNS name in the certificate of every worker and bootstrap server


def credentials(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata a peer sends along with every call."""
    return ((HEADER, f"Bearer {token}"),) if token else ()


def admits(token: str | None, *headers: str | None) -> bool:
    """Whether a header carries the token, compared in constant time; without a token everyone is admitted."""
    if token is None:
        return True
    wanted = f"Bearer {token}".encode()
    return any(hmac.compare_digest(wanted, (header or "").encode()) for header in headers)


def read_token(path: Path | None) -> str | None:
    """The token in a file, without surrounding white space. Raises `SetupError` when it is missing or empty."""
    if path is None:
        return None
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise SetupError(f"cannot read the token file {path}: {error.strerror}") from error
    if not token:
        raise SetupError(f"the token file {path} is empty; write a secret into it or leave the option out")
    return token
