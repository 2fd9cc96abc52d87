"""Child processes of a worker: start, wait for readiness, die together.

A child is a fresh interpreter that runs a function named as text, so the parent imports nothing of what its children
run, and a child nothing of the program that started it. Each child ends its start-up through a pipe with `Ready`, which
brings facts about itself, or `StartFailed`. After that the parent watches the process itself. A child never outlives
its parent (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from baton_serving.errors import BatonError, ConfigError, InternalError

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15


@dataclass(frozen=True)
class Ready:
    """A child can serve; `facts` are plain values that the parent needs."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class Told:
    """Something that the parent must know before the child is ready."""

    value: object


@dataclass(frozen=True)
class StartFailed:
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

    def tell(self, value: object) -> None:
        """Hand the parent a value while starting."""
        self._connection.send(Told(value))

    def hear(self) -> Any:
        """Wait for the value that the parent hands to this child (`Child.tell`)."""
        return self._connection.recv()

    def has_news(self) -> bool:
        """Whether `hear` would not have to wait."""
        return self._connection.poll()

    def ready(self, facts: dict[str, Any]) -> None:
        self._connection.send(Ready(facts))
        self._connection.close()

    def failed(self, error: BaseException) -> None:
        """Tell the parent why the start failed; errors of ours keep their one-line message."""
        message = error.message if isinstance(error, BatonError) else f"{type(error).__name__}: {error}"
        self._connection.send(StartFailed(message, isinstance(error, ConfigError)))
        self._connection.close()


def child_main(name: str, descriptor: int) -> None:
    """What a child's interpreter runs: the function that the parent sends through the pipe at `descriptor`."""
    connection = Connection(descriptor)
    main, args, parent_pid = connection.recv()
    die_with_parent(parent_pid)
    name_process(f"baton-{name}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides the order
    reporter = Reporter(connection)
    module, _, function = main.partition(":")
    try:
        getattr(importlib.import_module(module), function)(*args, reporter)
    except BatonError as error:
        if connection.closed:
            raise
        reporter.failed(error)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    # Everything of ours is closed; what libraries would still tear down, such as a transfer engine, takes seconds.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Child:
    """One child process and its name in messages to people.

    It runs `main`, written `module:function`, with `args`, which are pickled, and a `Reporter`.
    """

    def __init__(self, name: str, main: str, *args: Any) -> None:
        self.name = name
        self.connection, theirs = multiprocessing.Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "baton_serving.runtime.child", name, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)},
            )
        self.sentinel = os.pidfd_open(self.process.pid)
        self.tell((main, args, os.getpid()))

    def tell(self, value: object) -> None:
        """Hand the child a value (`Reporter.hear`). A child that has died is found when it is waited for."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(value)

    def receive(self) -> Ready | Told:
        """The child's next report; waits for it.

        Raises ConfigError when the child says that the caller must change something, InternalError when it died.
        """
        try:
            report = self.connection.recv()
        except (EOFError, ConnectionResetError):
            code = self._exit_code(5)
            raise InternalError(f"{self.name} died during start-up (exit code {code})") from None
        if isinstance(report, StartFailed):
            raise ConfigError(report.message) if report.config else InternalError(f"{self.name}: {report.message}")
        assert isinstance(report, Ready | Told)
        return report

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()

    def stop(self, grace: float) -> None:
        """Wait until it has ended, and insist with SIGKILL after `grace` seconds."""
        if self._exit_code(grace) is None:
            self.process.kill()
            self.process.wait()
        self.connection.close()
        os.close(self.sentinel)

    def _exit_code(self, patience: float) -> int | None:
        """The exit code, once there is one; None after `patience` seconds."""
        wait([self.sentinel], patience)
        return self.process.poll()


def wait_ready(
    children: Sequence[Child],
    on_told: Callable[[Child, object], None] = lambda _child, _value: None,
    on_ready: Callable[[Child], None] = lambda _child: None,
) -> dict[str, dict[str, Any]]:
    """The facts of all children by name, once every one can serve; what they tell before goes to `on_told`, and each
    that can serve to `on_ready`.

    Raises what `Child.receive` does for the first that fails, whatever the others still wait for.
    """
    facts: dict[str, dict[str, Any]] = {}
    starting = {child.connection: child for child in children}
    while starting:
        for connection in wait(list(starting)):
            assert isinstance(connection, Connection)
            child = starting[connection]
            report = child.receive()
            if isinstance(report, Told):
                on_told(child, report.value)
            else:
                facts[child.name] = report.facts
                on_ready(child)
                del starting[connection]
    return facts


def stop_all(children: Sequence[Child], grace: float = 5.0) -> None:
    """Stop `children` together: all are asked before any is waited for."""
    for child in children:
        child.ask_to_stop()
    for child in children:
        child.stop(grace)


class ChildWatch:
    """Calls `on_death(child, exit code)` once, from its own thread, when the first of `children` ends."""

    def __init__(self, children: Sequence[Child], on_death: Callable[[Child, int | None], None]) -> None:
        self._by_sentinel = {child.sentinel: child for child in children}
        self._on_death = on_death
        self._closing, self._closed = multiprocessing.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="child-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        fired = wait([self._closing, *self._by_sentinel])
        if self._closing in fired:
            return
        child = self._by_sentinel[next(found for found in fired if isinstance(found, int))]
        self._on_death(child, child.process.poll())

    def close(self) -> None:
        self._closed.close()
        self._thread.join()
        self._closing.close()
