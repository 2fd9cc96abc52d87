"""Child processes of a worker: spawn, wait for readiness, die together.

Each child reports exactly once through a pipe: `Ready` with facts about itself, or `StartFailed`. After that the
parent watches the process itself. A child never outlives its parent (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec

from baton_serving.errors import BatonError, ConfigError, InternalError

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15


class Ready(msgspec.Struct, tag=True):
    """A child can serve; `facts` are plain values that the parent needs."""

    facts: dict[str, Any]


class StartFailed(msgspec.Struct, tag=True):
    """A child cannot start. `config` tells a mistake of the caller (exit code 2) from a fault of ours."""

    message: str
    config: bool


def name_process(name: str) -> None:
    """What `ps`, `top` and `pkill` show for this process (Linux prctl); the kernel keeps 15 bytes."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NAME, name.encode())


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux prctl)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)


class Reporter:
    """A child's end of the start-up pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ready(self, facts: dict[str, Any]) -> None:
        self._connection.send_bytes(msgspec.msgpack.encode(Ready(facts)))
        self._connection.close()

    def failed(self, error: BaseException) -> None:
        """Tell the parent why the start failed; errors of ours keep their one-line message."""
        message = error.message if isinstance(error, BatonError) else f"{type(error).__name__}: {error}"
        report = StartFailed(message, isinstance(error, ConfigError))
        self._connection.send_bytes(msgspec.msgpack.encode(report))
        self._connection.close()


ChildMain = Callable[[Reporter], None]


def _child_entry(main: Callable[..., None], args: tuple[Any, ...], connection: Connection, parent_pid: int) -> None:
    die_with_parent(parent_pid)
    name_process(multiprocessing.current_process().name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides the order
    reporter = Reporter(connection)
    try:
        main(*args, reporter)
    except BatonError as error:
        if connection.closed:
            raise
        reporter.failed(error)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


class Child:
    """One child process and its name in messages to people."""

    def __init__(self, name: str, main: Callable[..., None], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._receiver, sender = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(
            target=_child_entry, args=(main, args, sender, os.getpid()), name=f"baton-{name}", daemon=False
        )
        self.process.start()
        sender.close()

    def wait_ready(self) -> dict[str, Any]:
        """Facts of the child once it can serve.

        Raises ConfigError when the child says that the caller must change something, InternalError when it died.
        """
        while True:
            if self._receiver.poll(0.1):
                break
            if not self.process.is_alive() and not self._receiver.poll(0):
                raise InternalError(f"{self.name} died during start-up (exit code {self.process.exitcode})")
        try:
            raw = self._receiver.recv_bytes()
        except EOFError:
            self.process.join(5)
            raise InternalError(f"{self.name} died during start-up (exit code {self.process.exitcode})") from None
        report = msgspec.msgpack.decode(raw, type=Ready | StartFailed)
        if isinstance(report, StartFailed):
            raise ConfigError(report.message) if report.config else InternalError(f"{self.name}: {report.message}")
        return report.facts

    def stop(self, grace: float) -> None:
        """Ask with SIGTERM, then insist with SIGKILL after `grace` seconds."""
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(grace)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def stop_all(children: list[Child], grace: float = 5.0) -> None:
    """Stop `children` together: all are asked before any is waited for."""
    for child in children:
        if child.process.is_alive():
            child.process.terminate()
    for child in children:
        child.stop(grace)


class ChildWatch:
    """Calls `on_death(child)` once, from its own thread, when the first of `children` ends."""

    def __init__(self, children: list[Child], on_death: Callable[[Child], None]) -> None:
        self._children = children
        self._on_death = on_death
        self._closing, self._closed = multiprocessing.get_context("spawn").Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="child-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        by_sentinel = {child.process.sentinel: child for child in self._children}
        fired = wait([self._closing, *by_sentinel])
        if self._closing in fired:
            return
        sentinel = fired[0]
        if isinstance(sentinel, int):
            child = by_sentinel[sentinel]
            child.process.join(1)  # its pipe closes a moment before its exit status can be read
            self._on_death(child)

    def close(self) -> None:
        self._closed.close()
        self._thread.join()
