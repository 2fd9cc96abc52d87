"""The control groups that a cluster's pods are in, on machines with cgroup v1 or v2."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


def create(name: str) -> None:
    """In every hierarchy, where `name` may be a path."""
    if (_ROOT / "cgroup.controllers").exists():
        folder = _ROOT
        for part in Path(name).parts:
            for controller in _CONTROLLERS:
                with contextlib.suppress(OSError):
                    (folder / "cgroup.subtree_control").write_text(f"+{controller}")
            folder = folder / part
            folder.mkdir(exist_ok=True)
        return
    for hierarchy in _hierarchies():
        if hierarchy.name == "unified":  # without controllers; runc makes groups there when it wants them
            continue
        folder = hierarchy
        for part in Path(name).parts:
            folder = folder / part
            folder.mkdir(exist_ok=True)
            for setting in ("cpuset.mems", "cpuset.cpus"):
                if (folder / setting).exists():
                    (folder / setting).write_text((folder.parent / setting).read_text())


def remove(name: str) -> None:
    """Once nothing runs in them; the kernel may need a moment until it has noticed."""
    for hierarchy in _hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            _remove(Path(folder))


def left(name: str) -> list[Path]:
    return [hierarchy / name for hierarchy in _hierarchies() if (hierarchy / name).exists()]


def all_of_clusters() -> list[Path]:
    """Those of every cluster, whoever started it."""
    return [path for hierarchy in _hierarchies() for path in hierarchy.glob("baton-*")]


def _hierarchies() -> Iterator[Path]:
    if (_ROOT / "cgroup.controllers").exists():
        yield _ROOT
        return
    yield from (path for path in _ROOT.iterdir() if path.is_dir() and not path.is_symlink())


def _remove(folder: Path) -> None:
    for _ in range(50):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    folder.rmdir()
