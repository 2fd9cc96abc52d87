"""Runs the tests that need a cluster on this machine, if it can have one, within a limit of time.

    python -m support.cluster_suite SECONDS [PYTEST ARGUMENTS]

What is built is kept outside the clone, so only the first run on a machine has to wait for it. The run fails when a
test does, when an image cannot be built, when the limit ends it, or when something is left behind; a machine that
cannot have a cluster, or not in this time, is told what it lacks, and passes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from support.baton_processes import bound_to_parent
from support.devcluster import cgroups, needs
from support.devcluster.cluster import leftovers_in

SUITE_SECONDS = 1800.0  # of the limit: less is not begun with
_GRACE = 60.0  # seconds for fixtures to end what they began
_GONE_WITHIN = 30.0


def main(limit: float, arguments: Sequence[str]) -> int:
    """The exit status."""
    end = time.monotonic() + limit
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it, and so would pytest
    if lacking := needs.lacking():
        _say("skipped the tests on a cluster. This machine lacks", *lacking)
        return 0
    _say("building what a cluster needs")
    status = _run([sys.executable, "-m", "support.devcluster", "build"], end - SUITE_SECONDS, signal.SIGTERM)
    if status is None:
        _say(
            f"skipped the tests on a cluster: {limit - SUITE_SECONDS:.0f} s were too little to build what they need",
            "what was built is kept for the next run",
        )
        return 0
    if status:
        _say(f"FAILED: no programs or images for a cluster, see above (exit status {status})")
        return 1
    return _suite(end, arguments)


def _suite(end: float, arguments: Sequence[str]) -> int:
    _say(f"tests on a cluster, for at most {end - time.monotonic():.0f} s")
    before = set(cgroups.all_of_clusters())
    with tempfile.TemporaryDirectory(prefix="baton-suite-") as folder:
        pytest = [sys.executable, "-m", "pytest", "--basetemp", f"{folder}/tests", *arguments]
        status = _run(pytest, end - _GRACE - _GONE_WITHIN, signal.SIGINT)
        left = _left(Path(folder), before)
    if status is None:
        _say("FAILED: the tests on a cluster did not end in time")
    elif status:
        _say(f"FAILED: tests on a cluster (exit status {status})")
    if left:
        _say("FAILED: left behind", *left)
    return 1 if status or status is None or left else 0


def _run(command: list[str], end: float, ask: signal.Signals) -> int | None:
    """The command's exit status; None when it had to be ended. It never outlives this process."""
    process = subprocess.Popen(bound_to_parent(command))
    for limit, number in ((end - time.monotonic(), ask), (_GRACE, signal.SIGKILL)):
        try:
            status = process.wait(max(0.0, limit))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        else:
            return status if number is ask else None
    process.wait()
    return None


def _left(folder: Path, before: set[Path]) -> list[str]:
    """What is still there of clusters that were started below `folder`, once they have had time to go."""
    end = time.monotonic() + _GONE_WITHIN
    while True:
        groups = [f"control group {path}" for path in cgroups.all_of_clusters() if path not in before]
        left = [*leftovers_in(folder), *groups]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.2)


def _say(line: str, *more: str) -> None:
    print(f"\ncluster: {line}", *(f"  - {one}" for one in more), sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
