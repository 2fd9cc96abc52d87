"""`Engine` over its real processes: what it answers, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from support.references import Reference
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from baton_serving.errors import ConfigError, InvalidRequest
from baton_serving.runtime.engine import Completion, Engine

MODEL = Path(__file__).parents[3] / "examples" / "models" / "baton-tiny"
STORY = "<|user|>\nTell me a story about a fox.\n<|assistant|>\n"
SUM = "What is 12 + 30?"
GREEDY = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A pool of 100 pages and chunks of 32 tokens, so that prompts are cut and pages are few."""
    flags: dict[str, Any] = {"chunked_prefill_size": 32, "max_total_tokens": 1600, "log_level": "warning"}
    with Engine(model_path=str(MODEL), device="cpu", **flags) as engine:
        yield engine


@pytest.fixture(autouse=True)
def _everything_is_given_back(engine: Engine) -> Iterator[None]:
    yield
    _wait_idle(engine)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(MODEL)


def _wait_idle(engine: Engine) -> dict[str, Any]:
    """The scheduler's figures once nothing runs; `state` checks the books each time."""
    deadline = time.monotonic() + 60
    while not (state := engine.state())["idle"]:
        assert time.monotonic() < deadline, f"still busy: {state}"
    assert state["pages_in_use"] == 0
    assert state["pages_free"] + state["pages_cached"] == state["pages_total"]
    return state


def _one(answer: Completion | list[Completion]) -> Completion:
    assert isinstance(answer, Completion)
    return answer


def _many(answers: Completion | list[Completion]) -> list[Completion]:
    assert isinstance(answers, list)
    return answers


def test_a_prompt_and_a_list_of_prompts(engine: Engine) -> None:
    single = [_one(engine.generate(prompt, GREEDY)) for prompt in (STORY, SUM)]
    assert [answer.finish_reason for answer in single] == ["length", "length"]
    together = _many(engine.generate([STORY, SUM], GREEDY))
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in single]
    assert [answer.text for answer in together] == [answer.text for answer in single]


def test_token_ids_are_a_prompt_too(engine: Engine, reference: Reference) -> None:
    prompt = list(range(4, 200))
    reference.assert_greedy(prompt, _one(engine.generate(prompt, GREEDY)).token_ids, 24)


def test_several_answers_to_each_of_two_prompts(engine: Engine) -> None:
    params = {"n": 3, "temperature": 1.0, "seed": 5, "max_new_tokens": 12, "ignore_eos": True}
    answers = _many(engine.generate([STORY, SUM], params))
    assert len(answers) == 6
    assert len({tuple(answer.token_ids) for answer in answers}) == 6
    again = _many(engine.generate(STORY, params))
    assert [answer.token_ids for answer in again] == [answer.token_ids for answer in answers[:3]]


def test_a_seed_gives_the_same_answer_in_any_company(engine: Engine) -> None:
    params = {"temperature": 1.0, "top_p": 0.95, "seed": 77, "max_new_tokens": 16, "ignore_eos": True}
    alone = _one(engine.generate(SUM, params))

    async def crowd() -> list[Completion | list[Completion]]:
        others = [engine.async_generate(STORY, {**params, "seed": seed}) for seed in range(6)]
        return await asyncio.gather(*others[:3], engine.async_generate(SUM, params), *others[3:])

    answers = [_one(answer) for answer in asyncio.run(crowd())]
    assert answers[3].token_ids == alone.token_ids
    assert len({tuple(answer.token_ids) for answer in answers}) == 7


def test_a_stream_gives_the_answer_in_pieces(engine: Engine) -> None:
    whole = _one(engine.generate(STORY, GREEDY))
    outputs = list(engine.stream(STORY, GREEDY))
    assert len(outputs) > 1
    assert "".join(output.text for output in outputs) == whole.text
    assert [token for output in outputs for token in output.tokens.token_ids] == whole.token_ids
    assert [output.tokens.finish is not None for output in outputs] == [False] * (len(outputs) - 1) + [True]


def test_leaving_a_stream_early_frees_its_pages(engine: Engine) -> None:
    before = engine.state()["prompt_tokens_total"]
    stream = engine.stream(list(range(4, 300)), {**GREEDY, "max_new_tokens": 1200})
    next(stream)
    assert engine.state()["pages_in_use"] > 0
    stream.close()  # type: ignore[attr-defined]
    state = _wait_idle(engine)
    assert state["prompt_tokens_total"] > before


def test_stop_strings_end_an_answer_wherever_tokens_are_cut(engine: Engine) -> None:
    text = _one(engine.generate(STORY, GREEDY)).text
    for at in range(2, 30, 3):
        stop = text[at : at + 5]
        params = {**GREEDY, "stop": [stop, "never said"]}
        answer = _one(engine.generate(STORY, params))
        assert answer.text == text[: text.index(stop)]
        assert answer.finish_reason == "stop"
        streamed = list(engine.stream(STORY, params))
        assert "".join(output.text for output in streamed) == answer.text


