"""Errors as OpenAI clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import math
from typing import Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from baton_serving.errors import BatonError, CapacityError, InternalError, InvalidRequest

_TYPES: Final = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_RETRY_AFTER: Final = 1.0  # seconds, when whoever refused did not say


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


def error_body(error: BatonError) -> bytes:
    """The JSON of `error`, as a response body or as the data of an event in a stream."""
    return _encode(error.status, error.message, error.code, error.param if isinstance(error, InvalidRequest) else None)


def error_response(error: BatonError) -> Response:
    headers: dict[str, str] = {}
    if isinstance(error, CapacityError):
        seconds = _RETRY_AFTER if error.retry_after is None else error.retry_after
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error_body(error), error.status, headers, "application/json")


async def on_baton_error(request: Request, error: Exception) -> Response:
    """Exception handler of the app for the errors of ours."""
    assert isinstance(error, BatonError)
    return error_response(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Exception handler for what the router refuses: unknown routes and methods."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    code = "not_found" if error.status_code == 404 else "method_not_allowed" if error.status_code == 405 else None
    body = _encode(error.status_code, message, code, None)
    return Response(body, error.status_code, error.headers, "application/json")


async def on_fault(request: Request, error: Exception) -> Response:
    """Exception handler for everything else; the server logs the traceback."""
    return error_response(InternalError("an internal error happened; the server's log has the details"))


def _encode(status: int, message: str, code: str | None, param: str | None) -> bytes:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return msgspec.json.encode(ErrorBody(ErrorDetail(message=message, type=kind, param=param, code=code)))
