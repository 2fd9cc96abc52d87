"""Baton's commands as real processes: started, asked, killed, and always gone at the end."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx

REPOSITORY = Path(__file__).parents[2]
BATON_TINY = REPOSITORY / "examples/models/baton-tiny"
BATON_TINY_V2 = REPOSITORY / "examples/models/baton-tiny-v2"

_METRIC = re.compile(r"^(baton_\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def free_port() -> int:
    """A port that nobody listens on now, for commands that cannot choose one themselves or must come back to it.

    Below those that the system gives to connections: one that is tried again and again may be given the very port that
    it looks for, and so meet itself.
    """
    while True:
        port = random.randrange(20000, 32768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def bound_to_parent(command: list[str]) -> list[str]:
    """`command`, to be killed when this process ends.

    It asks for that itself: a process with threads of gRPC does not survive code between fork and exec.
    """
    bind = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-S", "-c", bind, *command]


@dataclass
class BatonProcess:
    """One command and its children, in a process group of their own. `facts` is what it announced."""

    name: str
    popen: subprocess.Popen[str]
    log: Path
    facts: dict[str, str | int]

    @property
    def url(self) -> str:
        """Where its HTTP API answers."""
        return str(self.facts.get("url") or self.facts["http"])

    @property
    def key(self) -> str:
        """What a request calls this worker by: `host:port`."""
        return self.url.removeprefix("http://")

    def wait_announced(self) -> BatonProcess:
        """Block until it serves; AssertionError with its log when it ends instead."""
        if self.facts:
            return self
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if line.startswith("{"):
                self.facts = json.loads(line)
                return self
        raise AssertionError(f"{self.name} ended with {self.popen.wait()}:\n{self.log.read_text()[-4000:]}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command and all of its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.popen.wait()

    def stop(self) -> int:
        """Ask it to end; returns its exit status."""
        self.popen.terminate()
        status = self.popen.wait()
        self.signal(signal.SIGKILL)  # nobody of the group may be left
        return status

    def metrics(self) -> dict[str, float]:
        """Its figures without labels; those of different labels are added up."""
        text = httpx.get(f"{self.url}/metrics", timeout=20).raise_for_status().text
        values: dict[str, float] = {}
        for name, value in _METRIC.findall(text):
            values[name] = values.get(name, 0.0) + float(value)
        return values


class BatonProcesses:
    """Starts commands and ends them all when left. Their logs go to `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[BatonProcess] = []
        self._serial = itertools.count()

    def __enter__(self) -> BatonProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._started:
            process.kill()
            if process.popen.stdout is not None:
                process.popen.stdout.close()

    def run(self, name: str, *words: str) -> BatonProcess:
        """Start a command with these arguments, without waiting for it."""
        log = self._folder / f"{next(self._serial)}-{name}.log"
        with log.open("w") as stderr:
            popen = subprocess.Popen(
                bound_to_parent(list(words)),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        process = BatonProcess(name, popen, log, {})
        self._started.append(process)
        return process

    def baton(self, name: str, *words: str) -> BatonProcess:
        return self.run(name, sys.executable, "-m", "baton_serving.cli.main", *words)

    def bootstrap(self, port: int = 0) -> BatonProcess:
        """A bootstrap server that serves; `port` is its gRPC port."""
        return self.baton("bootstrap", "bootstrap", "--port", str(port), "--http-port", "0").wait_announced()

    def worker(self, name: str, model: Path, *options: str, port: int = 0) -> BatonProcess:
        """A worker that is on its way up: call `wait_announced` before it is asked."""
        return self.baton(name, "serve", "--model-path", str(model), "--port", str(port), *options)

    def gateway(self, bootstrap: BatonProcess, *options: str) -> BatonProcess:
        """A gateway that serves."""
        addresses = ("--bootstrap-addr", str(bootstrap.facts["grpc"]))
        return self.baton("gateway", "gateway", "--port", "0", *addresses, *options).wait_announced()
