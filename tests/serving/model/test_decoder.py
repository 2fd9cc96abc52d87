"""The decoder on pages against transformers, for every architecture it covers, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paged_runner import PagedRunner
from support.tiny_models import DECODER_KINDS, VOCAB_SIZE, write_tiny_checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from baton_serving.kv.pool import KVPool
from baton_serving.model.attention import AttentionPlanner
from baton_serving.model.batch import ForwardBatch
from baton_serving.model.decoder import Decoder, Kernels
from baton_serving.model.loading import load_model
from baton_serving.model.options import LoadedModel, ModelOptions

TOLERANCE = 2e-4


@dataclass(frozen=True)
class Pair:
    """One checkpoint in both worlds."""

    path: Path
    loaded: LoadedModel
    hf: PreTrainedModel

    def expected(self, tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.hf(torch.tensor([tokens])).logits[0]
        return logits


def load_hf(path: Path) -> PreTrainedModel:
    factory: Any = AutoModelForCausalLM
    model: PreTrainedModel = factory.from_pretrained(path)
    return model


@pytest.fixture(scope="module", params=DECODER_KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = write_tiny_checkpoint(request.param, tmp_path_factory.mktemp("models") / request.param, seed=7)
    return Pair(path, load_model(ModelOptions(path, page_size=8)), load_hf(path))


def prompt(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()


def close(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=TOLERANCE)


def test_prefill_of_several_requests_at_once(pair: Pair) -> None:
    prompts = {"one": prompt(1, 0), "some": prompt(37, 1), "many": prompt(90, 2), "two": prompt(2, 3)}
    for name, logits in PagedRunner(pair.loaded).step(prompts).items():
        close(logits, pair.expected(prompts[name]))


def test_prefill_in_chunks(pair: Pair) -> None:
    tokens = prompt(101, 4)
    runner = PagedRunner(pair.loaded)
    cuts = [0, 40, 41, 43, 83, 101]
    parts = [runner.step({"r": tokens[a:b]})["r"] for a, b in pairwise(cuts)]
    close(torch.cat(parts), pair.expected(tokens))


def test_decode_token_by_token_from_the_first(pair: Pair) -> None:
    tokens = prompt(60, 5)
    runner = PagedRunner(pair.loaded)
    close(torch.cat([runner.step({"r": [token]})["r"] for token in tokens]), pair.expected(tokens))


def test_decode_and_prefill_rows_mixed_in_any_order(pair: Pair) -> None:
    tokens = {"a": prompt(50, 6), "b": prompt(70, 7), "c": prompt(64, 8)}
    runner = PagedRunner(pair.loaded)
    got: dict[str, list[torch.Tensor]] = {name: [] for name in tokens}
    done = dict.fromkeys(tokens, 0)
    schedule = [{"a": 30}, {"b": 20, "a": 1}, {"a": 1, "b": 30, "c": 1}, {"c": 40, "a": 1, "b": 1}]
    schedule += [{"a": 1, "b": 1, "c": 1}] * 16 + [{"a": 1, "b": 3, "c": 7}]
    for counts in schedule:
        rows = {name: tokens[name][done[name] : done[name] + count] for name, count in counts.items()}
        for name, logits in runner.step(rows).items():
            got[name].append(logits)
            done[name] += counts[name]
    assert done == {name: len(ids) for name, ids in tokens.items()}
    for name, parts in got.items():
        close(torch.cat(parts), pair.expected(tokens[name]))


def test_hidden_states_come_in_the_order_asked_for(pair: Pair) -> None:
    tokens = prompt(20, 9)
    layout = pair.loaded.kv_layout
    pool = KVPool(layout.rank_shape(1), layout.groups, 3 * len(layout.groups), torch.device("cpu"))
    tables = [torch.tensor([[3 * g + 1, 3 * g + 2, 3 * g + 3]]) for g in range(len(layout.groups))]
    batch = ForwardBatch.build([0], [20], torch.tensor(tokens), tables, 8, torch.tensor([19, 3, 3]))
    model = pair.loaded.model
    hidden = model.hidden_states(batch, AttentionPlanner(pool, pair.loaded.heads).plan(batch))
    assert hidden.shape[0] == 3
    close(model.logits(hidden), pair.expected(tokens)[[19, 3, 3]])


def test_a_batch_does_not_change_what_a_request_gets_beyond_rounding(pair: Pair) -> None:
    tokens = prompt(33, 10)
    alone = PagedRunner(pair.loaded).step({"r": tokens})["r"]
    company = PagedRunner(pair.loaded).step({"x": prompt(50, 11), "r": tokens, "y": prompt(9, 12)})["r"]
    close(company, alone)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_bfloat16_errs_no_more_than_transformers(kind: str, tmp_path: Path) -> None:
    path = write_tiny_checkpoint(kind, tmp_path, seed=3, dtype=torch.bfloat16)
    tokens = prompt(40, 13)
    exact = Pair(path, load_model(ModelOptions(path)), load_hf(path).double()).expected(tokens)
    theirs = load_hf(path).bfloat16()(torch.tensor([tokens])).logits[0]
    ours = PagedRunner(load_model(ModelOptions(path, dtype="bfloat16", page_size=8))).step({"r": tokens})["r"]
    assert (ours - exact).abs().mean() <= 1.5 * (theirs - exact).abs().mean()


def test_products_may_be_added_to_the_residual_stream_as_they_go(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows on a GPU have it; models with norms behind their products cannot."""
    asked: list[int] = []

    def always(kernels: Kernels, rows: int) -> bool:
        asked.append(rows)
        return True

    monkeypatch.setattr(Kernels, "adds_products", always)
    tokens = prompt(90, 2)
    close(PagedRunner(pair.loaded).step({"r": tokens})["r"], pair.expected(tokens))
    model = pair.loaded.model
    assert isinstance(model, Decoder)
    config = model.config
    assert bool(asked) == (not config.sandwich_norms and not (config.output_bias and config.mlp_bias))
