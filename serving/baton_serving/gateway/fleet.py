"""Which workers there are and which of them belong together: rebuilt from every view, read by every request."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING

from baton_bootstrap.records import Entry, Role, State, Status, Worker
from baton_serving.gateway.policies import Policy, weighted
from baton_serving.gateway.upstream import Pool
from baton_serving.logs import fields

if TYPE_CHECKING:
    from baton_serving.gateway.leg import Leg


log = logging.getLogger(__name__)

Key = tuple[str, str]  # worker id, incarnation


@dataclass(eq=False)
class Endpoint:
    """One worker process as this gateway deals with it; a restarted worker is another endpoint."""

    worker: Worker
    status: Status
    pool: Pool
    legs: set[Leg] = dataclass_field(default_factory=set)

    @property
    def key(self) -> Key:
        return self.worker.id, self.worker.incarnation

    @property
    def running(self) -> int:
        """Requests there: as reported, or as sent from here where that is ahead of the report."""
        return max(self.status.load.running, len(self.legs))

    @property
    def queued_tokens(self) -> int:
        return self.status.load.queued_tokens


@dataclass(frozen=True)
class Route:
    """Where one attempt goes. Without `prefill` the request runs whole on `decode`."""

    prefill: Endpoint | None
    decode: Endpoint

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    def __str__(self) -> str:
        return ">".join(endpoint.worker.id for endpoint in self.endpoints)


@dataclass(frozen=True)
class ModelFleet:
    """The ready workers of one model. `partners` maps each prefill worker that has any to its decode workers, `shares`
    each version that can serve, by weight digest, to its weight among new requests.
    """

    partners: Mapping[Endpoint, tuple[Endpoint, ...]]
    whole: tuple[Endpoint, ...]
    decode: tuple[Endpoint, ...]
    shares: Mapping[str, int] = dataclass_field(default_factory=dict)

    def route(self, policy: Policy, ticket: int, avoid: frozenset[Endpoint] = frozenset()) -> Route | None:
        """A pair of equal weights, else a worker that serves whole, else a decode worker alone; none of `avoid`.

        Where versions have different shares, one is drawn first; the others serve when it cannot.
        """
        if len(set(self.shares.values())) > 1:
            drawn = weighted(self.shares, ticket)
            others = {e for e in (*self.partners, *self.whole, *self.decode) if e.worker.weight_digest != drawn}
            found = self._route(policy, ticket, avoid | others)
            if found is not None:
                return found
        return self._route(policy, ticket, avoid)

    def _route(self, policy: Policy, ticket: int, avoid: frozenset[Endpoint]) -> Route | None:
        prefills = [
            prefill
            for prefill, partners in self.partners.items()
            if prefill not in avoid and not avoid.issuperset(partners)
        ]
        if prefills:
            prefill = policy(prefills, ticket)
            return Route(prefill, policy([one for one in self.partners[prefill] if one not in avoid], ticket))
        for alone in (self.whole, self.decode):
            usable = [endpoint for endpoint in alone if endpoint not in avoid]
            if usable:
                return Route(None, policy(usable, ticket))
        return None


def fits(prefill: Worker, decode: Worker) -> bool:
    """Whether KV of one may be decoded by the other: same weights, same pages."""
    return (prefill.weight_digest, prefill.page_size, prefill.dtype) == (
        decode.weight_digest,
        decode.page_size,
        decode.dtype,
    )


def group(endpoints: Iterable[Endpoint]) -> dict[str, ModelFleet]:
    """The ready endpoints by model name."""
    by_model: dict[str, dict[Role, list[Endpoint]]] = {}
    for endpoint in endpoints:
        if endpoint.status.state is State.READY:
            roles = by_model.setdefault(endpoint.worker.model, {role: [] for role in Role})
            roles[endpoint.worker.role].append(endpoint)
    return {
        model: ModelFleet(
            partners={
                prefill: partners
                for prefill in roles[Role.PREFILL]
                if (partners := tuple(one for one in roles[Role.DECODE] if fits(prefill.worker, one.worker)))
            },
            whole=tuple(roles[Role.BOTH]),
            decode=tuple(roles[Role.DECODE]),
            shares={one.worker.weight_digest: one.status.share for one in (*roles[Role.DECODE], *roles[Role.BOTH])},
        )
        for model, roles in by_model.items()
        if roles[Role.DECODE] or roles[Role.BOTH]
    }


class Fleet:
    """All endpoints and the models they serve. An endpoint missing from a view keeps its legs until it is expired."""

    def __init__(self) -> None:
        self.models: Mapping[str, ModelFleet] = {}
        self.endpoints: dict[Key, Endpoint] = {}
        self.absent: dict[Key, Endpoint] = {}

    def update(self, entries: Iterable[Entry]) -> list[Endpoint]:
        """Take over a view; returns the endpoints that were there before and no longer are."""
        known = self.absent | self.endpoints
        before, self.endpoints = self.endpoints, {}
        for entry in entries:
            key = entry.worker.id, entry.worker.incarnation
            endpoint = known.pop(key, None) or _endpoint(entry)
            if endpoint is not None:
                endpoint.worker, endpoint.status = entry.worker, entry.status
                self.endpoints[key] = endpoint
        self.absent = known
        self.models = group(self.endpoints.values())
        return [endpoint for key, endpoint in before.items() if key in known]

    def replaced(self, endpoint: Endpoint) -> bool:
        """Whether another incarnation of the same worker is there."""
        return any(worker_id == endpoint.worker.id for worker_id, _ in self.endpoints)

    def lives_on(self, endpoint: Endpoint) -> bool:
        """Whether its process is there under another incarnation: it serves other weights now."""
        process = endpoint.worker.process
        return bool(process) and any(other.worker.process == process for other in self.endpoints.values())

    def expire(self, endpoint: Endpoint) -> bool:
        """Give up an absent endpoint; false when it has come back."""
        return self.absent.pop(endpoint.key, None) is not None


def _endpoint(entry: Entry) -> Endpoint | None:
    """None for a worker whose address cannot be used: it is shown by the bootstrap server, but gets no requests."""
    try:
        return Endpoint(entry.worker, entry.status, Pool(entry.worker.http_url))
    except ValueError as error:
        log.warning("worker left out", extra=fields(worker=entry.worker.id, reason=str(error)))
        return None
