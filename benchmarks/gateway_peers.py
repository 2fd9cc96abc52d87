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

_LENGTH = b"\r\ncontent-length: "  # as gateways write it; an expression that takes any case costs microseconds
_EVENTS = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')
_PACE = re.compile(rb'"temperature": *([0-9.]+)')
_STREAM = (b'"stream": true', b'"stream":true')

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


def _whole(data: bytes) -> int:
    """Bytes of the message that `data` begins with; 0 while its head is not whole."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 0
    at = data.find(_LENGTH, 0, end)
    return end + 4 + (int(data[at + len(_LENGTH) : data.index(b"\r", at + 2)]) if at >= 0 else 0)


def _streams(request: bytes) -> bool:
    return _STREAM[0] in request or _STREAM[1] in request


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_REPLY, _INFO_REPLY = _plain(_ANSWER), _plain(_INFO)
_LAST = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_EVENTS_MADE = [_chunk(_EVENT % number) for number in range(4096)]


class WorkerConnection(asyncio.Protocol):
    """Answers requests one after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._begun = b""  # first piece of a request whose body is not whole yet
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._missing > 0:
            self._missing -= len(data)
            if self._missing <= 0:
                self._answer(self._begun + data)
            return
        if data.startswith(b"PRI "):
            self._transport.close()
            return
        total = _whole(data)
        assert total, "gateways send heads whole"
        self._missing = total - len(data)
        if self._missing > 0:
            self._begun = data
        else:
            self._answer(data)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET"):
            self._transport.write(_INFO_REPLY)
        elif not _streams(request):
            self._transport.write(_REPLY)
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
        self._transport.write(_INFO_REPLY if request.startswith(b"GET") else _REPLY)


@dataclass
class Tally:
    """What clients saw. Times in seconds; `first` from the sending of a request to its first event."""

    requests: int = 0
    failed: int = 0
    events: int = 0
    first: list[float] = field(default_factory=list)


class ClientConnection(asyncio.Protocol):
    """Sends the same request again and again until it is told to stop."""

    def __init__(self, request: bytes, tally: Tally, go_on: Callable[[], bool]) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self._request = request
        self._stream = _streams(request)
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
            if self._tail:
                data = self._tail + data
            total = _whole(data)
            if not total or len(data) < total:
                self._tail = data
                return
        tally.requests += 1
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


async def load(host: str, port: int, request: bytes, concurrency: int, seconds: float, spread: float = 0.0) -> Tally:
    """Keep `concurrency` requests under way for `seconds`, each connection one after the other.

    They begin evenly over `spread` seconds. Streams of one pace that began at once would go on in step for ever, and
    what each then waits for is the others.
    """
    tally = Tally()
    loop = asyncio.get_running_loop()
    until = loop.time() + spread + seconds
    connections = []
    for _ in range(concurrency):
        _, connection = await loop.create_connection(
            lambda: ClientConnection(request, tally, lambda: loop.time() < until), host, port
        )
        connections.append(connection)
        if spread:
            await asyncio.sleep(spread / concurrency)
    await asyncio.gather(*(connection.closed for connection in connections))
    return tally
