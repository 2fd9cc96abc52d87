"""`POST /v1/responses`: a chat completion below, so that pairing, retries and migration are its own."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from baton_serving.errors import BatonError, InvalidRequest
from baton_serving.gateway.core import Core
from baton_serving.gateway.http.downstream import Incoming, Session
from baton_serving.gateway.http.framing import frame, unframe
from baton_serving.gateway.replies import error_reply
from baton_serving.gateway.responses.reply import completed
from baton_serving.gateway.responses.request import ResponsesRequest, chat_body, read_request
from baton_serving.gateway.responses.stream import ResponseStream
from baton_serving.gateway.sink import Sink

CHAT = "/v1/chat/completions"


def responses(core: Core, incoming: Incoming, sink: Sink, tenant: str) -> Session | None:
    """A route's handler."""
    if incoming.method == "POST":
        try:
            body = _read(incoming.body)
            request = read_request(body)
            incoming.body = orjson.dumps(chat_body(request, body))
        except BatonError as error:
            reply = error_reply(error)
            sink.reply(reply.status, reply.lines, reply.body)
            return None
        sink = ResponsesSink(sink, request)
    return core.begin(incoming, CHAT, sink, tenant)


class ResponsesSink:
    """Rewrites a chat completion on its way to the client; errors stay as they are."""

    def __init__(self, client: Sink, request: ResponsesRequest) -> None:
        self._client = client
        self._request = request
        self._stream = ResponseStream(request)

    @property
    def lagging(self) -> bool:
        return self._client.lagging

    def reply(self, status: int, lines: bytes, body: bytes) -> None:
        if status == 200:
            body = orjson.dumps(completed(self._request, orjson.loads(body)))
        self._client.reply(status, lines, body)

    def begin(self, status: int, lines: bytes, chunks: bytes) -> None:
        self._client.begin(status, lines, self._rewrite(chunks))

    def relay(self, chunks: bytes) -> None:
        rewritten = self._rewrite(chunks)
        if rewritten:
            self._client.relay(rewritten)

    def end(self) -> None:
        rest = self._stream.end()
        if rest:
            self._client.relay(frame(rest))
        self._client.end()

    def _rewrite(self, chunks: bytes) -> bytes:
        return frame(self._stream.feed(unframe(chunks)))


def _read(body: bytes | bytearray) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.ValidationError as error:
        raise InvalidRequest("the body must be a JSON object") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error
