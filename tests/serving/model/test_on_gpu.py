from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.gpu_ranks import run_gpu_ranks
from support.tiny_models import write_tiny_checkpoint
from support.tp_ranks import run_model

from baton_serving.config import config_from_values
from baton_serving.model.parallel import ParallelState
from baton_serving.runtime.engine import Completion, Engine

GPUS = torch.cuda.device_count()
BATON_TINY = Path(__file__).parents[3] / "examples/models/baton-tiny"
PROMPTS = [[7, 3, 99, 20 + n, 5] * (3 + 9 * n) for n in range(5)]


def error_of(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_two_gpus_compute_what_the_cpu_does(kind: str, tmp_path: Path) -> None:
    """In float32 sums go through NCCL, in bfloat16 through the norm's own kernel, but for Gemma's sandwich norms."""
    path = write_tiny_checkpoint(kind, tmp_path / kind, seed=11, dtype=torch.bfloat16)
    exact = run_model(path, ParallelState(), dtype="float32").logits
    one = run_model(path, ParallelState(), device=torch.device("cuda"), dtype="bfloat16", page_size=64).logits
    ranks = run_gpu_ranks(2, path, ["float32", "bfloat16"], tmp_path)
    assert error_of(ranks[0][0].logits, exact) < 1e-4
    assert error_of(ranks[0][1].logits, exact) < 1.5 * error_of(one, exact)
    for first, second in zip(ranks[0], ranks[1], strict=True):
        assert torch.equal(first.logits, second.logits)


def tokens_of(answers: Completion | list[Completion]) -> list[list[int]]:
    return [answer.token_ids for answer in answers] if isinstance(answers, list) else [answers.token_ids]


def generate(**flags: object) -> list[list[int]]:
    shared: dict[str, object] = {"model_path": str(BATON_TINY), "dtype": "float32", "max_running_requests": 8}
    shared |= {"max_total_tokens": 8192, "context_length": 1024, "random_seed": 1}
    with Engine(config_from_values({**shared, **flags})) as engine:
        params = {"temperature": 0.0, "max_new_tokens": 24, "ignore_eos": True}
        return tokens_of(engine.generate(PROMPTS, params))


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")
def test_graphed_eager_split_and_cpu_engines_generate_the_same_tokens() -> None:
    expected = generate(device="cpu")
    assert generate(device="cuda") == expected
    assert generate(device="cuda", disable_cuda_graph=True) == expected
    if GPUS > 1:
        assert generate(device="cuda", tp_size=2) == expected
