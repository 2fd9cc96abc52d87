from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECK = Path(__file__).parents[2] / "benchmarks/gpu/check.py"


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("part", ["small", "rope", "linear", "argmax", "eight_bit", "invariance", "pools", "models"])
def test_kernels_and_models_are_as_exact_as_they_must_be(part: str) -> None:
    done = subprocess.run([sys.executable, str(CHECK), "--only", part], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
