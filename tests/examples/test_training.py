"""The training loop, in the small: loss falls, and what was saved is what was trained."""

import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from train.batches import PAD, Batches, Phase, load
from train.checkpoint import Checkpoint
from train.model import answer_loss, build, hidden_states
from train.training import Plan, fit, rate_at

PLAN = Plan(steps=100, seconds=10.0, peak_rate=1.0, warmup=10)


@pytest.mark.parametrize(("step", "elapsed", "rate"), [(4, 0.0, 0.5), (50, 0.0, 0.5), (50, 5.0, 0.5), (20, 10.0, 0.0)])
def test_rate_rises_and_then_falls_with_steps_or_time(step: int, elapsed: float, rate: float) -> None:
    assert rate_at(PLAN, step, elapsed) == pytest.approx(rate, abs=0.01)


def test_fit_stops_by_the_clock(tokenizer: Tokenizer) -> None:
    lines: list[str] = []
    batches = Batches(tokenizer, [Phase(3, 64)], tokens=64, seed=1, signature="")
    fit(build(tokenizer), load(batches, 0), Plan(steps=3, seconds=0.0, peak_rate=1e-3), lines.append)
    assert lines == ["stopped by the clock after 0 of 3 steps"]


def test_padding_has_no_part_in_the_loss(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = build(tokenizer)
    ids, marks = Batches(tokenizer, [Phase(1, 64)], tokens=128, seed=1, signature="")[0]
    ids = ids.long()
    marks[:, 40:] = PAD
    other = ids.clone()
    other[:, 40:] = 5

    def loss(tokens: torch.Tensor) -> float:
        return answer_loss(hidden_states(model, tokens), model.lm_head.weight, tokens, marks)[0].item()

    assert loss(ids) == loss(other)


def test_training_lowers_the_loss_and_saves_what_it_trained(tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    lines: list[str] = []
    model = build(tokenizer)
    batches = Batches(tokenizer, [Phase(8, 64)], tokens=256, seed=1, signature="")
    fit(model, load(batches, 0), Plan(steps=8, seconds=600.0, peak_rate=1e-2, warmup=2), lines.append)
    before, after = (float(re.search(r"loss ([\d.]+)", line)[1]) for line in lines)  # type: ignore[index]
    assert after < before - 0.5
    stored = Checkpoint.save(tmp_path / "baton-tiny", model, tokenizer)
    for name, weight in stored.model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].bfloat16())
    [reply] = stored.replies([[{"role": "user", "content": "What is 1 + 2?"}]], batch=1, tokens=2)
    assert reply
