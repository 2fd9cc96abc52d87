"""A real `baton serve`: its processes, its announcement, its log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

BATON_TINY = Path(__file__).parents[2] / "examples" / "models" / "baton-tiny"
BATON_TINY_V2 = BATON_TINY.with_name("baton-tiny-v2")
PATIENCE = 60.0  # seconds; bounds a failing test, and says nothing about how fast things are


class WorkerProcess:
    """`baton serve` of `model` on a free port, started at once; `flags` are those of the command line.

    `folder` takes the log, and what the worker would put into /tmp. Leaving the context kills what still runs.
    """

    def __init__(self, folder: Path, model: Path, *flags: str) -> None:
        self.folder = folder
        self.temporary = Path(tempfile.mkdtemp(prefix="worker-"))  # not below `folder`: paths of sockets must be short
        command = [*(sys.executable, "-m", "baton_serving.cli.main", "serve", "--model-path", str(model)), *flags]
        for flag, usual in (("--port", "0"), ("--device", "cpu")):
            if flag not in flags:
                command += [flag, usual]
        self._log = folder / "log.txt"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "TMPDIR": str(self.temporary)},
            )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        shutil.rmtree(self.temporary)

    def announced(self) -> dict[str, Any]:
        """What it announces once it serves."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker ended:\n{self.log}"
        facts: dict[str, Any] = json.loads(line)
        return facts

    @property
    def log(self) -> str:
        """All that it wrote to stderr."""
        return self._log.read_text()

    def child(self, name: str) -> psutil.Process:
        """Its detokenizer or one of its ranks, as its log names them."""
        kernel_name = f"baton-{name}"[:15]
        (found,) = [child for child in psutil.Process(self.process.pid).children() if child.name() == kernel_name]
        return found

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """The exit status, once it ended and left nothing behind."""
        status = self.process.wait(PATIENCE)
        assert list(self.temporary.glob("baton-*")) == []
        return status


def figures(http: httpx.Client) -> dict[str, float]:
    """Everything in /metrics without labels, by name."""
    text = http.get("/metrics").text
    return {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples if not s.labels}


def wait_idle(http: httpx.Client) -> dict[str, float]:
    """The figures once no request is left: all pages are free or cached then."""
    deadline = time.monotonic() + PATIENCE
    busy = ("baton_requests_running", "baton_requests_prefilling", "baton_requests_waiting", "baton_kv_pages_in_use")
    while any((now := figures(http))[name] for name in busy):
        assert time.monotonic() < deadline, f"still busy: {now}"
    return now
