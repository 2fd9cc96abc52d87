"""One streamed request over HTTP, timed: what came when, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum

import aiohttp
import msgspec

from baton_serving.bench.protocols import Event, Route


class Ending(Enum):
    """How a request ended. LOST: the stream broke off without a terminal reply."""

    DONE = "done"
    FAILED = "failed"
    LOST = "lost"
    DISCONNECTED = "disconnected"


@dataclass
class Outcome:
    """Times in seconds on `time.perf_counter`. `chunks` are the times at which new tokens came."""

    started: float
    ended: float = 0.0
    chunks: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ending: Ending = Ending.LOST
    error: str = ""


@dataclass(frozen=True)
class Disconnect:
    """When a client leaves: after `chunks` chunks with tokens; when that is 0, `seconds` after it sent the request."""

    chunks: int
    seconds: float


class Client:
    """Sends requests to one route of one server over a shared connection pool."""

    def __init__(self, session: aiohttp.ClientSession, url: str, route: Route) -> None:
        self._session = session
        self._url = url.rstrip("/") + route.path
        self._route = route

    async def send(self, body: dict[str, object], disconnect: Disconnect | None = None) -> Outcome:
        """Send one request and read its answer to the end, or until the client is told to leave. Raises nothing that
        the server or the network does: it is in the outcome."""
        outcome = Outcome(time.perf_counter())
        patience = disconnect.seconds if disconnect is not None and disconnect.chunks == 0 else None
        try:
            async with asyncio.timeout(patience):
                await self._stream(body, disconnect, outcome)
        except TimeoutError:
            outcome.ending = Ending.LOST if patience is None else Ending.DISCONNECTED
            outcome.error = "" if patience is not None else "no terminal reply in time"
        except aiohttp.ClientConnectorError as error:
            outcome.ending, outcome.error = Ending.FAILED, f"cannot connect: {error}"
        except aiohttp.ClientError as error:
            outcome.error = f"{type(error).__name__}: {error}"
        except msgspec.DecodeError as error:
            outcome.ending, outcome.error = Ending.FAILED, f"unreadable event: {error}"
        outcome.ended = time.perf_counter()
        return outcome

    async def _stream(self, body: dict[str, object], disconnect: Disconnect | None, outcome: Outcome) -> None:
        async with self._session.post(self._url, json=body) as response:
            if response.status != 200:
                outcome.ending = Ending.FAILED
                outcome.error = f"{response.status}: {(await response.text())[:200]}"
                return
            finished = False
            async for data in _events(response.content):
                if data == self._route.done:
                    outcome.ending = Ending.DONE if finished else Ending.LOST
                    return
                event = self._route.read(data)
                if event.error:
                    outcome.ending, outcome.error = Ending.FAILED, event.error[:200]
                    return
                finished = finished or event.finished
                _note(outcome, event)
                if disconnect is not None and len(outcome.chunks) >= disconnect.chunks > 0:
                    outcome.ending = Ending.DISCONNECTED
                    response.close()
                    return
            outcome.error = "the stream ended without its end mark"


def _note(outcome: Outcome, event: Event) -> None:
    outcome.prompt_tokens = event.prompt_tokens or outcome.prompt_tokens
    outcome.completion_tokens = event.completion_tokens or outcome.completion_tokens
    if event.tokens:
        outcome.chunks.append(time.perf_counter())


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Data of each server-sent event, however the bytes are cut."""
    rest = b""
    async for piece in content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
