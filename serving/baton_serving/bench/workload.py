"""What a benchmark asks: lists of prompts with answer lengths. Pure; the same seed gives the same list."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from baton_serving.errors import ConfigError

TRACE_BLOCK = 512  # tokens that one hash id of a Mooncake trace stands for

# Prompts for chat routes are made of these, one word per token id.
_WORDS = (
    *("river", "stone", "light", "garden", "winter", "paper", "silver", "window", "morning", "forest", "bridge"),
    *("letter", "copper", "island", "lantern", "meadow", "harbour", "violet", "engine", "market", "candle", "thunder"),
    *("orchard", "mirror", "saddle", "pepper", "anchor", "basket", "feather", "compass"),
)


@dataclass(frozen=True)
class Item:
    """One request: prompt token ids, tokens to generate, and seconds after the start at which it is due (or None)."""

    prompt: tuple[int, ...]
    output_tokens: int
    due: float | None = None

    @property
    def text(self) -> str:
        """The prompt for routes that take no token ids: as many words as the prompt has tokens."""
        return " ".join(_WORDS[token % len(_WORDS)] for token in self.prompt)


@dataclass(frozen=True)
class Lengths:
    """Prompt and answer lengths in tokens; each is drawn evenly from `ratio` times itself to itself."""

    prompt: int
    output: int
    ratio: float = 1.0

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """Prompt and answer length of one request, at least 1 each."""
        return self._one(self.prompt, rng), self._one(self.output, rng)

    def _one(self, most: int, rng: random.Random) -> int:
        return rng.randint(max(1, round(most * self.ratio)), max(1, most))


def random_items(count: int, lengths: Lengths, vocab_size: int, seed: int) -> list[Item]:
    """Prompts of random tokens: none shares more than chance with another."""
    rng = random.Random(seed)
    items = []
    for _ in range(count):
        prompt, output = lengths.draw(rng)
        items.append(Item(_tokens(rng, prompt, vocab_size), output))
    return items


def shared_prefix_items(
    count: int, groups: int, prefix_tokens: int, lengths: Lengths, vocab_size: int, seed: int
) -> list[Item]:
    """Random prompts behind one of `groups` prefixes each, in random order."""
    rng = random.Random(seed)
    prefixes = [_tokens(rng, prefix_tokens, vocab_size) for _ in range(groups)]
    items = []
    for index in range(count):
        prompt, output = lengths.draw(rng)
        items.append(Item(prefixes[index % groups] + _tokens(rng, prompt, vocab_size), output))
    rng.shuffle(items)
    return items


class _TraceLine(msgspec.Struct):
    timestamp: float  # milliseconds
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def trace_items(path: Path, vocab_size: int, limit: int | None = None) -> list[Item]:
    """Requests of a trace in Mooncake's format: JSON lines of timestamp (ms), input_length, output_length, hash_ids.

    Each hash id stands for TRACE_BLOCK prompt tokens, the same ones wherever it occurs. ConfigError names a bad line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"--trace {path}: {error.strerror}") from error
    rows = [_trace_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()][:limit]
    if not rows:
        raise ConfigError(f"--trace {path}: holds no request")
    start = rows[0].timestamp
    return [
        Item(
            _trace_prompt(row.hash_ids, row.input_length, vocab_size),
            max(1, row.output_length),
            (row.timestamp - start) / 1000,
        )
        for row in rows
    ]


def _trace_line(path: Path, number: int, line: bytes) -> _TraceLine:
    try:
        return msgspec.json.decode(line, type=_TraceLine)
    except msgspec.DecodeError as error:
        raise ConfigError(f"--trace {path}: line {number} is no request of a Mooncake trace: {error}") from error


def _trace_prompt(hash_ids: Iterable[int], length: int, vocab_size: int) -> tuple[int, ...]:
    prompt: list[int] = []
    for block in hash_ids:
        prompt.extend(_tokens(random.Random(block), TRACE_BLOCK, vocab_size))
    if len(prompt) < length:
        prompt.extend(_tokens(random.Random(len(prompt)), length - len(prompt), vocab_size))
    return tuple(prompt[: max(1, length)])


def _tokens(rng: random.Random, count: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(rng.choices(range(vocab_size), k=count))
