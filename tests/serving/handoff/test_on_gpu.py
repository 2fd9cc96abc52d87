from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parents[3] / "benchmarks/handoff_bandwidth.py"


@pytest.mark.gpu
@pytest.mark.timeout(120)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("receiver_tp", [1, 2])
@pytest.mark.parametrize("backend", ["mooncake", "nixl"])
def test_pages_arrive_in_another_gpu_as_they_were(backend: str, receiver_tp: int) -> None:
    """The benchmark compares the hashes of all pages at both ends and fails when one differs."""
    command = [sys.executable, str(BENCHMARK), "--device", "cuda", "--protocol", "nvlink_intra", "--rounds", "2"]
    command += ["--page-size", "64", "--pages", "32", "--pool-pages", "64", "--backends", backend]
    done = subprocess.run(
        [*command, "--receiver-tp", str(receiver_tp)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"handoff over {backend}" in done.stdout
