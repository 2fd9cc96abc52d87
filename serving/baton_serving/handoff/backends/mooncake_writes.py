"""How a post becomes transfers of Mooncake's, and how their end is seen: block by block, or a batch at a time.

`transfer_check_status` looks at the first block of a batch only, so a batch would be called done while its other blocks
are on their way. `BlockWrites` therefore submits every block as a transfer of its own; `BatchWrites` waits in the
library's blocking call, which looks at all.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from baton_serving.handoff.backends.base import BackendError, MemoryRegion, Outcome
from baton_serving.handoff.plan import Runs

if TYPE_CHECKING:
    from mooncake.engine import TransferEngine

RUNNING, DONE, TIMED_OUT = 0, 1, -2
NO_TICKET = (0, -1, 2**64 - 1)
_THREADS = 3


class Writes(Protocol):
    """`post` and `poll` as in `TransferBackend`. `close` waits for what the library holds."""

    def post(self, peer: str, runs: Runs) -> int: ...

    def poll(self, ticket: int) -> Outcome: ...

    def close(self) -> None: ...


class BlockWrites:
    """Every block by itself, without waiting: for transports that take many at a time."""

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self._blocks: dict[int, list[int]] = {}
        self._failed: set[int] = set()
        self._next = 1

    def post(self, peer: str, runs: Runs) -> int:
        blocks: list[int] = []
        failed = False
        for src, dst, nbytes in zip(runs.src.tolist(), runs.dst.tolist(), runs.nbytes.tolist(), strict=True):
            block = self._engine.transfer_submit_write(peer, src, dst, nbytes)
            if block in NO_TICKET:
                failed = True
                break
            blocks.append(block)
        if failed and not blocks:
            raise BackendError(f"mooncake cannot reach {peer}")
        ticket = self._next
        self._next += 1
        self._blocks[ticket] = blocks
        if failed:
            self._failed.add(ticket)
        return ticket

    def poll(self, ticket: int) -> Outcome:
        """Blocks end in about the order they were posted, so looking stops at the first that runs."""
        blocks = self._blocks[ticket]
        ended = 0
        for block in blocks:
            status = self._engine.transfer_check_status(block)
            if status in (RUNNING, TIMED_OUT):  # past the library's timeout a block is still under way
                break
            if status != DONE:
                self._failed.add(ticket)
            ended += 1
        del blocks[:ended]
        if blocks:
            return Outcome.PENDING
        del self._blocks[ticket]
        if ticket in self._failed:
            self._failed.discard(ticket)
            return Outcome.BROKEN
        return Outcome.DONE

    def close(self) -> None:
        self._blocks.clear()


class BatchWrites:
    """A post is one batch, which a thread waits for inside the library and outside the interpreter lock.

    Over NVLink the library copies a batch by one call to the driver, which wastes less of the link than one for each
    block. It keeps a CUDA stream per thread, so with several the link works while the end of one batch is seen.
    """

    def __init__(self, engine: TransferEngine, region: MemoryRegion, write_timeout: float) -> None:
        self._engine = engine
        self._region = region
        self._timeout = write_timeout
        self._running: dict[int, Future[Outcome]] = {}
        self._next = 1
        self._threads = ThreadPoolExecutor(_THREADS, "mooncake-writes", self._prepare)

    def _prepare(self) -> None:
        """The library would open a context on the first GPU if the thread had none."""
        if self._region.cuda:
            import torch

            torch.cuda.set_device(self._region.device_id)

    def post(self, peer: str, runs: Runs) -> int:
        ticket = self._next
        self._next += 1
        columns = (runs.src.tolist(), runs.dst.tolist(), runs.nbytes.tolist())
        self._running[ticket] = self._threads.submit(self._write, peer, *columns)
        return ticket

    def _write(self, peer: str, src: list[int], dst: list[int], nbytes: list[int]) -> Outcome:
        began = time.monotonic()
        if self._engine.batch_transfer_sync_write(peer, src, dst, nbytes) == 0:
            return Outcome.DONE
        # Whoever stops waiting has stopped nothing: such a batch counts as under way until the engine is closed.
        return Outcome.BROKEN if time.monotonic() - began < self._timeout else Outcome.PENDING

    def poll(self, ticket: int) -> Outcome:
        future = self._running[ticket]
        if not future.done():
            return Outcome.PENDING
        outcome = future.result()
        if outcome is not Outcome.PENDING:
            del self._running[ticket]
        return outcome

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._running.clear()
