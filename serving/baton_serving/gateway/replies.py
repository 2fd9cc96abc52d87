"""What the gateway itself says to clients: error bodies and error events in OpenAI's shape."""

from __future__ import annotations

import math
import re

import msgspec
import orjson

from baton_serving.api.http.problems import error_body
from baton_serving.errors import BatonError, CapacityError, InternalError, error_from_code
from baton_serving.gateway.http.framing import frame, unframe

JSON_LINE = b"content-type: application/json\r\n"
_ERROR_DATA = re.compile(rb'^data: (\{"error":.*\})\r?$', re.MULTILINE)
_RETRY_AFTER = 1.0  # seconds, when whoever refused did not say


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A whole response; `lines` are its header lines, each ended by CRLF."""

    status: int
    body: bytes
    lines: bytes = JSON_LINE


def error_reply(error: BatonError) -> Reply:
    lines = JSON_LINE
    if isinstance(error, CapacityError):
        seconds = _RETRY_AFTER if error.retry_after is None else error.retry_after
        lines += b"retry-after: %d\r\n" % max(1, math.ceil(seconds))
    if error.status == 401:
        lines += b"www-authenticate: Bearer\r\n"
    return Reply(error.status, error_body(error), lines)


def error_event(error: BatonError) -> bytes:
    """A last chunk for a stream that breaks off: clients raise on its event, and no `[DONE]` follows."""
    return frame(b"data: " + error_body(error) + b"\n\n")


def read_error(chunks: bytes) -> BatonError:
    """The error that an event in these chunks tells of; what cannot be read is a fault of the worker."""
    found = _ERROR_DATA.search(unframe(chunks))
    try:
        error = orjson.loads(found[1])["error"] if found else None
    except orjson.JSONDecodeError:
        error = None
    if not isinstance(error, dict):
        return InternalError("it cannot be read")
    param = error.get("param")
    return error_from_code(str(error.get("code")), str(error.get("message")), param if isinstance(param, str) else None)
