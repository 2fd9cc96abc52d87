"""A least-recently-used queue over nodes whose stamps and standing change: entries are checked when they come up."""

from __future__ import annotations

import heapq
from typing import Generic, Protocol, TypeVar


class Stamped(Protocol):
    """What the queue needs of a node: `serial` is unique and breaks ties."""

    @property
    def serial(self) -> int: ...


N = TypeVar("N", bound=Stamped)


class LruQueue(Generic[N]):
    """Candidates for eviction, oldest stamp first; subclasses say what counts.

    A node is in the heap at most once. An entry that is no candidate any more is dropped when it comes up, and one
    that was used since is put back with its new stamp, so that locking and touching a node cost nothing here. Stamps
    never fall.
    """

    __slots__ = ("_heap", "_members")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, N]] = []
        self._members: set[N] = set()

    def stamp(self, node: N) -> int:
        raise NotImplementedError

    def evictable(self, node: N) -> bool:
        raise NotImplementedError

    def push(self, node: N) -> None:
        """Enter a node that just became a candidate; no effect when it is still in the queue from before."""
        if node not in self._members:
            self._members.add(node)
            heapq.heappush(self._heap, (self.stamp(node), node.serial, node))

    def peek(self) -> N | None:
        """The oldest candidate, left in the queue."""
        heap = self._heap
        while heap:
            stamp, serial, node = heap[0]
            if not self.evictable(node):
                heapq.heappop(heap)
                self._members.remove(node)
            elif stamp != (now := self.stamp(node)):
                heapq.heapreplace(heap, (now, serial, node))
            else:
                return node
        return None

    def pop(self) -> N:
        """Remove what `peek` showed."""
        _, _, node = heapq.heappop(self._heap)
        self._members.remove(node)
        return node
