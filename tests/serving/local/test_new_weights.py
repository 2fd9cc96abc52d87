"""New weights under load with real workers, as the benchmark does it, and the faults that it must find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "rollout_run.py"


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("strategy", "plant", "found"),
    [
        ("InPlace", "", []),
        ("Surge", "", []),
        ("Surge", "pairing", ["pairs"]),  # what workers refuse in their handshake, so that nothing of it is answered
        ("Surge", "handshake", ["pairs", "mixed"]),
    ],
)
def test_it_is_seamless_and_would_be_found_out_otherwise(strategy: str, plant: str, found: list[str]) -> None:
    words = ["--strategy", strategy, "--streams", "8", "--seconds", "5", "--prompts", "40"]
    words += ["--plant", plant] if plant else []
    done = subprocess.run([sys.executable, str(BENCHMARK), *words], capture_output=True, text=True, check=False)
    kinds = [kind for kind in ("failed", "mixed", "cache", "pairs", "without") if f"\n{kind}: " in done.stdout]
    assert (done.returncode, sorted(kinds)) == (1 if plant else 0, sorted(found)), done.stdout + done.stderr
