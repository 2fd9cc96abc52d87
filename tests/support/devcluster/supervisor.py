"""Runs programs and starts them again when they end, as an init system does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping

from support.devcluster.layout import Layout

_PAUSE = 1.0  # seconds before a program that ended is started again


class Supervisor:
    """A program is held down while the layout's file for it exists: that is how tests stop one for a while."""

    def __init__(self, layout: Layout, environment: Mapping[str, str]) -> None:
        self._layout = layout
        self._environment = dict(environment)
        self._commands: dict[str, list[str]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: dict[str, float] = {}

    def start(self, name: str, *command: object) -> None:
        self._commands[name] = [str(word) for word in command]
        self._spawn(name)

    def wait(self, what: str, holds: Callable[[], bool], within: float = 90.0) -> None:
        """Raises `RuntimeError`, also as soon as a program ends that should not."""
        end = time.monotonic() + within
        while not holds():
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}: see {self._layout.log(name)}")
            if time.monotonic() > end:
                raise RuntimeError(f"not within {within} s: {what}; see {self._layout.log(name).parent}")
            time.sleep(0.05)

    def run(self, reap: bool = False) -> None:
        """For ever. The first process of a namespace also inherits orphans, and has to `reap` them."""
        while True:
            self._look_after_all()
            if reap:
                self._reap()
            time.sleep(0.1)

    def _look_after_all(self) -> None:
        for name in self._commands:
            process, held = self._running.get(name), self._layout.held(name).exists()
            if process is not None and process.poll() is not None:
                del self._running[name]
                self._ended[name] = time.monotonic()
            elif process is not None and held:
                process.send_signal(signal.SIGKILL)
            elif process is None and not held and time.monotonic() > self._ended.get(name, 0.0) + _PAUSE:
                self._spawn(name)

    def _spawn(self, name: str) -> None:
        with self._layout.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                self._commands[name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self._environment,
            )

    def _reap(self) -> None:
        """Those of ours are left for `poll`, which wants the status."""
        own = {process.pid for process in self._running.values()}
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in own:
                    return
                os.waitpid(ended.si_pid, 0)
