"""What is asked of a simulated fleet: requests with their times, lengths and shared beginnings. Pure, by seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from baton_serving.errors import ConfigError

MOONCAKE_BLOCK = 512  # tokens that one hash id of a Mooncake trace stands for
GENERATED_BLOCK = 16
BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """`at` in seconds. `blocks` name the whole blocks of the prompt: equal names are equal prompts up to their ends."""

    at: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    session: str = ""

    def prompt(self, block_tokens: int) -> bytes:
        """Bytes that share beginnings as the prompts do, a token for each `BYTES_PER_TOKEN`."""
        text = b"".join([block.to_bytes(8, "little") * (block_tokens * BYTES_PER_TOKEN // 8) for block in self.blocks])
        size = self.prompt_tokens * BYTES_PER_TOKEN
        return text[:size] if len(text) >= size else text + bytes(size - len(text))


@dataclass(frozen=True)
class Trace:
    """Requests by rising time, and the tokens of a block."""

    requests: tuple[TraceRequest, ...]
    block_tokens: int


@dataclass(frozen=True)
class Conversations:
    """Multi-turn chats: each turn's prompt is all that was said before and a new question.

    `rate` is requests a second on average. `systems` different system prompts are in use. Lengths are means in tokens
    of exponential draws, `think_seconds` the mean pause between an answer and the next question.
    """

    requests: int = 2000
    rate: float = 60.0
    turns: int = 6
    systems: int = 8
    system_tokens: int = 512
    question_tokens: int = 128
    answer_tokens: int = 192
    think_seconds: float = 8.0
    context_tokens: int = 32_768

    def trace(self, seed: int) -> Trace:
        """The same seed gives the same trace."""
        seconds = self.requests / self.rate
        while True:
            found = self._between(random.Random(seed), seconds)
            if len(found) >= self.requests:
                return Trace(tuple(found[: self.requests]), GENERATED_BLOCK)
            seconds *= 1.3

    def _between(self, rng: random.Random, seconds: float) -> list[TraceRequest]:
        """All turns from time 0 on; sessions began before that, so that the load is even from the start."""
        start = -3 * self.turns * self.think_seconds
        found: list[TraceRequest] = []
        session = 0
        while start < seconds:
            start += rng.expovariate(self.rate / self.turns)
            found.extend(turn for turn in self._session(rng, session, start) if 0 <= turn.at < seconds)
            session += 1
        return sorted(found, key=lambda turn: turn.at)

    def _session(self, rng: random.Random, session: int, start: float) -> Iterator[TraceRequest]:
        system = rng.randrange(self.systems)
        shared = self.system_tokens // GENERATED_BLOCK
        tokens, at = self.system_tokens, start
        for _ in range(1 + min(int(rng.expovariate(1 / max(1e-9, self.turns - 1))), 8 * self.turns)):
            tokens += 1 + int(rng.expovariate(1 / self.question_tokens))
            answer = 1 + int(rng.expovariate(1 / self.answer_tokens))
            if tokens + answer > self.context_tokens:
                return
            own = range(shared, tokens // GENERATED_BLOCK)
            blocks = [*(_name(system, block) for block in range(shared)), *(_name(1000 + session, b) for b in own)]
            yield TraceRequest(at, tokens, answer, tuple(blocks), f"s{session}")
            tokens += answer
            at += rng.expovariate(1 / self.think_seconds) + answer * 0.02


def _name(owner: int, block: int) -> int:
    return owner << 24 | block


class _Line(msgspec.Struct):
    timestamp: float  # milliseconds
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def read_mooncake(path: Path, limit: int | None = None, speed: float = 1.0) -> Trace:
    """A trace in Mooncake's format: JSON lines of timestamp (ms), input_length, output_length and hash_ids.

    `speed` 2 halves the times between requests. ConfigError names a bad line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"--trace {path}: {error.strerror}") from error
    rows = [_read_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()][:limit]
    if not rows:
        raise ConfigError(f"--trace {path}: holds no request")
    start = min(row.timestamp for row in rows)
    requests = [
        TraceRequest(
            (row.timestamp - start) / 1000 / speed,
            max(1, row.input_length),
            max(1, row.output_length),
            _whole_blocks(row.hash_ids, row.input_length),
        )
        for row in rows
    ]
    return Trace(tuple(sorted(requests, key=lambda request: request.at)), MOONCAKE_BLOCK)


def _read_line(path: Path, number: int, line: bytes) -> _Line:
    try:
        row = msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError as error:
        raise ConfigError(f"--trace {path}: line {number} is no request of a Mooncake trace: {error}") from error
    if any(not 0 <= name < 1 << 63 for name in row.hash_ids):
        raise ConfigError(f"--trace {path}: line {number}: hash_ids must be between 0 and 2^63")
    return row


def _whole_blocks(hash_ids: Sequence[int], tokens: int) -> tuple[int, ...]:
    return tuple(hash_ids[: tokens // MOONCAKE_BLOCK])
