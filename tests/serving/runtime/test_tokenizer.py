"""Loading tokenizers from disk, chat templates, and long texts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.tiny_tokenizer import save, tiny_tokenizer

from baton_serving.errors import ConfigError, InvalidRequest
from baton_serving.runtime.tokenizer import ChatPrompt, TokenizerSource, load_tokenizer

HELLO = ({"role": "user", "content": "hi"},)


def test_a_folder_gives_tokenizer_vocabulary_and_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TokenizerSource(str(save(tmp_path))))
    assert tokenizer.encode("hello world") == tiny_tokenizer().encode("hello world")
    assert tokenizer.decode(tokenizer.encode("naïve 😀")) == "naïve 😀"
    assert tokenizer.longest_token == tiny_tokenizer().longest_token > 4
    assert tokenizer.render_chat(ChatPrompt(HELLO)) == "<|start|>user\nhi<|end|><|start|>assistant\n"


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}{{ extra }}")
    tokenizer = load_tokenizer(TokenizerSource(str(save(tmp_path / "model")), chat_template=str(template)))
    assert tokenizer.render_chat(ChatPrompt(HELLO, template_kwargs={"extra": "!"})) == "[hi]!"


@pytest.mark.parametrize(
    ("source", "flag"),
    [
        (TokenizerSource("no/such/folder/anywhere"), "--tokenizer-path no/such/folder/anywhere"),
        (TokenizerSource("{model}", chat_template="no/such/template"), "--chat-template no/such/template"),
    ],
)
def test_what_cannot_be_loaded_names_its_flag(
    source: TokenizerSource, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = str(save(tmp_path)) if source.path == "{model}" else source.path
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(TokenizerSource(path, chat_template=source.chat_template))
    assert caught.value.message.startswith(flag)
    assert "\n" not in caught.value.message


def test_continuing_the_last_message() -> None:
    messages = [*HELLO, {"role": "assistant", "content": "one two"}]
    text = tiny_tokenizer().render_chat(ChatPrompt(messages, continue_final_message=True))
    assert text.endswith("<|start|>assistant\none two")


@pytest.mark.parametrize(
    ("chat", "match", "param"),
    [
        (ChatPrompt([{"role": "robot", "content": "a"}]), "unknown role robot", "messages"),
        (ChatPrompt(HELLO, template_kwargs={"tokenize": True}), "may not set 'tokenize'", "chat_template_kwargs"),
    ],
)
def test_what_a_template_refuses(chat: ChatPrompt, match: str, param: str) -> None:
    with pytest.raises(InvalidRequest, match=match) as caught:
        tiny_tokenizer().render_chat(chat)
    assert caught.value.param == param


def test_special_tokens_in_a_template_are_tokens() -> None:
    assert tiny_tokenizer().encode_chat(ChatPrompt(HELLO))[0] == 1


async def test_long_texts_leave_the_event_loop_free(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(TokenizerSource(str(save(tmp_path))))
    text = "hello world, " * 20_000
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    ids = await tokenizer.encode_soon(text)
    counting.cancel()
    tokenizer.close()
    assert ids == tiny_tokenizer().encode(text)
    assert turns > 1
    assert await tiny_tokenizer().encode_soon("one two") == tiny_tokenizer().encode("one two")
