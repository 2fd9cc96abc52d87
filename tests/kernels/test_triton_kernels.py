from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_triton_kernels_compute_what_their_references_do() -> None:
    # Older interpreters turn arrays of one element into numbers, which numpy 2.4 no longer does.
    pytest.importorskip("triton", minversion="3.7", reason="needs Triton 3.7 or later")
    # Triton decides on import whether to interpret, so this process may be too old for it.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("interpreted.py")),
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
