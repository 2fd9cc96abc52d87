"""Runs tiny models on several GPUs, a process each, for tests of tensor parallelism over NCCL and NVLink."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
from support.tp_ranks import RankReport, run_model

from baton_serving.model.parallel import init_parallel


def _rank_main(rank: int, tp_size: int, path: Path, dtypes: list[str], work: Path) -> None:
    device = torch.device("cuda", rank)
    state = init_parallel(rank, tp_size, f"file://{work / 'rendezvous'}", device, timeout=60)
    reports = [run_model(path, state, device=device, dtype=dtype, page_size=64) for dtype in dtypes]
    torch.save([vars(report) for report in reports], work / f"rank{rank}.pt")
    state.close()


def run_gpu_ranks(tp_size: int, path: Path, dtypes: list[str], work: Path) -> list[list[RankReport]]:
    """Run the checkpoint in every dtype on `tp_size` GPUs; `[rank][dtype]`."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank_main, args=(rank, tp_size, path, dtypes, work)) for rank in range(tp_size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
        process.kill()
    assert [process.exitcode for process in ranks] == [0] * tp_size
    return [[RankReport(**fields) for fields in torch.load(work / f"rank{rank}.pt")] for rank in range(tp_size)]
