"""What the gateway itself says to clients: error bodies and error events in OpenAI's shape."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton_serving.api.http.problems import error_body
from baton_serving.errors import BatonError, CapacityError
from baton_serving.gateway.upstream import Headers

JSON = (b"content-type", b"application/json")


@dataclass(frozen=True)
class Reply:
    """A whole response."""

    status: int
    body: bytes
    headers: Headers = field(default_factory=lambda: [JSON])


def error_reply(error: BatonError) -> Reply:
    headers = [JSON]
    if isinstance(error, CapacityError) and error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    return Reply(error.status, error_body(error), headers)


def error_event(error: BatonError) -> bytes:
    """A last event for a stream that breaks off: clients raise on it, and no `[DONE]` follows."""
    return b"data: " + error_body(error) + b"\n\n"
