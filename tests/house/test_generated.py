"""What is generated from something else is fresh."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", ["docs.py", "crds.py", "dashboard.py", "protos.py"])
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
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    names = [line.split()[1] for line in listed.splitlines()]
    assert {
        "demo",
        "test",
        "test-cluster",
        "test-deep",
        "test-gpu",
        "lint",
        "format",
        "docs",
        "protos",
        "clean",
    } <= set(names)
    makefile = (ROOT / "Makefile").read_text()
    for name in names:
        assert makefile.count(f".PHONY: {name}\n") == 1


def test_continuous_integration_runs_make_test() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


def test_the_generated_code_runs_on_the_least_version_we_ask_for() -> None:
    """grpc refuses code made by a newer version of itself, so the lower bound follows what made the code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for code in [path for room in ("bootstrap", "serving") for path in (ROOT / room).rglob("*_pb2_grpc.py")]:
        made_by = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", code.read_text())
        assert made_by is not None
        assert f"grpcio>={made_by[1]}" in project["dependencies"], code
