"""One child process: start it, hear its announcement and its log lines, stop it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path

from baton_serving.local import launcher

KEPT_LINES = 20
MAX_LINE = 16 * 1024

Announcement = Mapping[str, str | int]


class Child:
    """A running process in a process group of its own; `on_line` hears every line it writes but the announcement."""

    def __init__(self, process: asyncio.subprocess.Process, on_line: Callable[[str], None]) -> None:
        self.pid = process.pid
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._process = process
        self._on_line = on_line
        self._announced: asyncio.Future[Announcement | None] = asyncio.get_running_loop().create_future()
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read_stdout(process.stdout)),
            asyncio.create_task(self._read_stderr(process.stderr)),
        ]

    @classmethod
    async def start(cls, command: list[str], env: Mapping[str, str], on_line: Callable[[str], None]) -> Child:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-E", str(Path(launcher.__file__)), str(os.getpid()), *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env},
            process_group=0,
        )
        return cls(process, on_line)

    async def announcement(self) -> Announcement | None:
        """What it announced; None when it ended without."""
        return await asyncio.shield(self._announced)

    async def ended(self) -> int:
        """Its exit status, negative for a signal, once it ended and everything it wrote was heard."""
        status = await self._process.wait()
        await asyncio.wait(self._readers, timeout=1.0)  # a grandchild may hold the pipes open
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, if it still runs."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    def kill_group(self) -> None:
        """Kill it and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _read_stdout(self, stream: asyncio.StreamReader) -> None:
        async for line in _lines(stream):
            if not self._announced.done() and (facts := _facts(line)) is not None:
                self._announced.set_result(facts)
            else:
                self.hear(line)
        if not self._announced.done():
            self._announced.set_result(None)

    async def _read_stderr(self, stream: asyncio.StreamReader) -> None:
        async for line in _lines(stream):
            self.hear(line)

    def hear(self, line: str) -> None:
        """Take a line as one that it wrote."""
        self.last_lines.append(line)
        self._on_line(line)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines as text, cut after `MAX_LINE` bytes; the last need not end in a newline."""
    rest = b""
    while data := await stream.read(MAX_LINE):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_LINE:
            whole, rest = [*whole, rest], b""
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _facts(line: str) -> Announcement | None:
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None
