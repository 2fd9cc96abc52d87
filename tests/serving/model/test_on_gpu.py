from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.gpu_ranks import run_gpu_ranks
from support.paged_runner import PagedRunner
from support.tiny_models import write_tiny_checkpoint
from support.tp_ranks import run_model

from baton_serving.config import config_from_values
from baton_serving.model.loading import load_model
from baton_serving.model.options import ModelOptions
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


WIDE = {"head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096}
LONG = [(7 * n * n + 3 * n) % 241 + 3 for n in range(1400)]
EIGHT_BIT = {"kv_cache_dtype": "fp8_e4m3", "quantization": "fp8"}


def deterministic_logits(path: Path, cuts: Sequence[int], beside: int, **options: object) -> torch.Tensor:
    """Logits of LONG's last 60 tokens, cut as told, with `beside` other rows in every step."""
    gpu = torch.device("cuda")
    loaded = load_model(ModelOptions(path, gpu, "bfloat16", page_size=64, deterministic=True, **options))  # type: ignore[arg-type]
    runner = PagedRunner(loaded, pages=400, device=gpu, backends=("triton", "triton_extend"))
    parts = []
    for begin, end in pairwise(cuts):
        others = {f"o{n}": [5 + n] * (1 + 37 * n % 90) for n in range(beside)}
        parts.append(runner.step({**others, "r": LONG[begin:end]})["r"])
    return torch.cat(parts)[-60:]


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, EIGHT_BIT], ids=["bfloat16", "fp8"])
@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_deterministic_logits_are_the_same_to_the_bit(kind: str, options: dict[str, object], tmp_path: Path) -> None:
    """However a prompt is cut, from prefill down to single tokens, and whatever is computed beside it."""
    path = write_tiny_checkpoint(kind, tmp_path / kind, seed=4, overrides=WIDE, dtype=torch.bfloat16)
    whole = deterministic_logits(path, (0, 1400), 0, **options)
    assert bool(torch.isfinite(whole).all())
    assert torch.equal(deterministic_logits(path, (0, 512, 1024, 1339, 1400), 0, **options), whole)
    assert torch.equal(deterministic_logits(path, (0, 1340, *range(1341, 1401)), 0, **options), whole)
    assert torch.equal(deterministic_logits(path, (0, 700, 1370, 1400), 9, **options), whole)


def sampled(prompts: list[list[int]], **flags: object) -> list[list[int]]:
    """Answers in bfloat16 at temperature 1 with a seed for each prompt, one after the other, then together."""
    shared: dict[str, object] = {"model_path": str(BATON_TINY), "dtype": "bfloat16", "max_running_requests": 16}
    shared |= {"max_total_tokens": 16384, "context_length": 2048, "device": "cuda"}
    shared["enable_deterministic_inference"] = True
    params = {"temperature": 1.0, "seed": 5, "max_new_tokens": 48, "ignore_eos": True}
    with Engine(config_from_values({**shared, **flags})) as engine:
        alone = [token for prompt in prompts for token in tokens_of(engine.generate([prompt], params))]
        assert tokens_of(engine.generate(prompts, params)) == alone, "in a batch, prompts from the cache"
        engine.flush_cache()
        assert tokens_of(engine.generate(prompts, params)) == alone, "in a batch, nothing cached"
    return alone


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")
def test_deterministic_answers_repeat_in_any_company() -> None:
    prompts = [[7, 3, 99, 20 + n, 5] * (3 + 20 * n) for n in range(12)]
    expected = sampled(prompts)
    assert sampled(prompts, chunked_prefill_size=64) == expected
    assert sampled(prompts, disable_cuda_graph=True, max_total_tokens=4096) == expected
    if GPUS > 1:
        assert len(sampled(prompts, tp_size=2)) == len(expected)


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_8_bit_weights_cost_no_more_than_their_rounding(kind: str, tmp_path: Path) -> None:
    path = write_tiny_checkpoint(kind, tmp_path / kind, seed=11, overrides=WIDE, dtype=torch.bfloat16)
    cpu = load_model(ModelOptions(path, dtype="float32", quantization="fp8"))
    plain = load_model(ModelOptions(path, dtype="float32"))
    gpu = load_model(ModelOptions(path, torch.device("cuda"), "bfloat16", quantization="fp8", page_size=64))
    tokens, found = LONG[:200], []
    for loaded, device in ((plain, "cpu"), (cpu, "cpu"), (gpu, "cuda")):
        runner = PagedRunner(loaded, device=torch.device(device))
        edges = (0, 150, 190, *range(191, 201))
        found.append(torch.cat([runner.step({"r": tokens[a:b]})["r"].float().cpu() for a, b in pairwise(edges)]))
    exact, reference, ours = found
    assert error_of(ours, exact) < 1.5 * error_of(reference, exact)
