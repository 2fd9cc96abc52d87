"""Reading request bodies: bounded, and every way to be malformed told to the client."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from baton_serving.errors import Cancelled, InvalidRequest, TooLarge

T = TypeVar("T")

_PATH = re.compile(r" - at `\$\.?(.*?)`$")


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """The body as a JSON object. Raises TooLarge over `limit` bytes, InvalidRequest when it is anything else."""
    body = await _read(request, limit)
    if not body:
        raise InvalidRequest("the body is empty: send a JSON object")
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8 (byte {error.start} of a string)") from error
    except msgspec.ValidationError as error:
        raise InvalidRequest("the body must be a JSON object") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error


def typed(values: dict[str, Any], kind: type[T]) -> T:
    """`values` as a protocol type; fields it does not know are ignored. Raises InvalidRequest naming the field."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _PATH.search(message)
        param = found.group(1) if found else ""
        if not param:
            raise InvalidRequest(_lowered(message)) from error
        raise InvalidRequest(f"{param}: {_lowered(_PATH.sub('', message))}", param=param) from error


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body has {declared} bytes, at most {limit} are taken")
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"the body is longer than the {limit} bytes that are taken")
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise Cancelled("the client went away while sending the request") from error
    return b"".join(chunks)


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
