"""The development cluster itself: that it can be used soon, and that nothing of it stays, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.devcluster import cluster as devcluster
from support.devcluster.layout import Layout
from support.kube.client import eventually

RUN = """
import os, sys
from pathlib import Path
from support.devcluster import cluster
read, write = os.pipe()
cluster.start(Path(sys.argv[1]), owner=read)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def state(tmp_path: Path, theirs: bool) -> Iterator[Path]:
    if theirs:
        pytest.skip("another one's cluster")
    devcluster.build_images()  # not on the test's clock
    yield tmp_path / "cluster"
    devcluster.stop(tmp_path / "cluster")


def test_stopping_it_leaves_nothing(state: Path) -> None:
    settings = kernel_settings()
    read, write = os.pipe()
    layout = devcluster.start(state, owner=read)
    assert devcluster.leftovers(layout) != []
    devcluster.stop(state)
    assert devcluster.leftovers(layout) == []
    assert interfaces() & {"baton0", "node-1"} == set()
    assert kernel_settings() == settings
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("victim", ["owner", "holder", "machine"])
def test_a_crash_leaves_nothing(state: Path, victim: str) -> None:
    """Of the run that started it, or of a process of its own. What a killed holder cannot do the next start does."""
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    layout = Layout.load(state)
    victims = {"owner": run.pid, "holder": int(layout.holder.read_text()), "machine": int(layout.machine.read_text())}
    os.kill(victims[victim], signal.SIGKILL)
    run.kill()
    run.wait()
    if victim == "holder":
        eventually(lambda: not any(one.startswith("process") for one in devcluster.leftovers(layout)), 20.0)
        devcluster.stop(state)
    eventually(lambda: devcluster.leftovers(layout) == [], 20.0, lambda: devcluster.leftovers(layout))
    assert interfaces() & {"baton0", "node-1"} == set()


def interfaces() -> set[str]:
    printed = subprocess.run(["ip", "-json", "link"], check=True, capture_output=True, text=True).stdout
    return {link["ifname"] for link in json.loads(printed)}


def kernel_settings() -> list[str]:
    """What a kubelet would write for the whole machine."""
    return [
        Path("/proc/sys", name).read_text() for name in ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
    ]
