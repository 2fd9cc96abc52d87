"""What is generated from something else is fresh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", ["docs.py", "protos.py"])
def test_generated_files_are_fresh(script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"scripts/{script}", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_make_target_in_the_list_exists_once() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    names = [line.split()[1] for line in listed.splitlines()]
    assert {"demo", "test", "test-deep", "test-gpu", "lint", "format", "docs", "protos", "clean"} <= set(names)
    makefile = (ROOT / "Makefile").read_text()
    for name in names:
        assert makefile.count(f".PHONY: {name}\n") == 1


def test_continuous_integration_runs_make_test() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
