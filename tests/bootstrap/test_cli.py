"""`baton bootstrap` as a process: announcement, exit codes, signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

MAIN = """
import argparse, sys
from baton_bootstrap.cli import add_arguments, run
parser = argparse.ArgumentParser()
add_arguments(parser)
sys.exit(run(parser.parse_args()))
"""


def start(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_it_announces_its_ports_and_ends_on_sigterm(tmp_path: Path) -> None:
    announced = tmp_path / "bootstrap.json"
    process = start("--port", "0", "--http-port", "0", "--announce-file", str(announced))
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        facts = json.loads(line)
        assert facts == json.loads(announced.read_text())
        assert facts["service"] == "bootstrap"
        assert facts["pid"] == process.pid
        with urllib.request.urlopen(f"{facts['http']}/health") as response:
            assert json.load(response)["workers"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.communicate()


def test_bad_options_exit_with_2_and_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "token"
    empty.write_text("\n")
    for args in (
        ["--lease", "0"],
        ["--token-file", str(tmp_path / "missing")],
        ["--token-file", str(empty)],
        ["--port", "0", "--http-port", "0", "--http-token-file", str(empty)],
        ["--host", "203.0.113.1", "--port", "0", "--http-port", "0"],
    ):
        process = start(*args)
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 2, stderr
        assert len(stderr.strip().splitlines()) == 1
