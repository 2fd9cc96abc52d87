"""Chooses the workers of each attempt: who may be asked at all, then whom the policies prefer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from baton_bootstrap.tls import Tls
from baton_serving.errors import InvalidRequest, NotFound
from baton_serving.gateway.breakers import Breakers
from baton_serving.gateway.fleet import Endpoint, Fleet, ModelFleet, Route, fits
from baton_serving.gateway.policies import ASK_MEMORY, POLICIES, prefix_keys, weighted
from baton_serving.gateway.policies.memory import Memory
from baton_serving.gateway.snapshot import Choice, NoMemory, Policy, RequestFacts, RoutingMemory, Snapshot

PREFIX_LINE = prefix_keys.HEADER + b": %b\r\n"

Link = tuple[str, str]  # incarnations of a prefill and a decode worker


@dataclass(frozen=True)
class RoutingConfig:
    """`attempts` bounds the pairs tried in a row; `worker_wait` is how long, in seconds, a request waits for a worker.

    `migrate_wait` is the same for one that lost its worker, before its first byte or in mid-stream. Prompts of fewer
    than `divide_from` tokens that are not cached are served by a decode worker alone. `decode_policy` is "" for the
    same as `policy`.
    """

    policy: str = "power_of_two"
    decode_policy: str = ""
    attempts: int = 3
    worker_wait: float = 1.0
    migrate_wait: float = 15.0
    divide_from: int = 0


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Where an attempt goes and what the policies thought: candidates and their scores per leg, for people.

    `uncached` are the tokens of the prompt that the first worker has to compute, `ahead` these and those that waited
    there before them, both as far as is known. `lines` are header lines for the workers.
    """

    route: Route
    prefill: tuple[Sequence[Endpoint], Choice] | None
    decode: tuple[Sequence[Endpoint], Choice]
    uncached: int = 0
    ahead: int = 0
    lines: bytes = b""


