"""Noticing that mounted files were replaced."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

Stamp = tuple[tuple[int, int, int], ...]

LOOK_EVERY = 1.0  # seconds between two looks at files that are reloaded


def stamp(paths: Iterable[Path]) -> Stamp:
    """What changes when any of the files is written or replaced; a missing one counts too.

    Links are followed: a mounted Secret is renewed by changing where one points to.
    """
    return tuple(map(_one, paths))


def _one(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_size
