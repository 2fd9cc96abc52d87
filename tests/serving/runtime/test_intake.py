"""From prompts and sampling fields to choices."""

from __future__ import annotations

import pytest
from support.api_world import CONTEXT, VOCAB, intake
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.errors import InvalidRequest
from baton_serving.runtime.tokenizer import ChatPrompt
from baton_serving.sampling.validate import CHAT, COMPLETIONS, NATIVE

IDS = tiny_tokenizer().encode("one two")


async def test_prompts_of_every_kind() -> None:
    chat = ChatPrompt(messages=[{"role": "user", "content": "hi"}])
    prompts, choices = await intake().choices(["one two", [5, 6], chat], [{}, {"n": 2}, {}], COMPLETIONS)
    assert prompts[:2] == [IDS, [5, 6]]
    assert tiny_tokenizer().decode(prompts[2]) == "<|start|>user\nhi<|end|><|start|>assistant\n"
    assert [choice.prompt for choice in choices] == [0, 1, 1, 2]


async def test_each_choice_has_a_seed_of_its_own_that_follows_from_the_first() -> None:
    _, choices = await intake().choices([[5]], [{"n": 4, "seed": 11}], COMPLETIONS)
    _, again = await intake().choices([[5]], [{"n": 4, "seed": 11}], COMPLETIONS)
    seeds = [choice.params.seed for choice in choices]
    assert seeds[0] == 11
    assert len(set(seeds)) == 4
    assert seeds == [choice.params.seed for choice in again]


async def test_without_a_seed_one_is_drawn() -> None:
    _, choices = await intake().choices([[5], [5]], [{}, {}], COMPLETIONS)
    assert choices[0].params.seed != choices[1].params.seed


async def test_preferred_parameters_fill_what_the_client_leaves_out() -> None:
    reads = intake(preferred={"temperature": 0.5, "max_new_tokens": 7})
    for dialect, names in ((CHAT, ("max_completion_tokens", "max_tokens")), (NATIVE, ("max_new_tokens",))):
        _, (choice,) = await reads.choices([[5]], [{"temperature": None}], dialect)
        assert (choice.params.temperature, choice.params.max_new_tokens) == (0.5, 7)
        for name in names:
            _, (choice,) = await reads.choices([[5]], [{"temperature": 0.25, name: 3}], dialect)
            assert (choice.params.temperature, choice.params.max_new_tokens) == (0.25, 3)


async def test_auto_truncation_keeps_the_end_and_room_for_the_answer() -> None:
    reads = intake(auto_truncate=True)
    long = [i % VOCAB for i in range(CONTEXT + 50)]
    prompts, (choice,) = await reads.choices([long], [{"max_tokens": 12}], COMPLETIONS)
    assert prompts[0] == long[-(CONTEXT - 12) :]
    assert choice.params.max_new_tokens == 12
    prompts, (choice,) = await reads.choices([long], [{}], CHAT)
    assert (len(prompts[0]), choice.params.max_new_tokens) == (CONTEXT - 1, 1)
    prompts, _ = await reads.choices([[5, 6]], [{"max_tokens": 12}], COMPLETIONS)
    assert prompts == [[5, 6]]


async def test_a_hopelessly_long_text_is_refused_before_it_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise AssertionError("tokenized")

    monkeypatch.setattr(tiny_tokenizer(), "encode", explode)
    with pytest.raises(InvalidRequest, match="shorten it") as caught:
        await intake().choices(["a" * 10**6], [{}], COMPLETIONS)
    assert caught.value.param == "prompt"


async def test_errors_name_the_clients_field() -> None:
    for prompt, match in (("\ud800", "surrogate"), ([VOCAB], "token ids run"), ("", "empty"), ([], "empty")):
        with pytest.raises(InvalidRequest, match=match) as caught:
            await intake().choices([prompt], [{}], NATIVE)
        assert caught.value.param == "input_ids"


def test_text_of_ids() -> None:
    assert intake().text_of([*IDS, 0], "tokens", skip_special_tokens=True) == "one two"
    assert intake().text_of([*IDS, 0], "tokens", skip_special_tokens=False) == "one two<|end|>"
    with pytest.raises(InvalidRequest, match="token ids run"):
        intake().text_of([-1], "tokens", skip_special_tokens=True)
