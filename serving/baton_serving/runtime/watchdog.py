"""Two watchers of a scheduler process: steps that never end, and garbage collections that take too long."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Watchdog:
    """Kills this process when the loop stands still for `timeout` seconds, after writing every thread's stack.

    The loop calls `tick()` each turn; an operation known to be long is declared with `busy(seconds)` before it starts,
    which moves the limit. A dead scheduler is noticed by the API process at once, a hung one only through this.
    """

    def __init__(self, timeout: float, on_timeout: Callable[[], None] | None = None) -> None:
        self._timeout = timeout
        self._on_timeout = on_timeout or self._kill
        self._deadline = time.monotonic() + timeout
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def tick(self) -> None:
        self._deadline = time.monotonic() + self._timeout

    def busy(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds + self._timeout

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(min(1.0, self._timeout / 4)):
            if time.monotonic() > self._deadline:
                self._on_timeout()
                return

    def _kill(self) -> None:
        log.error("the scheduler loop stood still for %.0f s (--watchdog-timeout): ending the worker", self._timeout)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        os._exit(70)


class GcWarnings:
    """Logs garbage collections that took longer than `threshold` seconds."""

    def __init__(self, threshold: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._threshold = threshold
        self._clock = clock
        self._started = 0.0

    def install(self) -> None:
        """Take what is alive now out of every later collection, then watch the collector."""
        gc.collect()
        gc.freeze()
        if self._threshold > 0:
            gc.callbacks.append(self._observe)

    def remove(self) -> None:
        if self._observe in gc.callbacks:
            gc.callbacks.remove(self._observe)

    def _observe(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started = self._clock()
            return
        seconds = self._clock() - self._started
        if seconds > self._threshold:
            log.warning("garbage collection of generation %s took %.3f s", info.get("generation"), seconds)
