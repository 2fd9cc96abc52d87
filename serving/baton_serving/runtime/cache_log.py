"""What enters and leaves the radix tree, kept for the API process from one turn of the scheduler's loop to the next."""

from __future__ import annotations

from baton_serving.runtime.messages import CacheChanged


class CacheLog:
    """The tree's `CacheObserver`."""

    def __init__(self) -> None:
        self._last: dict[int, bool] = {}  # by block: whether the last that happened to it was that it entered

    def stored(self, block: int) -> None:
        self._last[block] = True

    def removed(self, block: int) -> None:
        self._last[block] = False

    def take(self) -> CacheChanged | None:
        """What changed since the last call."""
        if not self._last:
            return None
        last, self._last = self._last, {}
        return CacheChanged(
            stored=[block for block, entered in last.items() if entered],
            removed=[block for block, entered in last.items() if not entered],
        )
