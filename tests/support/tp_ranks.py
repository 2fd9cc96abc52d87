"""Runs a tiny model on several ranks in processes of their own, for tests of tensor parallelism."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from support.paged_runner import PagedRunner

from baton_serving.errors import ConfigError
from baton_serving.model.loading import load_model
from baton_serving.model.options import ModelOptions
from baton_serving.model.parallel import ParallelState, init_parallel

CPU = torch.device("cpu")
PROMPT = [17, 4, 250, 99, 3, 8, 8, 201, 64, 33, 120, 5, 77]


@dataclass(frozen=True)
class RankReport:
    """What one rank got from one checkpoint: the logits of PROMPT and the digest, or the error."""

    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    digest: str = ""
    error: str = ""


def run_model(
    path: Path,
    state: ParallelState,
    load_format: str = "auto",
    device: torch.device = CPU,
    dtype: str = "auto",
    page_size: int = 4,
) -> RankReport:
    """Load the model and run PROMPT: a chunk, then token by token."""
    options = ModelOptions(path, device, dtype, parallel=state, page_size=page_size, load_format=load_format, seed=3)
    try:
        loaded = load_model(options)
    except ConfigError as error:
        return RankReport(error=error.message)
    runner = PagedRunner(loaded, pages=100, tp_size=state.tp_size, device=device)
    parts = [runner.step({"r": PROMPT[:7]})["r"], *(runner.step({"r": [token]})["r"] for token in PROMPT[7:])]
    return RankReport(torch.cat(parts).cpu(), loaded.digest)


def _rank_main(rank: int, tp_size: int, checkpoints: list[tuple[Path, str]], work: Path) -> None:
    torch.set_num_threads(1)
    state = init_parallel(rank, tp_size, f"file://{work / 'rendezvous'}", torch.device("cpu"), timeout=60)
    reports = [run_model(path, state, load_format) for path, load_format in checkpoints]
    state.close()
    torch.save([vars(report) for report in reports], work / f"rank{rank}.pt")


def run_ranks(tp_size: int, checkpoints: list[tuple[Path, str]], work: Path) -> list[list[RankReport]]:
    """Run every (checkpoint, load format) on `tp_size` ranks over gloo; `[rank][checkpoint]`."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank_main, args=(rank, tp_size, checkpoints, work)) for rank in range(tp_size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * tp_size
    return [[RankReport(**fields) for fields in torch.load(work / f"rank{rank}.pt")] for rank in range(tp_size)]
