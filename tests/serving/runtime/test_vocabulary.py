"""Token by token, the text is what the tokenizer's own decoder makes of the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_tokenizer import tiny_tokenizer, train
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from baton_serving.runtime.tokenizer import vocabulary_of
from baton_serving.runtime.vocabulary import ByteVocabulary, TextDecoder, WindowVocabulary

SIZE = 420
BYTES = {tiny_tokenizer().vocabulary.token_bytes(i): i for i in range(SIZE)}
HF = train()
IDS = st.lists(st.integers(0, SIZE - 1), max_size=40)


def run(decoder: TextDecoder, ids: list[int]) -> str:
    return "".join(decoder.feed(token_id) for token_id in ids)


def whole_characters(ids: list[int], skip: bool) -> str:
    """The tokenizer's own decode, less the bytes at its end that may still become a character."""
    decoder = tiny_tokenizer().vocabulary.decoder((), skip_special_tokens=skip)
    run(decoder, ids)
    text = str(HF.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))
    return text[:-1] if decoder.pending else text


@given(IDS, st.booleans())
def test_any_tokens_give_the_tokenizers_own_text(ids: list[int], skip: bool) -> None:
    decoder = tiny_tokenizer().vocabulary.decoder((), skip_special_tokens=skip)
    assert run(decoder, ids) == whole_characters(ids, skip)


@given(st.text(max_size=30))
def test_any_text_as_single_bytes_comes_back(text: str) -> None:
    ids = [BYTES[bytes([byte])] for byte in text.encode()]
    decoder = tiny_tokenizer().vocabulary.decoder((), skip_special_tokens=True)
    assert run(decoder, ids) == text


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    decoder = tiny_tokenizer().vocabulary.decoder((), skip_special_tokens=True)
    ids = [BYTES[bytes([byte])] for byte in "é😀".encode()]
    assert [decoder.feed(token_id) for token_id in ids] == ["", "é", "", "", "", "😀"]


def test_a_character_may_begin_in_the_prompt() -> None:
    emoji = [BYTES[bytes([byte])] for byte in "😀".encode()]
    decoder = tiny_tokenizer().vocabulary.decoder(emoji[:2], skip_special_tokens=True)
    assert run(decoder, emoji[2:]) == "😀"


def test_a_broken_character_of_the_prompt_is_not_the_answers() -> None:
    emoji = [BYTES[bytes([byte])] for byte in "😀".encode()]
    decoder = tiny_tokenizer().vocabulary.decoder(emoji[:2], skip_special_tokens=True)
    assert run(decoder, [BYTES[b"a"]]) == "a"


def test_ids_beyond_the_tokenizer_say_nothing() -> None:
    vocabulary = tiny_tokenizer().vocabulary
    assert vocabulary.token_bytes(10**6) == b""
    assert run(vocabulary.decoder((), skip_special_tokens=False), [10**6, -1]) == ""


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁hello", "▁world", "lo", "é"]
    backend = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@given(st.lists(st.sampled_from(["▁hello", "▁world", "lo", "é", "😀", "</s>"]), max_size=12))
def test_sentencepiece_with_byte_fallback(words: list[str]) -> None:
    """After a first word, since the decoder strips a space from the very start of a text."""
    hf = byte_fallback_tokenizer()
    vocabulary = vocabulary_of(hf)
    assert isinstance(vocabulary, ByteVocabulary)
    numbers: dict[str, int] = hf.get_vocab()
    ids: list[int] = []
    for word in words:
        names = [f"<0x{byte:02X}>" for byte in word.encode()] if word == "😀" else [word]
        ids += [numbers[name] for name in names]
    first = numbers["lo"]
    expected = hf.decode([first, *ids], skip_special_tokens=True)[2:]
    assert run(vocabulary.decoder([first], skip_special_tokens=True), ids) == expected


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    pieces = {"[UNK]": 0, "un": 1, "##want": 2, "##ed": 3, "runn": 4, "##ing": 5}
    backend = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_any_other_tokenizer_is_decoded_in_windows(ids: list[int]) -> None:
    hf = word_piece_tokenizer()
    vocabulary = vocabulary_of(hf)
    assert isinstance(vocabulary, WindowVocabulary)
    assert run(vocabulary.decoder((), skip_special_tokens=True), ids) == hf.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12))
def test_a_tokenizer_in_python_that_drops_unfinished_characters(text: str) -> None:
    hf = ByT5Tokenizer()
    vocabulary = vocabulary_of(hf)
    assert isinstance(vocabulary, WindowVocabulary)
    ids: list[int] = hf.encode(text, add_special_tokens=False)
    assert run(vocabulary.decoder((), skip_special_tokens=True), ids) == text


def test_a_window_holds_back_an_unfinished_character_but_not_for_ever() -> None:
    def decode(ids: object, skip: bool) -> str:
        assert isinstance(ids, list)
        return bytes(ids).decode("utf-8", "replace")

    decoder = WindowVocabulary(decode).decoder((), skip_special_tokens=True)
    assert [decoder.feed(byte) for byte in "a😀b".encode()] == ["a", "", "", "", "😀", "b"]
    assert run(decoder, [0xFF] * 40).startswith("\ufffd" * 32)


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_only_on_demand(skip: bool) -> None:
    decoder = tiny_tokenizer().vocabulary.decoder((), skip_special_tokens=skip)
    assert run(decoder, [BYTES[b"a"], 0]) == ("a" if skip else "a<|end|>")
