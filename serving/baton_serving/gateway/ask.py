"""What a client asks, read once: the parsed body, and the bytes that each attempt sends to the workers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import orjson

from baton_serving.errors import InvalidRequest
from baton_serving.gateway.fleet import Endpoint, Route
from baton_serving.gateway.upstream import Headers

REQUEST_ID = b"x-request-id"

_PASSED_ON = frozenset({b"content-type", b"authorization", b"traceparent", b"tracestate", b"accept"})

# Fields that steer the handoff: only the gateway writes them, whatever a client sends.
_OURS = ("baton_handoff", "bootstrap_host", "bootstrap_port", "bootstrap_room")


@dataclass(frozen=True)
class Ask:
    """One request to run on workers. `model` is None when the client named none."""

    path: str
    body: dict[str, object]
    model: str | None
    request_id: bytes
    headers: Headers

    def payload(self, route: Route, attempt: int) -> bytes:
        """The body of every leg of one attempt; a pair gets a transfer id that no other attempt ever has."""
        if route.prefill is None:
            return orjson.dumps(self.body)
        handoff = {
            "transfer_id": secrets.token_hex(16),
            "peer": route.prefill.worker.id,
            "attempt": attempt,
            "receiver": route.decode.worker.id,
        }
        return orjson.dumps({**self.body, "baton_handoff": handoff})

    def request(self, endpoint: Endpoint, payload: bytes) -> bytes:
        """The HTTP request to one worker."""
        lines = [b"POST %b HTTP/1.1" % self.path.encode(), b"host: %b" % endpoint.pool.authority]
        lines += [b"%b: %b" % header for header in self.headers]
        lines += [b"%b: %b" % (REQUEST_ID, self.request_id), b"content-length: %d" % len(payload), b"", payload]
        return b"\r\n".join(lines)


def read_ask(path: str, headers: Headers, body: bytes) -> Ask:
    """Raises `InvalidRequest` when the body is not a JSON object or `model` is no string."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest("the body must be a JSON object")
    model = parsed.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"model must be a string, not {type(model).__name__}", "model")
    for name in _OURS:
        parsed.pop(name, None)
    given = dict(headers)
    return Ask(
        path=path,
        body=parsed,
        model=model,
        request_id=given.get(REQUEST_ID) or secrets.token_hex(16).encode(),
        headers=[(b"content-type", b"application/json")]
        + [(name, value) for name, value in headers if name in _PASSED_ON and name != b"content-type"],
    )
