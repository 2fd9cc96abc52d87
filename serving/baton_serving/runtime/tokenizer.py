"""Loading a Hugging Face tokenizer; text to tokens and chats to text without stalling the event loop."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from jinja2 import TemplateError

from baton_serving.errors import ConfigError, InvalidRequest
from baton_serving.runtime.vocabulary import ByteVocabulary, Vocabulary, WindowVocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_LONG_TEXT: Final = 8_192  # characters; about a millisecond of work, more goes to a thread
_THREADS: Final = 2
_SPACE_MARK: Final = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space


class TokenizerSource(msgspec.Struct, frozen=True):
    """Where a tokenizer comes from. `chat_template` is the path of a Jinja file that replaces the tokenizer's own."""

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None


class ChatPrompt(msgspec.Struct, frozen=True):
    """A conversation as a chat template takes it. `messages` are plain dicts with string contents."""

    messages: Sequence[Mapping[str, object]]
    tools: Sequence[Mapping[str, object]] | None = None
    continue_final_message: bool = False
    template_kwargs: Mapping[str, object] = {}


class Tokenizer:
    """Text to tokens, chats to text, and the vocabulary. Every method may be called from any thread."""

    def __init__(self, hf: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
        self._hf = hf
        self._fast = hf.backend_tokenizer if hf.is_fast else None
        self._pool = ThreadPoolExecutor(_THREADS if hf.is_fast else 1, thread_name_prefix="tokenizer")
        self._reserved = frozenset(inspect.signature(hf.apply_chat_template).parameters) | {"messages"}
        self.vocabulary = vocabulary

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token, 0 when unknown."""
        return self.vocabulary.longest_token

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises InvalidRequest when it is not Unicode text."""
        if not _is_unicode(text):
            raise InvalidRequest("the text holds a lone surrogate, which is not a character")
        if self._fast is not None:
            fast: list[int] = self._fast.encode(text, add_special_tokens=add_special_tokens).ids
            return fast
        slow: list[int] = self._hf.encode(text, add_special_tokens=add_special_tokens)
        return slow

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of `token_ids` as the answer to a prompt would show it, unfinished characters left out."""
        decoder = self.vocabulary.decoder((), skip_special_tokens=skip_special_tokens)
        return "".join([decoder.feed(token_id) for token_id in token_ids])

    def render_chat(self, chat: ChatPrompt) -> str:
        """The prompt of `chat`. Raises InvalidRequest with what the template says is wrong."""
        if self._hf.chat_template is None:
            raise InvalidRequest(
                "this model has no chat template: start the worker with --chat-template or use /v1/completions",
                param="messages",
            )
        for name in self._reserved & chat.template_kwargs.keys():
            raise InvalidRequest(f"chat_template_kwargs may not set {name!r}", param="chat_template_kwargs")
        try:
            return str(self._apply_template(chat))
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}", param="messages") from error

    def encode_chat(self, chat: ChatPrompt) -> list[int]:
        """Token ids of `chat` as the template renders it; special tokens are the template's own."""
        return self.encode(self.render_chat(chat), add_special_tokens=False)

    def _apply_template(self, chat: ChatPrompt) -> object:
        options: dict[str, Any] = {
            **chat.template_kwargs,
            "tokenize": False,
            "add_generation_prompt": not chat.continue_final_message,
            "continue_final_message": chat.continue_final_message,
        }
        messages: list[Any] = [dict(message) for message in chat.messages]
        tools: Any = None if chat.tools is None else [dict(tool) for tool in chat.tools]
        return self._hf.apply_chat_template(messages, tools, **options)

    async def encode_soon(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """`encode`, in a thread when the text is long."""
        return await self._run(len(text), lambda: self.encode(text, add_special_tokens=add_special_tokens))

    async def encode_chat_soon(self, chat: ChatPrompt) -> list[int]:
        """`encode_chat`, in a thread when the messages are long."""
        size = sum(len(content) for m in chat.messages if isinstance(content := m.get("content"), str))
        return await self._run(size, lambda: self.encode_chat(chat))

    async def _run(self, characters: int, work: Callable[[], T]) -> T:
        if characters < _LONG_TEXT:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def load_tokenizer(source: TokenizerSource) -> Tokenizer:
    """Load from a folder or hub name. Raises ConfigError with one line that says what to do."""
    try:
        hf = _load_ready_made(source) if _is_ready_made(source) else _load_any(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"--tokenizer-path {source.path}: no tokenizer could be loaded from there ({reason})"
        ) from error
    if source.chat_template is not None:
        try:
            hf.chat_template = Path(source.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--chat-template {source.chat_template}: cannot be read ({error})") from error
    return Tokenizer(hf, vocabulary_of(hf))


def _is_ready_made(source: TokenizerSource) -> bool:
    """Whether a tokenizer.json says everything: then neither the model's config nor torch is needed to read it."""
    folder = Path(source.path)
    if not (folder / "tokenizer.json").is_file():
        return False
    config = folder / "tokenizer_config.json"
    return not (source.trust_remote_code and config.is_file() and "auto_map" in json.loads(config.read_bytes()))


def _load_ready_made(source: TokenizerSource) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast  # a second to import; a worker without tokenizer never needs it

    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(source.path)
    return tokenizer


def _load_any(source: TokenizerSource) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # loads torch: seconds

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
    )
    return tokenizer


def vocabulary_of(hf: PreTrainedTokenizerBase) -> Vocabulary:
    """The vocabulary of a loaded tokenizer: bytes per token where its decoder works token by token."""
    to_bytes = _token_to_bytes(json.loads(hf.backend_tokenizer.decoder.__getstate__())) if _has_decoder(hf) else None
    if to_bytes is None:
        return WindowVocabulary(lambda ids, skip: _decode_text(hf, ids, skip))
    added = hf.backend_tokenizer.get_added_tokens_decoder()
    vocabulary: dict[str, int] = hf.backend_tokenizer.get_vocab(with_added_tokens=True)
    tokens = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        tokens[token_id] = to_bytes(token)
    return ByteVocabulary(tokens, frozenset(token_id for token_id, token in added.items() if token.special))


def _has_decoder(hf: PreTrainedTokenizerBase) -> bool:
    return bool(hf.is_fast) and hf.backend_tokenizer.decoder is not None


def _decode_text(hf: PreTrainedTokenizerBase, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
    text = hf.decode(list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    return str(text)


def _token_to_bytes(decoder: Mapping[str, Any]) -> Callable[[str], bytes] | None:
    """How the bytes of a token follow from its name, or None when a token's text depends on its neighbours.

    A Strip at the start of the text is left out: an answer always follows a prompt.
    """
    steps: Sequence[Mapping[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps if step["type"] not in ("Fuse", "Strip")]
    if kinds == ["ByteLevel"]:
        return _byte_level_bytes
    if kinds == ["Metaspace"] and steps[0].get("replacement") == _SPACE_MARK:
        return _spaced_bytes
    if sorted(kinds) == ["ByteFallback", "Replace"]:
        replace = next(step for step in steps if step["type"] == "Replace")
        if replace["pattern"] == {"String": _SPACE_MARK} and replace["content"] == " ":
            return _byte_fallback_bytes
    return None


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of GPT-2's byte-level BPE: visible Latin-1 is itself, the other bytes follow U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_ALPHABET: Final = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    """A token with a character outside the alphabet is an added one, which stands for its own text."""
    try:
        return bytes([_BYTE_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def _spaced_bytes(token: str) -> bytes:
    return token.replace(_SPACE_MARK, " ").encode()


def _byte_fallback_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return _spaced_bytes(token)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
