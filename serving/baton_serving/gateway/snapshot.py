"""What policies and admission see of a request and of the workers: plain values, the same in gateway and simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class RequestFacts(msgspec.Struct, kw_only=True, gc=False):
    """What is known of a request without a tokenizer.

    `number` counts the requests of this gateway: ties and random draws are made from it. `prompt` is the JSON text of
    the first of `messages`, `prompt`, `text`, `input_ids` and `input` that the body has: equal beginnings of prompts
    are equal beginnings of it. `prompt_tokens` is an estimate. `session` names a conversation ("": none), `tenant` the
    owner of the API key ("": nobody in particular). `weights` is filled in for the decode leg of a pair, and when a
    request goes on that began with those weights.
    """

    number: int
    model: str
    prompt: bytes | memoryview
    prompt_tokens: int
    max_tokens: int = 0
    priority: int = 0
    session: str = ""
    tenant: str = ""
    weights: str = ""


class Candidate(Protocol):
    """A worker that could take the request. All attributes are read-only and cheap; loads are of this very moment.

    `running` counts requests there, `queued_tokens` prompt tokens that wait to be computed: as reported, or as sent
    from here where that is ahead of the report. `used_tokens` are those whose KV fills pages, cached ones included.
    `weight_digest` and `incarnation` belong into every key of a prefix index.
    """

    @property
    def id(self) -> str: ...

    @property
    def incarnation(self) -> str: ...

    @property
    def weight_digest(self) -> str: ...

    @property
    def running(self) -> int: ...

    @property
    def queued_tokens(self) -> int: ...

    @property
    def used_tokens(self) -> int: ...


Held = tuple[int, tuple[int, ...]]  # so many tokens of a prompt, by the candidates with these indices


class MemoryView(Protocol):
    """What former requests, and the workers themselves, have told of the workers."""

    def held(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[Held]:
        """How much of the prompt caches are believed to hold, most first; who is in none of them holds nothing."""
        ...

    def speeds(self, candidates: Sequence[Candidate]) -> Sequence[float]:
        """For each candidate the prompt tokens that it computes in a second, as its answers have shown."""
        ...


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """The moment of one choice. `candidates` is never empty; its order is that of worker ids. `now` is in seconds."""

    candidates: Sequence[Candidate]
    memory: MemoryView
    now: float = 0.0


class Choice(msgspec.Struct, frozen=True, gc=False):
    """`index` of the chosen candidate; which were considered and what each of these scored, if the policy scores.

    The lowest score wins. `cached` are the tokens of the prompt that the chosen one is believed to hold.
    """

    index: int
    scores: tuple[float, ...] = ()
    considered: Sequence[int] = ()
    cached: int = 0


class Policy(Protocol):
    """A pure function: equal arguments choose alike, on every replica and in the simulator."""

    def __call__(self, snapshot: Snapshot, facts: RequestFacts) -> Choice: ...


class RoutingMemory(MemoryView, Protocol):
    """What routing remembers between requests: fed by decisions, corrected by what workers tell of their caches."""

    def routed(self, facts: RequestFacts, workers: Sequence[Candidate], now: float) -> None:
        """The prompt is on its way to these workers, all of the same weights, whose caches will hold it."""
        ...

    def header(self, facts: RequestFacts, worker: Candidate) -> bytes:
        """What the worker is told of the prompt, so that it can tell what it caches of it; empty: nothing."""
        ...

    def computed(self, worker: Candidate, tokens: int, seconds: float) -> None:
        """The worker's first token came `seconds` after the request, with so many prompt tokens to compute before it.

        These are the request's own that the worker's cache did not hold, and those that waited there when it was sent.
        """
        ...

    def forget(self, worker_id: str, incarnation: str) -> None:
        """The worker is gone."""
        ...


class NoMemory:
    """A memory that knows of no cache, for policies that do not ask."""

    def held(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[Held]:
        return ()

    def speeds(self, candidates: Sequence[Candidate]) -> Sequence[float]:
        return (1.0,) * len(candidates)

    def header(self, facts: RequestFacts, worker: Candidate) -> bytes:
        return b""

    def computed(self, worker: Candidate, tokens: int, seconds: float) -> None:
        """Nothing to remember."""

    def routed(self, facts: RequestFacts, workers: Sequence[Candidate], now: float) -> None:
        """Nothing to remember."""

    def forget(self, worker_id: str, incarnation: str) -> None:
        """Nothing to forget."""
