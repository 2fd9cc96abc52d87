"""The shared token of a service's own parts: workers, gateways and bootstrap replicas."""

from __future__ import annotations

import hmac
from pathlib import Path

from baton_bootstrap.errors import SetupError

HEADER = "authorization"
PEER_NAME = "baton"  # a DNS name in the certificate of every worker and bootstrap server


def credentials(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata a peer sends along with every call."""
    return ((HEADER, f"Bearer {token}"),) if token else ()


def admits(token: str | None, header: str | None) -> bool:
    """Whether the header carries the token, compared in constant time; without a token everyone is admitted."""
    if token is None:
        return True
    return hmac.compare_digest(f"Bearer {token}".encode(), (header or "").encode())


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
