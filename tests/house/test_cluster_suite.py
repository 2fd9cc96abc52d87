"""What `.ci/run` does about a cluster: says what a machine lacks, keeps to its limit, and outlives nothing."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import cluster_suite

ROOT = Path(__file__).parents[2]


def test_a_machine_that_lacks_what_it_takes_is_told_so_and_passes(tmp_path: Path) -> None:
    environment = {"PATH": "", "PYTHONPATH": str(ROOT / "tests"), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "support.cluster_suite", "5000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "skipped the tests on a cluster. This machine lacks" in done.stdout
    assert "  - the program openssl" in done.stdout
    assert "Go, to build kube-apiserver" in done.stdout
    assert "there is none; or set KUBE_BIN_DIR" in done.stdout


@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)"])
def test_a_step_that_ends_gives_its_status(ending: str) -> None:
    command = [sys.executable, "-c", f"import sys; {ending}"]
    assert cluster_suite._run(command, time.monotonic() + 60, signal.SIGINT) == (3 if "3" in ending else 0)


def test_a_step_that_does_not_end_in_time_may_tidy_up(tmp_path: Path) -> None:
    """It is asked first, so that it can stop what it started."""
    tidied = tmp_path / "tidied"
    script = f"trap 'touch {tidied}; exit' TERM; while :; do sleep 0.1; done"
    assert cluster_suite._run(["sh", "-c", script], time.monotonic() + 2, signal.SIGTERM) is None
    assert tidied.exists()


def test_a_step_ends_with_who_began_it(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    inner = f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(600)"
    script = f"""
import signal, sys, time
from support.cluster_suite import _run
_run([sys.executable, "-c", {inner!r}], time.monotonic() + 600, signal.SIGINT)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as outer:
        while not (told.exists() and told.read_text()):
            time.sleep(0.02)
        ended = os.pidfd_open(int(told.read_text()))
        outer.kill()
    assert select.select([ended], [], [], 30.0)[0] == [ended]
    os.close(ended)
