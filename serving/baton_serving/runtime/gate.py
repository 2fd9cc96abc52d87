"""The door that new requests pass: shut while a worker must stand still, for as long as anybody holds it shut."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from baton_serving.errors import BatonError, QueueFull, Unavailable


@dataclass(frozen=True)
class _Hold:
    message: str
    refuse: bool


class Gate:
    """`close` and `open` by name, several at a time. At most `limit` requests wait (None: any number)."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._holds: dict[str, _Hold] = {}
        self._opened = asyncio.Event()
        self._waiting = 0
        self._error: BatonError | None = None

    @property
    def waiting(self) -> int:
        """Requests that stand before it."""
        return self._waiting

    @property
    def is_open(self) -> bool:
        return not self._holds

    def close(self, name: str, message: str, *, refuse: bool = False) -> None:
        """Hold it shut on behalf of `name`; with `refuse` nobody may wait: `message` says why."""
        self._holds[name] = _Hold(message, refuse)
        self._opened.clear()

    def open(self, name: str) -> None:
        """`name` no longer holds it shut."""
        self._holds.pop(name, None)
        if not self._holds:
            self._opened.set()

    def fail(self, error: BatonError) -> None:
        """End everybody who waits, and whoever comes, with `error`."""
        self._error = error
        self._opened.set()

    async def passed(self, *, may_wait: bool) -> None:
        """Return once it is open. Raises Unavailable when the request `may_wait` not, QueueFull when too many do."""
        while self._holds and self._error is None:
            refusal = next((hold for hold in self._holds.values() if hold.refuse), None)
            if refusal is not None or not may_wait:
                hold = refusal or next(iter(self._holds.values()))
                raise Unavailable(hold.message, retry_after=1)
            if self._limit is not None and self._waiting >= self._limit:
                raise QueueFull(f"{self._waiting} requests are waiting already, which is the limit; try again later")
            self._waiting += 1
            try:
                await self._opened.wait()
            finally:
                self._waiting -= 1
        if self._error is not None:
            raise self._error
