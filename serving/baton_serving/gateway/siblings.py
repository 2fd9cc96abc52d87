"""The processes of one gateway among each other: what one is asked, all answer.

Each process listens on a Unix socket in a folder that only they share. Whichever gets a question that concerns all asks
the others and puts the answers together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from baton_serving.gateway.metrics import Figure, add_up, exposition

PATIENCE = 2.0  # seconds; a process that does not answer in time is left out
ANSWER_LIMIT = 16 * 1024 * 1024


class Question(msgspec.Struct):
    """`what` is "figures" or "explain"."""

    what: str
    request_id: str = ""


class Siblings:
    """`folder` is None for a gateway of one process; else `index` tells the processes apart."""

    def __init__(self, folder: Path | None = None, index: int = 0, count: int = 1) -> None:
        self._folder = folder
        self._index = index
        self._count = count
        self._figures: Callable[[], Mapping[str, object]] = dict
        self._explain: Callable[[str], dict[str, object] | None] = lambda _: None
        self._server: asyncio.Server | None = None

    def attach(
        self, figures: Callable[[], Mapping[str, object]], explain: Callable[[str], dict[str, object] | None]
    ) -> None:
        """What this process has to say itself."""
        self._figures = figures
        self._explain = explain

    async def start(self) -> None:
        if self._folder is not None:
            self._server = await asyncio.start_unix_server(self._answer, self._path(self._index), limit=ANSWER_LIMIT)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path(self._index).unlink(missing_ok=True)

    async def metrics(self) -> bytes:
        """The sum over all processes, in Prometheus's text format."""
        reports = [msgspec.convert(self._figures(), dict[str, Figure])]
        for answer in await self._ask_all(Question("figures")):
            reports.append(msgspec.json.decode(answer, type=dict[str, Figure]))
        return exposition(add_up(reports))

    async def explain(self, request_id: str) -> dict[str, object] | None:
        """The record of whichever process served the request."""
        found = self._explain(request_id)
        if found is not None:
            return found
        for answer in await self._ask_all(Question("explain", request_id)):
            told = msgspec.json.decode(answer, type=dict[str, object] | None)
            if told is not None:
                return told
        return None

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index}.sock"

    async def _ask_all(self, question: Question) -> list[bytes]:
        if self._folder is None:
            return []
        others = [index for index in range(self._count) if index != self._index]
        answers = await asyncio.gather(*(self._ask(index, question) for index in others))
        return [answer for answer in answers if answer]

    async def _ask(self, index: int, question: Question) -> bytes:
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_unix_connection(self._path(index), limit=ANSWER_LIMIT)
                try:
                    writer.write(msgspec.json.encode(question) + b"\n")
                    return await reader.readline()
                finally:
                    writer.close()
        except (OSError, ValueError):
            return b""

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = msgspec.json.decode(await reader.readline(), type=Question)
            told = self._figures() if question.what == "figures" else self._explain(question.request_id)
            writer.write(msgspec.json.encode(told) + b"\n")
            await writer.drain()
        except (OSError, ValueError, msgspec.DecodeError):
            pass
        finally:
            writer.close()
