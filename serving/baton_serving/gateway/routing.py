"""Keeps the fleet in step with the bootstrap server's view, and chooses the workers of each attempt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from baton_bootstrap.client import View
from baton_bootstrap.records import State
from baton_serving.errors import InvalidRequest, NotFound
from baton_serving.gateway.fleet import Endpoint, Fleet, Route
from baton_serving.gateway.leg import Inbox
from baton_serving.gateway.policies import POLICIES
from baton_serving.logs import fields

log = logging.getLogger(__name__)

ABSENCE_LIMIT = 1.0  # seconds that a worker may be missing from the view before its open requests are given up


@dataclass(frozen=True)
class RoutingConfig:
    """`attempts` bounds the pairs tried per request; `worker_wait` is how long, in seconds, one waits for a worker."""

    policy: str = "power_of_two"
    attempts: int = 3
    worker_wait: float = 1.0


class Router:
    """All calls on one loop. Raises nothing of its own but what `route` says."""

    def __init__(self, config: RoutingConfig) -> None:
        self.config = config
        self.fleet = Fleet()
        self._policy = POLICIES[config.policy]
        self._tickets = count()
        self._waiting: set[Inbox] = set()
        self._seen_models: set[str] = set()

    def route(self, model: str | None, avoid: frozenset[Endpoint]) -> Route | None:
        """Workers for one attempt; None when none is ready.

        Raises `NotFound` for a model that no worker ever offered, `InvalidRequest` when none is named among several.
        """
        models = self.fleet.models
        if model is None:
            if len(models) > 1:
                raise InvalidRequest(f"name a model; there are {', '.join(sorted(models))}", "model")
            model = next(iter(models), "")
        elif model not in models and model not in self._seen_models and models:
            raise NotFound(f"there is no model {model!r}; there are {', '.join(sorted(models))}")
        found = models.get(model)
        return None if found is None else found.route(self._policy, next(self._tickets), avoid)

    @contextmanager
    def waiting(self, inbox: Inbox) -> Iterator[None]:
        """Within it, `inbox` is poked whenever the fleet changes."""
        self._waiting.add(inbox)
        try:
            yield
        finally:
            self._waiting.discard(inbox)

    def update(self, view: View) -> None:
        """Take over a view; requests on workers that are gone for good are told so."""
        for endpoint in self.fleet.update(view.entries.values()):
            replaced = self.fleet.replaced(endpoint)
            delay = 0.0 if replaced else ABSENCE_LIMIT
            asyncio.get_running_loop().call_later(delay, self._give_up, endpoint)
        for endpoint in self.fleet.endpoints.values():
            if endpoint.status.state is State.STALLED:
                _give_up_waiting(endpoint)
        self._seen_models.update(self.fleet.models)
        for inbox in self._waiting:
            inbox.poke()

    def _give_up(self, endpoint: Endpoint) -> None:
        if endpoint.legs and self.fleet.lives_on(endpoint):  # what its process began it ends, whatever it serves now
            asyncio.get_running_loop().call_later(ABSENCE_LIMIT, self._give_up, endpoint)
            return
        if not self.fleet.expire(endpoint):
            return
        log.info("worker gone", extra=fields(worker=endpoint.worker.id, requests=len(endpoint.legs)))
        endpoint.pool.close()
        for leg in list(endpoint.legs):
            leg.fail("it left the bootstrap server's view")


def _give_up_waiting(endpoint: Endpoint) -> None:
    """A stalled worker may recover: what it already streams goes on, what still waits for it is tried elsewhere."""
    for leg in list(endpoint.legs):
        if not leg.delivering:
            leg.fail("its scheduler stands still")