class Router:
    """Pure but for the clock, the routing memory and the breakers that it reads."""

    def __init__(
        self,
        config: RoutingConfig,
        memory: RoutingMemory | None = None,
        tls: Tls | None = None,
        worker_key: str | None = None,
    ) -> None:
        self.config = config
        self.fleet = Fleet(tls, worker_key)
        decode_policy = config.decode_policy or config.policy
        of_prefill = config.policy in ASK_MEMORY
        of_decode = decode_policy in ASK_MEMORY or config.divide_from > 0
        self.remembers = of_prefill or of_decode
        self._remembered = slice(0 if of_prefill else 1, 2 if of_decode else 1)  # of a pair
        self.memory: RoutingMemory = memory or (Memory() if self.remembers else NoMemory())
        self.workers: Breakers[str] = Breakers()
        self.links: Breakers[Link] = Breakers()
        self._prefill_policy: Policy = POLICIES[config.policy]
        self._decode_policy: Policy = POLICIES[decode_policy]
        self._seen_models: set[str] = set()

    def seen(self) -> None:
        """The fleet has changed: remember its models, so that one whose workers are gone is missing, not unknown."""
        self._seen_models.update(self.fleet.models)

    def route(
        self,
        facts: RequestFacts,
        avoid: frozenset[Endpoint],
        *,
        divided: bool = True,
        keep: Endpoint | None = None,
    ) -> Decision | None:
        """Workers for one attempt, none of `avoid`; None when none is ready.

        `keep` is a prefill worker that holds the prompt: it is taken while it can be.
        A pair of equal weights, else a worker that serves whole, else a decode or prefill worker alone. Where versions
        have different shares one is drawn first; the others serve when it cannot. Raises
        `NotFound` for a model that no worker ever offered, `InvalidRequest` when none is named among several.
        """
        found = self.fleet.models.get(facts.model) or self._other_model(facts)
        if found is None:
            return None
        if found.uneven and not facts.weights:
            drawn = msgspec.structs.replace(facts, weights=weighted(found.shares, facts.number))
            decision = self._route(found, drawn, avoid, divided, keep)
            if decision is not None:
                return decision
        return self._route(found, facts, avoid, divided, keep)

    def _route(
        self,
        found: ModelFleet,
        facts: RequestFacts,
        avoid: frozenset[Endpoint],
        divided: bool,
        keep: Endpoint | None,
    ) -> Decision | None:
        now = time.monotonic()
        picky = bool(avoid or self.troubled or facts.weights)
        if divided and found.partners and not (self.config.divide_from and self._too_short(facts, found)):
            decision = self._pair(facts, found, avoid, now, picky, keep)
            if decision is not None:
                return decision
        for group in (found.whole, found.decode, found.prefill):
            usable = [one for one in group if self._allows(one, facts, avoid, now)] if picky else group
            if usable:
                choice = self._decode_policy(Snapshot(usable, self.memory, now), facts)
                chosen = usable[choice.index]
                if self.remembers:
                    self.memory.routed(facts, (chosen,), now)
                if picky:
                    self.workers.asked(chosen.incarnation, now)
                return self._decision(found.route(None, chosen), None, (usable, choice), facts)
        return None

    @property
    def troubled(self) -> bool:
        """Whether any worker or link might be refused for its failures."""
        return bool(self.workers.troubled or self.links.troubled)

    def answered(self, decision: Decision, seconds: float) -> None:
        """The first token of this attempt came so long after it was sent."""
        if self.remembers:
            self.memory.computed(decision.route.prefill or decision.route.decode, decision.ahead, seconds)

    def forget(self, endpoint: Endpoint) -> None:
        """The worker is gone for good."""
        self.workers.forget(endpoint.incarnation)
        self.memory.forget(endpoint.id, endpoint.incarnation)

    def can_serve(self, model: str, weights: str = "") -> bool:
        """Whether any worker of `model`, with these weights unless they are "", is ready."""
        found = self.fleet.models.get(model)
        ready = () if found is None else (*found.decode, *found.whole, *found.prefill)
        return any(weights in ("", one.weight_digest) for one in ready)

    def can_move(self, facts: RequestFacts, source: Endpoint, avoid: frozenset[Endpoint]) -> bool:
        """Whether somebody could take over pages of `source`: a stream that stands still for nobody is held up."""
        return bool(self._takers(facts, source, avoid, time.monotonic()))

    def taker(self, facts: RequestFacts, source: Endpoint, avoid: frozenset[Endpoint]) -> Endpoint | None:
        """A worker that can take over pages of `source`, chosen by the decode policy."""
        now = time.monotonic()
        usable = self._takers(facts, source, avoid, now)
        return usable[self._decode_policy(Snapshot(usable, self.memory, now), facts).index] if usable else None

    def _takers(self, facts: RequestFacts, source: Endpoint, avoid: frozenset[Endpoint], now: float) -> list[Endpoint]:
        found = self.fleet.models.get(source.worker.model)
        return [
            one
            for one in (() if found is None else (*found.decode, *found.whole))
            if one is not source and fits(source.worker, one.worker) and self._allows(one, facts, avoid, now)
        ]

    def moved(self, decision: Decision | None, target: Endpoint) -> Decision:
        """What stands in the books for a stream whose pages moved to `target`."""
        prefill = None if decision is None else decision.route.prefill
        return Decision(Route(prefill, target), None, ((target,), Choice(0)))

    def _pair(
        self,
        facts: RequestFacts,
        found: ModelFleet,
        avoid: frozenset[Endpoint],
        now: float,
        picky: bool,
        keep: Endpoint | None,
    ) -> Decision | None:
        partners: Mapping[Endpoint, tuple[Endpoint, ...]] = found.partners
        if picky:
            partners = self._usable_partners(partners, facts, avoid, now)
            if not partners:
                return None
        prefills = tuple(partners) if picky else found.paired
        if keep is not None and keep in partners:
            first = Choice(prefills.index(keep))
        else:
            first = self._prefill_policy(Snapshot(prefills, self.memory, now), facts)
        prefill = prefills[first.index]
        decodes = partners[prefill]
        second = self._decode_policy(Snapshot(decodes, self.memory, now), facts)
        decode = decodes[second.index]
        route = found.route(prefill, decode)
        if self.remembers:
            self.memory.routed(facts, route.endpoints[self._remembered], now)
        if picky:
            self.links.asked((prefill.incarnation, decode.incarnation), now)
            self.workers.asked(prefill.incarnation, now)
            self.workers.asked(decode.incarnation, now)
        return self._decision(route, (prefills, first), (decodes, second), facts)

    def _decision(
        self,
        route: Route,
        prefill: tuple[Sequence[Endpoint], Choice] | None,
        decode: tuple[Sequence[Endpoint], Choice],
        facts: RequestFacts,
    ) -> Decision:
        first, choice = (
            (route.decode, decode[1]) if route.prefill is None or prefill is None else (route.prefill, prefill[1])
        )
        uncached = max(1, facts.prompt_tokens - choice.cached)
        names = self.memory.header(facts, route.decode) if self.remembers else b""
        lines = PREFIX_LINE % names if names else b""
        return Decision(route, prefill, decode, uncached, first.queued_tokens + uncached, lines)

    def _usable_partners(
        self,
        partners: Mapping[Endpoint, tuple[Endpoint, ...]],
        facts: RequestFacts,
        avoid: frozenset[Endpoint],
        now: float,
    ) -> dict[Endpoint, tuple[Endpoint, ...]]:
        usable: dict[Endpoint, tuple[Endpoint, ...]] = {}
        for prefill, decodes in partners.items():
            if self._allows(prefill, facts, avoid, now):
                left = tuple(
                    one
                    for one in decodes
                    if self._allows(one, facts, avoid, now)
                    and self.links.allows((prefill.incarnation, one.incarnation), now)
                )
                if left:
                    usable[prefill] = left
        return usable

    def _allows(self, endpoint: Endpoint, facts: RequestFacts, avoid: frozenset[Endpoint], now: float) -> bool:
        return (
            endpoint not in avoid
            and (not facts.weights or endpoint.weight_digest == facts.weights)
            and self.workers.allows(endpoint.incarnation, now)
        )

    def _too_short(self, facts: RequestFacts, found: ModelFleet) -> bool:
        """Whether dividing would cost more than it gives: what is not cached of the prompt is little."""
        limit = self.config.divide_from
        if not found.decode:
            return False
        held = self.memory.held(facts, found.decode) if facts.prompt_tokens >= limit else ()
        return facts.prompt_tokens - (held[0][0] if held else 0) < limit

    def _other_model(self, facts: RequestFacts) -> ModelFleet | None:
        """The only model when none was named. "default" is what workers, too, take for theirs."""
        models = self.fleet.models
        if facts.model in ("", "default"):
            if len(models) > 1:
                raise InvalidRequest(f"name a model; there are {', '.join(sorted(models))}", "model")
            return next(iter(models.values()), None)
        if facts.model not in self._seen_models and models:
            raise NotFound(f"there is no model {facts.model!r}; there are {', '.join(sorted(models))}")
        return None
