"""Light workers and clients for measuring what stands between them: no HTTP library, prepared answers, few processes.

A worker answers as prefill and decode workers do. What a request asks for is read off its body: `stream`, the number of
events from `max_tokens`, and seconds between two events from `temperature`, a field that every gateway passes on.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_EVENTS = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')
_PACE = re.compile(rb'"temperature": *([0-9.]+)')
_STREAM = re.compile(rb'"stream": *true')

MODEL = "m"
_EVENT = (
    b'id: [0,%d,271]\ndata: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk",'
    b'"created":1754000000,"model":"m","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,'
    b'"finish_reason":null}],"system_fingerprint":"0123456789abcdef"}\n\n'
)
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1754000000,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "a word"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
).encode()
_INFO = json.dumps({"served_model_name": MODEL, "model_path": MODEL, "is_generation": True}).encode()


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_LAST = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_EVENTS_MADE = [_chunk(_EVENT % number) for number in range(4096)]


class WorkerConnection(asyncio.Protocol):
    """Answers requests one after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._data.startswith(b"PRI "):
            self._transport.close()
            return
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._data, 0, end)
        total = end + 4 + (int(length[1]) if length else 0)
        if len(self._data) < total:
            return
        request, self._data = self._data[:total], self._data[total:]
        self._answer(request)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET"):
            self._transport.write(_plain(_INFO))
        elif _STREAM.search(request) is None:
            self._transport.write(_plain(_ANSWER))
        else:
            events, pace = _EVENTS.search(request), _PACE.search(request)
            count, seconds = int(events[1]) if events else 1, float(pace[1]) if pace else 0.0
            if seconds:
                self._transport.write(_HEAD + _EVENTS_MADE[0])
                asyncio.get_running_loop().call_later(seconds, self._pace, 1, count, seconds)
            else:
                self._transport.write(_HEAD + b"".join(_EVENTS_MADE[:count]) + _LAST)

    def _pace(self, number: int, count: int, seconds: float) -> None:
        if self._transport.is_closing():
            return
        if number < count:
            self._transport.write(_EVENTS_MADE[number])
            asyncio.get_running_loop().call_later(seconds, self._pace, number + 1, count, seconds)
        else:
            self._transport.write(_LAST)


class PrefillConnection(WorkerConnection):
    """Answers everything at once: the other leg is what the client hears."""

    def _answer(self, request: bytes) -> None:
        self._transport.write(_plain(_INFO if request.startswith(b"GET") else _ANSWER))


@dataclass
class Tally:
    """What clients saw. Times in seconds; `first` from the sending of a request to its first event."""

    requests: int = 0
    failed: int = 0
    events: int = 0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


class ClientConnection(asyncio.Protocol):
    """Sends the same request again and again until it is told to stop."""

    def __init__(self, request: bytes, tally: Tally, go_on: Callable[[], bool]) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self._request = request
        self._stream = _STREAM.search(request) is not None
        self._tally = tally
        self._go_on = go_on
        self._transport: asyncio.Transport
        self._sent = 0.0
        self._heard = False
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sent:
            self._tally.failed += 1
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        if not self._heard:
            self._heard = True
            if not data.startswith(b"HTTP/1.1 200"):
                self._tally.failed += 1
        tally = self._tally
        if self._stream:
            found = data.count(b"data: {")
            if found and not self._tail:
                tally.first.append(time.perf_counter() - self._sent)
            tally.events += found
            self._tail = (self._tail + data)[-5:]
            if self._tail != b"0\r\n\r\n":
                return
        else:
            self._tail += data
            end = self._tail.find(b"\r\n\r\n")
            length = _LENGTH.search(self._tail, 0, end) if end >= 0 else None
            if length is None or len(self._tail) < end + 4 + int(length[1]):
                return
        tally.requests += 1
        tally.whole.append(time.perf_counter() - self._sent)
        self._send()

    def _send(self) -> None:
        self._tail = b""
        self._heard = False
        if self._go_on():
            self._sent = time.perf_counter()
            self._transport.write(self._request)
        else:
            self._sent = 0.0
            self._transport.close()


def chat_request(*, stream: bool, events: int = 1, pace: float = 0.0) -> bytes:
    """A chat request of some 700 bytes with the headers that clients and meshes send."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant. " * 8},
        {"role": "user", "content": "Hi! " * 8},
    ]
    body = {"model": MODEL, "messages": messages, "stream": stream, "max_tokens": events, "temperature": pace}
    data = json.dumps(body).encode()
    lines = [
        b"POST /v1/chat/completions HTTP/1.1",
        b"Host: 127.0.0.1",
        b"Content-Type: application/json",
        b"Authorization: Bearer sk-benchmark",
        b"User-Agent: benchmark/1",
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"Content-Length: %d" % len(data),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + data


async def load(host: str, port: int, request: bytes, concurrency: int, seconds: float) -> Tally:
    """Keep `concurrency` requests under way for `seconds`, each connection one after the other."""
    tally = Tally()
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    connections = []
    for _ in range(concurrency):
        _, connection = await loop.create_connection(
            lambda: ClientConnection(request, tally, lambda: loop.time() < until), host, port
        )
        connections.append(connection)
    await asyncio.gather(*(connection.closed for connection in connections))
    return tally
