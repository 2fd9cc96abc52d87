"""Which workers there are and which of them belong together: rebuilt from every view, read by every request."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from baton_bootstrap.records import Entry, Role, State, Status, Worker
from baton_bootstrap.tls import Tls
from baton_serving.gateway.http.upstream import Pool
from baton_serving.logs import fields

if TYPE_CHECKING:
    from baton_serving.gateway.leg import Leg


log = logging.getLogger(__name__)

Key = tuple[str, str]  # worker id, incarnation


class Endpoint:
    """One worker process as this gateway deals with it; a restarted worker is another endpoint. A policy's `Candidate`.

    `responsive` is what health checks say. `sent_tokens` are prompt tokens sent from here that are not computed yet.
    `named` once it has said in an answer who it is: from then on, who does not is somebody else.
    """

    __slots__ = (
        *("_reported", "id", "incarnation", "legs", "named", "pool", "responsive", "sent_tokens", "status"),
        *("used_tokens", "weight_digest", "worker"),
    )

    def __init__(self, worker: Worker, status: Status, pool: Pool) -> None:
        self.id = worker.id
        self.incarnation = worker.incarnation
        self.pool = pool
        self._take(worker, status)
        self.legs: set[Leg] = set()
        self.responsive = True
        self.named = False
        self.sent_tokens = 0

    @property
    def key(self) -> Key:
        return self.id, self.incarnation

    def update(self, worker: Worker, status: Status) -> bool:
        """Take over what the bootstrap server knows now; whether that is more than another load."""
        before, was = self.worker, self.status
        self._take(worker, status)
        return (before, was.state, was.share) != (worker, status.state, status.share)

    def _take(self, worker: Worker, status: Status) -> None:
        self.worker = worker
        self.weight_digest = worker.weight_digest
        self.status = status
        self._reported = load = status.load
        self.used_tokens = (load.total_pages - load.free_pages) * worker.page_size

    @property
    def usable(self) -> bool:
        return self.responsive and self.status.state is State.READY

    @property
    def running(self) -> int:
        """Requests there: as reported, or as sent from here where that is ahead of the report."""
        reported, sent = self._reported.running, len(self.legs)
        return sent if sent > reported else reported

    @property
    def queued_tokens(self) -> int:
        reported, sent = self._reported.queued_tokens, self.sent_tokens
        return sent if sent > reported else reported


class Route:
    """Where an attempt goes. Without `prefill` the request runs whole on `decode`. `line` is a header for clients."""

    __slots__ = ("decode", "endpoints", "line", "prefill")

    def __init__(self, prefill: Endpoint | None, decode: Endpoint) -> None:
        self.prefill = prefill
        self.decode = decode
        self.endpoints: tuple[Endpoint, ...] = (decode,) if prefill is None else (prefill, decode)
        self.line = b"x-baton-route: %b\r\n" % str(self).encode()

    def __str__(self) -> str:
        return ">".join(endpoint.id for endpoint in self.endpoints)


@dataclass(frozen=True)
class ModelFleet:
    """The usable workers of one model, each list in order of ids.

    `partners` maps each prefill worker that has any to the decode workers that can take its KV; `paired` are those.
    `shares` maps each version that can serve, by weight digest, to its weight among new requests.
    Lists that are equal are one tuple, and stay so until the fleet changes: what is worked out for one is kept.
    """

    prefill: tuple[Endpoint, ...]
    decode: tuple[Endpoint, ...]
    whole: tuple[Endpoint, ...]
    partners: Mapping[Endpoint, tuple[Endpoint, ...]]
    paired: tuple[Endpoint, ...] = ()
    shares: Mapping[str, int] = field(default_factory=dict)
    _routes: dict[tuple[Endpoint | None, Endpoint], Route] = field(default_factory=dict)

    def route(self, prefill: Endpoint | None, decode: Endpoint) -> Route:
        """The one object for this way, made when it is first taken."""
        found = self._routes.get((prefill, decode))
        if found is None:
            found = self._routes[prefill, decode] = Route(prefill, decode)
        return found

    @cached_property
    def uneven(self) -> bool:
        """Whether versions have different shares, so that one is to be drawn for a request."""
        return len(set(self.shares.values())) > 1

    @property
    def serves(self) -> bool:
        """Whether some worker here is meant to give answers; a prefill worker alone does so only in need."""
        return bool(self.decode or self.whole)


def fits(prefill: Worker, decode: Worker) -> bool:
    """Whether KV of one may be decoded by the other: same weights, same pages."""
    return (prefill.weight_digest, prefill.page_size, prefill.dtype) == (
        decode.weight_digest,
        decode.page_size,
        decode.dtype,
    )


def group(endpoints: Iterable[Endpoint]) -> dict[str, ModelFleet]:
    """The usable endpoints by model name."""
    by_model: dict[str, dict[Role, list[Endpoint]]] = {}
    for endpoint in sorted(endpoints, key=lambda one: one.id):
        if endpoint.usable:
            roles = by_model.setdefault(endpoint.worker.model, {role: [] for role in Role})
            roles[endpoint.worker.role].append(endpoint)
    return {model: _model_fleet(roles) for model, roles in by_model.items()}


def _model_fleet(roles: Mapping[Role, list[Endpoint]]) -> ModelFleet:
    partners: dict[Endpoint, tuple[Endpoint, ...]] = {}
    shared: dict[tuple[Endpoint, ...], tuple[Endpoint, ...]] = {}
    for prefill in roles[Role.PREFILL]:
        found = tuple(one for one in roles[Role.DECODE] if fits(prefill.worker, one.worker))
        if found:
            partners[prefill] = shared.setdefault(found, found)
    return ModelFleet(
        prefill=tuple(roles[Role.PREFILL]),
        decode=tuple(roles[Role.DECODE]),
        whole=tuple(roles[Role.BOTH]),
        partners=partners,
        paired=tuple(partners),
        shares={one.weight_digest: one.status.share for one in (*roles[Role.DECODE], *roles[Role.BOTH])},
    )


class Fleet:
    """All endpoints and the models they serve. An endpoint missing from a view keeps its legs until it is expired."""

    def __init__(self, tls: Tls | None = None, key: str | None = None) -> None:
        """`tls` and `key`, an API key, are for workers."""
        self._tls = tls
        self._key = key
        self.models: Mapping[str, ModelFleet] = {}
        self.endpoints: dict[Key, Endpoint] = {}
        self.absent: dict[Key, Endpoint] = {}

    def update(self, entries: Iterable[Entry]) -> list[Endpoint]:
        """Take over a view; returns the endpoints that were there before and no longer are."""
        known = self.absent | self.endpoints
        before, self.endpoints = self.endpoints, {}
        changed = False
        for entry in entries:
            key = entry.worker.id, entry.worker.incarnation
            endpoint = known.pop(key, None) or _endpoint(entry, self._tls, self._key)
            if endpoint is not None:
                changed |= endpoint.update(entry.worker, entry.status)
                self.endpoints[key] = endpoint
        self.absent = known
        if changed or before.keys() != self.endpoints.keys():
            self.regroup()
        return [endpoint for key, endpoint in before.items() if key in known]

    def regroup(self) -> None:
        """Some endpoint became usable, or no longer is."""
        self.models = group(self.endpoints.values())

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


def _endpoint(entry: Entry, tls: Tls | None, key: str | None) -> Endpoint | None:
    """None for a worker whose address cannot be used: it is shown by the bootstrap server, but gets no requests."""
    try:
        return Endpoint(entry.worker, entry.status, Pool(entry.worker.http_url, tls, key))
    except ValueError as error:
        log.warning("worker left out", extra=fields(worker=entry.worker.id, reason=str(error)))
        return None
