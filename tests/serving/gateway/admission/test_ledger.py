from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

from baton_serving.gateway.admission.ledger import TOTAL, Ledger, shared_ledger


def enter_many(path: Path, column: int, columns: int, times: int, most: int, report: int) -> None:
    """Let requests in while there is room, and say how many."""
    ledger = shared_ledger(path, column, columns)
    taken = 0
    for _ in range(times):
        with ledger.lock:
            if ledger.open_requests(TOTAL) < most:
                ledger.count(TOTAL, 1)
                taken += 1
    os.write(report, bytes([taken]))
    os._exit(0)  # as if killed: nothing is given back


def test_processes_share_one_limit_exactly_and_a_dead_ones_counts_are_wiped(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    reader, writer = os.pipe()
    start = multiprocessing.get_context("fork").Process
    processes = [start(target=enter_many, args=(path, n, 3, 200, 100, writer)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    taken = list(os.read(reader, 2))
    assert sum(taken) == 100
    mine = shared_ledger(path, 2, 3)
    assert mine.open_requests(TOTAL) == 100
    mine.wipe(0)
    assert mine.open_requests(TOTAL) == taken[1] or mine.open_requests(TOTAL) == taken[0]
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
