"""Is the scheduler alive? Its tick says so, not the web server's answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from baton_serving.runtime.messages import WorkerState

WINDOW: Final = 30.0  # seconds without a tick, many times a long prefill step, far below the watchdog's limit


class Liveness:
    """Watches `WorkerState` for a tick that moves. A declared long operation counts as alive until its end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tick = -1
        self._moved = float("-inf")
        self._busy_until = 0.0

    def observe(self, state: WorkerState) -> None:
        self._busy_until = state.busy_until
        if state.tick != self._tick:
            self._tick = state.tick
            self._moved = self._clock()

    @property
    def busy_seconds(self) -> float:
        """For how long the tick may still stand, as was declared."""
        return max(0.0, self._busy_until - self._clock())

    @property
    def alive(self) -> bool:
        now = self._clock()
        return now - self._moved <= WINDOW or now <= self._busy_until
