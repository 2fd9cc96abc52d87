"""What each tenant has open and may still spend, right across the processes that share a port.

The figures live in a buffer of fixed rows: private memory of one process, or memory that all of them map. Counts have a
column for each process, so that those of a process that died can be wiped. Every change is made under a lock: for
several processes a POSIX file lock, which the system takes back from a process that dies.

Sharing exact figures costs two system calls a request. The alternative, a fixed share of every limit for each process,
is wrong where it matters: the kernel spreads connections, not requests, and a client with few of them would meet a
fraction of its limit.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import xxhash

ROWS = 4096  # tenants with figures of their own; those that find no row share the last one
_CELL = 8
_TENANT, _LEVEL, _STAMP, _COUNTS = 0, 1, 2, 3  # cells of a row: hash, bucket, time of the bucket, then the counts
TOTAL = 0  # the row that counts requests admitted, of all tenants


@dataclass(frozen=True)
class Limits:
    """Of one tenant; None: no limit. The rate is in tokens of prompt and answer; a minute's worth may come at once."""

    requests: int | None = None
    tokens_per_minute: int | None = None

    def over(self, usual: Limits) -> Limits:
        """These, and the usual ones where these say nothing."""
        requests = usual.requests if self.requests is None else self.requests
        rate = usual.tokens_per_minute if self.tokens_per_minute is None else self.tokens_per_minute
        return Limits(requests, rate)


class Ledger:
    """Rows of figures. Everything but `lock` is to be called under the lock."""

    def __init__(
        self,
        buffer: bytearray | mmap.mmap | None = None,
        column: int = 0,
        columns: int = 1,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self._width = _COUNTS + columns
        self._column = _COUNTS + column
        self._words: list[Any] | memoryview[int]
        self._numbers: list[Any] | memoryview[float]
        if buffer is None:  # nobody else looks at it
            self._words = self._numbers = [0] * (ROWS * self._width)
        else:
            cells = memoryview(buffer)
            self._words, self._numbers = cells.cast("q"), cells.cast("d")
        self.lock: AbstractContextManager[object] = Lock() if lock is None else lock
        self._rows: dict[str, tuple[int, int]] = {}  # row and hash of tenants seen lately
        self.wipe(column)

    def wipe(self, column: int) -> None:
        """Forget what the process of this column had open."""
        with self.lock:
            for row in range(ROWS):
                self._words[row * self._width + _COUNTS + column] = 0

    def open_requests(self, row: int) -> int:
        """Of all processes."""
        at = row * self._width
        if self._width == _COUNTS + 1:
            return self._words[at + _COUNTS]
        return sum(self._words[at + _COUNTS : at + self._width])

    def count(self, row: int, change: int) -> None:
        """Change this process's count."""
        self._words[row * self._width + self._column] += change

    def deficit(self, row: int, tokens: int, per_minute: int, now: float) -> float:
        """Seconds until the bucket holds so many tokens; 0 when it does. More than it can hold counts as all of it."""
        at = row * self._width
        passed = max(0.0, now - self._numbers[at + _STAMP])
        level = min(per_minute, self._numbers[at + _LEVEL] + passed * per_minute / 60)
        self._numbers[at + _LEVEL], self._numbers[at + _STAMP] = level, now
        return max(0.0, (min(tokens, per_minute) - level) * 60 / per_minute)

    def spend(self, row: int, tokens: float) -> None:
        """Take tokens out of the bucket, or put them back; it may go below zero and is filled up from there."""
        self._numbers[row * self._width + _LEVEL] -= tokens

    def row(self, tenant: str, per_minute: int | None) -> int:
        """The tenant's row, a full bucket at first sight."""
        row, name = self._rows.get(tenant, (0, 0))
        if name and self._words[row * self._width + _TENANT] == name:
            return row
        name = xxhash.xxh3_64_intdigest(tenant.encode()) >> 1 or 1
        found = self._find(name)
        at = found * self._width
        if self._words[at + _TENANT] != name and found != ROWS - 1:
            self._words[at + _TENANT] = name
            self._numbers[at + _LEVEL] = float(per_minute or 0)
            self._numbers[at + _STAMP] = 0.0
        if len(self._rows) >= ROWS:
            self._rows.clear()
        self._rows[tenant] = found, name
        return found

    def _find(self, name: int) -> int:
        """Where the tenant is, else a free row near the place that its name leads to, else the shared last one."""
        for step in range(64):
            row = 1 + (name + step) % (ROWS - 2)
            if self._words[row * self._width + _TENANT] in (0, name):
                return row
        return ROWS - 1


def size_of(columns: int) -> int:
    """Bytes of a ledger for so many processes."""
    return ROWS * (_COUNTS + columns) * _CELL


def shared_ledger(path: Path, column: int, columns: int) -> Ledger:
    """The ledger of so many processes in a file that only they share, for the one that owns this column."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(descriptor, size_of(columns))
    return Ledger(mmap.mmap(descriptor, size_of(columns)), column, columns, FileLock(descriptor))


@dataclass
class FileLock(AbstractContextManager[object]):
    """A POSIX lock on an open file: between processes, not between threads."""

    descriptor: int

    def __enter__(self) -> FileLock:
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN)
