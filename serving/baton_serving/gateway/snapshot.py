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
    prompt: bytes
    prompt_tokens: int
    max_tokens: int = 0
    priority: int = 0
    session: str = ""
    tenant: str = ""
    weights: str = ""


class Candidate(Protocol):
    """A worker that could take the request. All attributes are read-only and cheap; loads are of this very moment.

    `running` counts requests there, `queued_tokens` prompt tokens that wait to be computed: as reported, or as sent
    from here where that is ahead of the report. `free_pages` and `total_pages` are pages of KV of `page_size` tokens.
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
    def free_pages(self) -> int: ...

    @property
    def total_pages(self) -> int: ...

    @property
    def page_size(self) -> int: ...


class PrefixView(Protocol):
    """Who holds how much of a prompt, as far as is known."""

    def cached_tokens(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[int]:
        """For each candidate the tokens of the prompt that its cache is believed to hold."""
        ...


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """The moment of one choice. `candidates` is never empty; its order is that of worker ids. `now` is in seconds."""

    candidates: Sequence[Candidate]
    prefixes: PrefixView
    now: float = 0.0


class Choice(msgspec.Struct, frozen=True, gc=False):
    """`index` of the chosen candidate, and what each scored (lower is better, () when the policy does not score)."""

    index: int
    scores: tuple[float, ...] = ()


class Policy(Protocol):
    """A pure function: equal arguments choose alike, on every replica and in the simulator."""

    def __call__(self, snapshot: Snapshot, facts: RequestFacts) -> Choice: ...


class RoutingMemory(PrefixView, Protocol):
    """What routing remembers between requests: fed by decisions, corrected by what workers tell of their caches."""

    def routed(self, facts: RequestFacts, worker: Candidate, now: float) -> None:
        """The prompt is on its way to this worker, whose cache will hold it."""
        ...

    def forget(self, worker_id: str, incarnation: str) -> None:
        """The worker is gone."""
        ...


class NoMemory:
    """A memory that knows of no cache, for policies that do not ask."""

    def cached_tokens(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[int]:
        return (0,) * len(candidates)

    def routed(self, facts: RequestFacts, worker: Candidate, now: float) -> None:
        """Nothing to remember."""

    def forget(self, worker_id: str, incarnation: str) -> None:
        """Nothing to forget."""
