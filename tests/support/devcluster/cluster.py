"""Starts a development cluster with this project's images, and stops it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import yaml
from support.baton_processes import free_port
from support.devcluster import cgroups, debian, image_store, pki
from support.devcluster.holder import tidy
from support.devcluster.image_build import Builder
from support.devcluster.layout import Layout
from support.kube import binaries

ROOT = Path(__file__).parents[3]
# Stages of the Dockerfile, by the names that the chart gives their images when nothing else is said.
IMAGES = {"baton-operator": "operator", "baton-gateway": "gateway", "baton-worker": "worker-cpu"}
_NO_REGISTRY = f"{'.'.join(('docker', 'io'))}/library"  # what a name without a registry means
_PATIENCE = 120.0


def build_images() -> Path:
    """The folder that nodes take their images from; minutes the first time, then as long as what has changed takes."""
    runtime = debian.runtime()
    # The kind of torch that could be had for this environment can be had for the image.
    builder = Builder(ROOT, {"TORCH": "cpu" if version("torch").endswith("+cpu") else ""})
    tag = yaml.safe_load((ROOT / "charts/baton/Chart.yaml").read_text())["appVersion"]
    built = {f"{_NO_REGISTRY}/{name}:{tag}": builder.build(stage) for name, stage in IMAGES.items()}
    builder.prune()
    return image_store.fill(built, runtime, binaries.find(["pause"])[0]["pause"])


def start(state: Path, nodes: int = 1, owner: int | None = None) -> Layout:
    """A cluster that can be used; `owner` is a pipe's descriptor, see `holder`. Raises `RuntimeError`.

    What an earlier one left in `state` is removed first.
    """
    stop(state)
    programs, missing = binaries.find([*binaries.CONTROL_PLANE, *binaries.NODES])
    if missing:
        raise RuntimeError(f"missing: {', '.join(missing)}; run PYTHONPATH=tests python -m support.kube.binaries")
    shutil.rmtree(state, ignore_errors=True)  # logs of an earlier one
    with image_store.in_use() as used:
        layout = Layout(state.resolve(), nodes, free_port(), programs, debian.runtime().root, build_images())
        layout.save()
        for path in (layout.log("x"), layout.held("x")):
            path.parent.mkdir(parents=True, exist_ok=True)
        pki.write(layout)
        _hold(layout, used, owner)
    end = time.monotonic() + _PATIENCE
    while not layout.ready.exists():
        if layout.failed.exists() or time.monotonic() > end:
            reason = layout.failed.read_text() if layout.failed.exists() else f"not ready within {_PATIENCE} s"
            stop(state)
            raise RuntimeError(reason)
        time.sleep(0.05)
    return layout


def _hold(layout: Layout, used: int, owner: int | None) -> None:
    """The holder inherits `used` and keeps it open as long as it lives."""
    command = [sys.executable, "-m", "support.devcluster.holder", str(layout.state)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
    with layout.log("holder").open("ab") as log:
        process = subprocess.Popen(
            [*command, *([] if owner is None else [str(owner)])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=[used, *([] if owner is None else [owner])],
            start_new_session=True,
        )
    layout.holder.write_text(str(process.pid))


def stop(state: Path) -> None:
    """Ends the cluster of this folder, if there is one, and removes what it or a crash left behind."""
    try:
        layout = Layout.load(state)
    except FileNotFoundError:
        return
    if layout.holder.exists() and _is_holder(pid := int(layout.holder.read_text())):
        os.kill(pid, signal.SIGTERM)
        while _is_holder(pid):
            time.sleep(0.05)
    if layout.state.exists():
        tidy(layout)


def leftovers(layout: Layout) -> list[str]:
    """What of a stopped cluster is still there; nothing, one hopes."""
    return [*leftovers_in(layout.state), *(f"cgroup {path}" for path in cgroups.left(layout.cgroup))]


def leftovers_in(folder: Path) -> list[str]:
    """Mounts and processes of clusters whose folders are below this one."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = [f"mount {place}" for place in mounts if place.startswith(str(folder))]
    return found + [f"process {pid}" for pid in _processes(str(folder))]


def _processes(folder: str) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_text(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if folder in words:
                found.append(int(entry.name))
    return found


def _is_holder(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "support.devcluster.holder" in words and stat.rpartition(")")[2].split()[0] != "Z"
