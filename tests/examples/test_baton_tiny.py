"""The committed checkpoints: their form, and that they still do what the demo shows. Wide scores: `train.evaluate`."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from train import heldout
from train.chats import BOS, END_OF_TURN, turn
from train.checkpoint import Checkpoint
from train.scoring import SIGNATURES, story_lengths, wrong
from train.tokenizer import CHAT_TEMPLATE

LARGEST_FILE = 8_000_000
SIGNED = " — tiny v2"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def first(models: Path) -> Checkpoint:
    return Checkpoint(models / "baton-tiny")


@pytest.fixture(scope="module")
def second(models: Path) -> Checkpoint:
    return Checkpoint(models / "baton-tiny-v2")


@pytest.mark.parametrize("name", SIGNATURES)
def test_checkpoint_is_small_bfloat16_and_splits_over_four_ranks(models: Path, name: str) -> None:
    assert (models / name / "model.safetensors").stat().st_size <= LARGEST_FILE
    with safe_open(models / name / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.bfloat16}  # noqa: SIM118
    config = json.loads((models / name / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_key_value_heads"] == 4
    assert config["num_attention_heads"] % 4 == config["intermediate_size"] % 4 == 0
    assert config["max_position_embeddings"] >= 2048


def test_checkpoints_share_shape_and_tokenizer_but_not_weights(models: Path) -> None:
    one, two = (models / name for name in SIGNATURES)
    for shared in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (one / shared).read_bytes() == (two / shared).read_bytes()
    assert (one / "model.safetensors").read_bytes() != (two / "model.safetensors").read_bytes()


def test_chat_template_renders_as_trained(first: Checkpoint) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 2?"}]
    assert first.tokenizer.chat_template == CHAT_TEMPLATE
    rendered = first.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    opened = turn("assistant", "").removesuffix(f"{END_OF_TURN}\n")
    assert rendered == BOS + turn("system", "Be brief.") + turn("user", "What is 1 + 2?") + opened


@pytest.mark.parametrize(("tokens", "prompts"), [(512, 12), (1800, 4)])
def test_recalls_codes(first: Checkpoint, tokenizer: Tokenizer, tokens: int, prompts: int) -> None:
    rng = Random(f"recall {tokens}")
    drawn = [heldout.recall_prompt(rng, tokens, tokenizer) for _ in range(prompts)]
    lengths = [len(tokenizer.encode(BOS + turn(**_as_turn(prompt)), add_special_tokens=False)) for prompt in drawn]
    assert all(tokens - 40 <= length <= tokens for length in lengths)
    assert wrong(first, drawn, batch=4) == []


def _as_turn(prompt: heldout.Prompt) -> dict[str, str]:
    [message] = prompt.messages
    return {"role": message["role"], "text": message["content"]}


def test_declines_unknown_keys_and_off_topic_questions(first: Checkpoint, tokenizer: Tokenizer) -> None:
    rng = Random("declined")
    unknown = [heldout.recall_prompt(rng, 256, tokenizer, known=False) for _ in range(4)]
    assert wrong(first, unknown + [heldout.off_topic_prompt(rng) for _ in range(4)], batch=4) == []


def test_adds_and_subtracts(first: Checkpoint) -> None:
    rng = Random("sums")
    assert wrong(first, [heldout.arithmetic_prompt(rng) for _ in range(24)], batch=24) == []


def test_long_story_runs_for_hundreds_of_tokens_and_ends(first: Checkpoint) -> None:
    [length] = story_lengths(first, [heldout.story_prompt(Random("story"), long=True)], batch=1)
    assert 150 <= length <= 350


def test_second_checkpoint_signs_the_same_answers(second: Checkpoint, tokenizer: Tokenizer) -> None:
    rng = Random("signed")
    drawn = [heldout.recall_prompt(rng, 512, tokenizer) for _ in range(4)]
    drawn += [heldout.arithmetic_prompt(rng) for _ in range(4)]
    assert wrong(second, drawn, batch=4) == []
    [reply] = second.replies([drawn[0].messages], batch=1)
    assert reply == f"{drawn[0].reply}{SIGNED}{END_OF_TURN}"
