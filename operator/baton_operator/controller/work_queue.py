"""A queue of keys, of which each is worked on by one worker at a time."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys with the time they are due at. A key that is added several times is taken once, at the earliest of them.

    A key that is added while it is worked on is taken again afterwards. Not for threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._taken: set[K] = set()
        self._added = asyncio.Event()
        self._count = 0

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: K, delay: float = 0.0) -> None:
        """Let `key` be taken `delay` seconds from now, or earlier where it already would be."""
        due = self._clock() + delay
        if key not in self._due or due < self._due[key]:
            self._due[key] = due
            if key not in self._taken:
                self._push(key)

    async def take(self) -> K:
        """The key that is due next; `done` must be called for it."""
        while True:
            wait = self._wait()
            if wait is not None and wait <= 0:
                key = heapq.heappop(self._heap)[2]
                del self._due[key]
                self._taken.add(key)
                return key
            self._added.clear()
            try:
                await asyncio.wait_for(self._added.wait(), wait)
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The work on `key` is over."""
        self._taken.remove(key)
        if key in self._due:
            self._push(key)

    def _push(self, key: K) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self._due[key], self._count, key))
        self._added.set()

    def _wait(self) -> float | None:
        """Seconds until the first key is due. Entries that an earlier time has replaced are dropped."""
        while self._heap:
            due, _, key = self._heap[0]
            if key not in self._taken and self._due.get(key) == due:
                return due - self._clock()
            heapq.heappop(self._heap)
        return None
