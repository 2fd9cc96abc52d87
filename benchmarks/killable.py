"""Processes of Baton that a benchmark kills, stops, ends and starts again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

YIELDS = 5  # steps of niceness: a third of the weight


@dataclass
class Worker:
    """A worker process that can be killed and started again at the same port."""

    name: str
    command: list[str]
    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    killed: float = 0.0  # when it was killed or stopped, by the monotonic clock
    ready: bool = False
    restarts: list[float] = field(default_factory=list)  # seconds that each took
    yields: bool = (
        False  # while it starts again, it lets those that serve go first: on a cluster it has its own machine
    )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> dict[str, Any]:
        """Start, and return what it announces once it serves."""
        announced = self.folder / f"{self.name}.json"
        announced.unlink(missing_ok=True)
        begun = time.monotonic()
        self.process = self._spawn("--port", str(self.port), "--announce-file", str(announced))
        usual = os.getpriority(os.PRIO_PROCESS, self.process.pid)
        if self.yields and self.killed:
            _set_niceness(self.process.pid, min(19, usual + YIELDS))
        while not announced.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} did not start:\n{self.tail()}")
            await asyncio.sleep(0.05)
        if self.yields and self.killed:
            _set_niceness(self.process.pid, usual)
        facts: dict[str, Any] = json.loads(announced.read_text())
        self.port = int(facts.get("http_port") or urlsplit(str(facts.get("http", ""))).port or 0)
        if self.killed:
            self.restarts.append(time.monotonic() - begun)
        self.ready = True
        return facts

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def _spawn(self, *ports: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "baton_serving.cli.main", *self.command, *ports]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)

    def signal(self, number: signal.Signals) -> None:
        """To it and its children."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it and its children at once."""
        self.ready = False
        self.killed = time.monotonic()
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    async def end(self) -> int:
        """Tell it to end and wait; its exit status."""
        self.ready = False
        self.killed = time.monotonic()
        assert self.process is not None
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait)

    def tail(self) -> str:
        """What it logged last."""
        return self._log.read_text()[-2000:]

    async def pause(self, seconds: float) -> None:
        """Stop it and its children for a while."""
        self.ready = False
        self.killed = time.monotonic()
        self.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self.signal(signal.SIGCONT)
        self.ready = True


def _set_niceness(pid: int, niceness: int) -> None:
    """Of all threads of a process and its children; those that end meanwhile do not matter."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                for thread in process.threads():
                    os.setpriority(os.PRIO_PROCESS, thread.id, niceness)
