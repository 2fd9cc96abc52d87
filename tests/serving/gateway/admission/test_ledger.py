from __future__ import annotations

import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path

from baton_serving.gateway.admission.ledger import TOTAL, Ledger, shared_ledger


def enter_and_leave(path: Path, column: int, start: Barrier, crowded: int) -> None:
    """Go in and out where only one may be, giving the processor away between looking and going."""
    ledger = shared_ledger(path, column, 3)
    start.wait()
    together = 0
    for _ in range(3000):
        with ledger.lock:
            inside = ledger.open_requests(TOTAL) < 1
            os.sched_yield()
            ledger.count(TOTAL, int(inside))
        if inside:
            os.sched_yield()
            together += ledger.open_requests(TOTAL) > 1
            with ledger.lock:
                ledger.count(TOTAL, -1)
    start.wait()
    ledger.count(TOTAL, 1)
    os.write(crowded, bytes([min(255, together)]))
    os._exit(0)  # as if killed: nothing is given back


def test_processes_share_one_limit_exactly_and_a_dead_ones_counts_are_wiped(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    reader, writer = os.pipe()
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(2)
    processes = [fork.Process(target=enter_and_leave, args=(path, n, start, writer)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert list(os.read(reader, 2)) == [0, 0]
    mine = shared_ledger(path, 2, 3)
    assert mine.open_requests(TOTAL) == 2
    mine.wipe(0)
    assert mine.open_requests(TOTAL) == 1
    shared_ledger(path, 1, 3)  # a process that starts anew
    assert mine.open_requests(TOTAL) == 0
    for end in (reader, writer):
        os.close(end)


def test_more_tenants_than_rows_share_the_last_one() -> None:
    ledger = Ledger()
    rows = {ledger.row(f"tenant-{n}", 100) for n in range(6000)}
    assert len(rows) <= 4095
    assert TOTAL not in rows
    assert ledger.row("tenant-7", 100) == ledger.row("tenant-7", 100)
