"""No file names a machine, and none reaches for a registry by host name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_OURS = {".git", "dist", "build", "node_modules", "__pycache__", "bin"}
HIDDEN_BUT_OURS = {".ci", ".github"}
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|home|Users)/\w|/root/[\w.]")
REGISTRY_HOST = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|pytorch\.org|docker\.io|ghcr\.io|quay\.io|gcr\.io|nvcr\.io|registry\.k8s\.io)\b"
)
THIS_FILE = Path(__file__)


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the repository that people wrote."""
    for folder, children, names in os.walk(ROOT):
        children[:] = [name for name in children if name in HIDDEN_BUT_OURS or not name.startswith(".")]
        children[:] = [name for name in children if name not in NOT_OURS]
        for path in (Path(folder, name) for name in names):
            if path == THIS_FILE or path.is_symlink() or path.name in NOT_OURS:
                continue
            content = path.read_bytes()
            if b"\0" not in content[:4096]:
                yield path, content.decode("utf-8", "replace")


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY_HOST], ids=["machine path", "registry host"])
def test_no_file_names_a_place_outside(pattern: re.Pattern[str]) -> None:
    found = [f"{path.relative_to(ROOT)}: {match[0]}" for path, text in texts() for match in pattern.finditer(text)]
    assert found == []


@pytest.mark.parametrize("text", ["see /work/x", "/home/me", "in /root/.cache", '"/Users/me'])
def test_machine_paths_are_recognised(text: str) -> None:
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["examples/work/x", "https://example.com/home/page", "/homes/x", "a/root.py"])
def test_other_paths_are_not(text: str) -> None:
    assert not MACHINE_PATH.search(text)