def test_min_new_tokens_holds_the_end_back(engine: Engine, reference: Reference) -> None:
    prompt = engine._intake.tokenizer.encode(SUM)  # type: ignore[union-attr]
    ends = engine.facts.rank.eos_token_ids
    short = _one(engine.generate(prompt, {"temperature": 0, "max_new_tokens": 40}))
    assert short.finish_reason == "stop"
    assert len(short.token_ids) < 30
    longer = _one(engine.generate(prompt, {"temperature": 0, "max_new_tokens": 40, "min_new_tokens": 30}))
    held_back = MinNewTokensLengthLogitsProcessor(len(prompt), 30, ends)
    wanted = reference.greedy(prompt, 40, [held_back])
    assert len(longer.token_ids) >= 30
    assert longer.token_ids == wanted[: len(longer.token_ids)]


class _CountPenalties(LogitsProcessor):
    """OpenAI's definition: what was generated costs `presence` once and `frequency` each time."""

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self._prompt_length, self._presence, self._frequency = prompt_length, presence, frequency

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, self._prompt_length :], minlength=scores.shape[1])
        return scores - self._presence * (counts > 0) - self._frequency * counts


def test_penalties_and_bias_as_transformers_has_them(engine: Engine, reference: Reference) -> None:
    prompt = engine._intake.tokenizer.encode(STORY)  # type: ignore[union-attr]
    plain = _one(engine.generate(prompt, GREEDY)).token_ids
    bias = {plain[0]: -100, plain[3]: 3.5, 40: 1.0}
    cases: list[tuple[dict[str, Any], LogitsProcessor]] = [
        ({"repetition_penalty": 1.4}, RepetitionPenaltyLogitsProcessor(1.4)),
        ({"presence_penalty": 1.5, "frequency_penalty": 0.7}, _CountPenalties(len(prompt), 1.5, 0.7)),
        ({"logit_bias": bias}, SequenceBiasLogitsProcessor([[[token], float(value)] for token, value in bias.items()])),
    ]
    for fields, processor in cases:
        answer = _one(engine.generate(prompt, {**GREEDY, **fields})).token_ids
        assert answer == reference.greedy(prompt, 24, [processor]), fields
        assert answer != plain


def test_bad_input_is_refused_and_the_engine_goes_on(engine: Engine) -> None:
    for prompt, params in (
        ("", {}),
        ([10_000], {}),
        (STORY, {"temperature": float("nan")}),
        (STORY, {"max_new_tokens": -1}),
        ([5] * 5000, {}),
    ):
        with pytest.raises(InvalidRequest):
            engine.generate(prompt, params)
    assert _one(engine.generate(SUM, GREEDY)).finish_reason == "length"


def test_a_prompt_beyond_the_pool_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="KV cache"):
        engine.generate([5] * 1700, {"max_new_tokens": 4})


def test_flush_cache(engine: Engine) -> None:
    engine.generate(STORY, GREEDY)
    assert _wait_idle(engine)["pages_cached"] > 0
    assert engine.flush_cache() > 0
    assert engine.state()["pages_cached"] == 0


def test_two_ranks_answer_alike_and_shutdown_leaves_nothing(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = set(psutil.Process().children())
    engine = Engine(model_path=str(MODEL), device="cpu", tp_size=2, chunked_prefill_size=32, log_level="warning")
    try:
        assert len(list(tmp_path.iterdir())) == 1
        assert len(set(psutil.Process().children()) - others) == 3
        prompts = [list(range(4, 150)), [9], list(range(30, 70))]
        for prompt, answer in zip(prompts, _many(engine.generate(prompts, GREEDY)), strict=True):
            reference.assert_greedy(prompt, answer.token_ids, 24)
        _wait_idle(engine)
    finally:
        engine.shutdown()
        engine.shutdown()
    assert set(psutil.Process().children()) == others
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Engine(model_path=str(tmp_path / "nothing"))


def test_a_script_without_a_main_guard_works(tmp_path: Path) -> None:
    """The children do not run the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from baton_serving.runtime.engine import Engine\n"
        "print('loaded')\n"
        f"with Engine(model_path={str(MODEL)!r}, device='cpu', log_level='warning') as engine:\n"
        "    print(engine.generate([5, 6, 7], {'max_new_tokens': 3, 'ignore_eos': True}).finish_reason)\n"
    )
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=100,
    )
    assert (done.stdout.split(), done.returncode) == (["loaded", "length"], 0), done.stderr
