"""A stream of chat chunks as a stream of response events, with the official event types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import orjson

from baton_serving.gateway.responses.reply import (
    Item,
    ResponseObject,
    call_item,
    fresh_id,
    message_item,
    status_of,
    text_part,
    usage_of,
)
from baton_serving.gateway.responses.request import ResponsesRequest

_GONE = {"code": "server_error", "message": "the stream broke off"}


class ResponseStream:
    """Feed it the bytes of one chat stream, then `end`; each gives the bytes of events that follow.

    Every stream ends with `response.completed`, `response.incomplete` or `response.failed`.
    """

    def __init__(self, request: ResponsesRequest) -> None:
        self._response = ResponseObject(request)
        self._numbers = count()
        self._buffer = b""
        self._item: Item | None = None  # the output item under way
        self._begun = False
        self._finish_reason: str | None = None
        self._done = False
        self._call = -1  # index of the call under way, as the chat stream counts

    def feed(self, data: bytes) -> bytes:
        """`data` may be cut anywhere."""
        *events, self._buffer = (self._buffer + data).split(b"\n\n")
        return b"".join(part for event in events for part in self._take(event))

    def end(self) -> bytes:
        """The last events, where `[DONE]` never came."""
        return b"" if self._done else b"".join(self._fail(_GONE))

    def _take(self, event: bytes) -> Iterator[bytes]:
        data = next((line[6:] for line in event.split(b"\n") if line.startswith(b"data: ")), None)
        if data is None or self._done:
            return
        if data == b"[DONE]":
            yield from self._complete()
            return
        chunk = orjson.loads(data)
        if "error" in chunk:
            error = chunk["error"]
            yield from self._fail({"code": error.get("code") or "server_error", "message": error["message"]})
            return
        yield from self._chunk(chunk)

    def _chunk(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        response = self._response
        response.model = chunk["model"]
        if not self._begun:
            yield from self._begin()
        if chunk.get("usage"):
            response.usage = usage_of(chunk["usage"])
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content"):
                yield from self._text(delta["content"])
            for call in delta.get("tool_calls") or []:
                yield from self._call_piece(call)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def _begin(self) -> Iterator[bytes]:
        self._begun = True
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response.as_dict("in_progress"))

    def _text(self, text: str) -> Iterator[bytes]:
        if self._item is None or self._item["type"] != "message":
            yield from self._close_item()
            yield from self._open_item(message_item(fresh_id("msg"), "", "in_progress"), content=[])
            yield self._event("response.content_part.added", **self._at(), content_index=0, part=text_part(""))
        assert self._item is not None
        self._item["content"][0]["text"] += text
        yield self._event("response.output_text.delta", **self._at(), content_index=0, delta=text, logprobs=[])

    def _call_piece(self, call: Mapping[str, Any]) -> Iterator[bytes]:
        function = call["function"]
        if call["index"] != self._call:
            self._call = call["index"]
            yield from self._close_item()
            yield from self._open_item(call_item(fresh_id("fc"), call["id"], function["name"], "", "in_progress"))
        assert self._item is not None
        if function.get("arguments"):
            self._item["arguments"] += function["arguments"]
            yield self._event("response.function_call_arguments.delta", **self._at(), delta=function["arguments"])

    def _open_item(self, item: Item, **shown: object) -> Iterator[bytes]:
        self._item = item
        self._response.output.append(item)
        yield self._event("response.output_item.added", output_index=self._index, item={**item, **shown})

    def _close_item(self, status: str = "completed") -> Iterator[bytes]:
        item = self._item
        if item is None:
            return
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            at = {**self._at(), "content_index": 0}
            yield self._event("response.output_text.done", **at, text=part["text"], logprobs=[])
            yield self._event("response.content_part.done", **at, part=part)
        else:
            name, arguments = item["name"], item["arguments"]
            yield self._event("response.function_call_arguments.done", **self._at(), name=name, arguments=arguments)
        yield self._event("response.output_item.done", output_index=self._index, item=item)
        self._item = None

    def _complete(self) -> Iterator[bytes]:
        status = status_of(self._finish_reason)
        yield from self._close_item(status)
        self._done = True
        yield self._event(f"response.{status}", response=self._response.as_dict(status))

    def _fail(self, error: Mapping[str, Any]) -> Iterator[bytes]:
        if not self._begun:
            yield from self._begin()
        if self._item is not None:
            self._item["status"] = "incomplete"
        self._done = True
        yield self._event("response.failed", response=self._response.as_dict("failed", error))

    @property
    def _index(self) -> int:
        return len(self._response.output) - 1

    def _at(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": self._index}

    def _event(self, kind: str, **fields: object) -> bytes:
        data = orjson.dumps({"type": kind, "sequence_number": next(self._numbers), **fields})
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
