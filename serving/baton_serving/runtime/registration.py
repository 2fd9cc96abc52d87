"""How a worker stands at the bootstrap server: who it is, what it serves, and how busy it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from baton_bootstrap.client import RegistrationClient
from baton_bootstrap.records import Assignment, Beat, Load, Progress, Role, State, Worker
from baton_serving.config import ResolvedConfig
from baton_serving.runtime.bootstrap_access import bootstrap_addresses, bootstrap_token, tls_of
from baton_serving.runtime.identity import Identity
from baton_serving.runtime.rank_facts import RankFacts
from baton_serving.runtime.reachable import url_of
from baton_serving.runtime.tokenizer_manager import TokenizerManager

log = logging.getLogger(__name__)

REGISTRATION_WAIT: Final = 5.0  # seconds
_ROLES = {"prefill": Role.PREFILL, "decode": Role.DECODE, "null": Role.BOTH}


def worker_record(config: ResolvedConfig, identity: Identity, facts: RankFacts, port: int) -> Worker:
    """What the registry holds of a worker that answers HTTP at its host's `port`.

    Its keys are the names by which a router may call its bootstrap: SGLang's sends the host of the worker's URL with a
    bootstrap port, or without one. Where several workers share a host, such a key names none of them.
    """
    given, host = config.given.disaggregation, identity.host
    keys = [f"{host}:{port}"]
    if given.disaggregation_mode == "prefill":
        keys += [host, f"{host}:{given.disaggregation_bootstrap_port}"]
    return Worker(
        id=identity.id,
        incarnation=identity.incarnation,
        epoch=identity.epoch,
        process=identity.incarnation,
        role=_ROLES[given.disaggregation_mode],
        http_url=url_of(host, port, secure=config.given.http.ssl_certfile is not None),
        control=facts.handoff_endpoint,
        control_key=facts.handoff_key,
        keys=tuple(keys),
        model=config.served_model_name,
        weight_digest=facts.weight_digest,
        engine_digest=facts.engine_digest,
        tp_size=config.tp_size,
        pp_size=1,
        page_size=facts.page_size,
        dtype=facts.kv_dtype,
        max_total_tokens=facts.max_total_tokens,
    )


class Registration:
    """Keeps the worker registered and sends its heartbeats; lives on the API process's loop.

    `on_assignment` hears what this worker is to serve.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        record: Worker,
        manager: TokenizerManager,
        on_assignment: Callable[[Assignment], None] = lambda assignment: None,
    ) -> None:
        self._manager = manager
        self._own_role = record.role
        self._draining: set[str] = set()
        self._progress = Progress()
        self._client = RegistrationClient(
            bootstrap_addresses(config),
            record,
            self._beat,
            token=bootstrap_token(),
            tls=tls_of(config.given),
            on_assignment=on_assignment,
        )

    async def start(self) -> None:
        """Register, and return once others can find the worker. With no server up it serves anyway, and tries on."""
        await self._client.start()
        try:
            async with asyncio.timeout(REGISTRATION_WAIT):
                await self._client.registered()
        except TimeoutError:
            log.warning("no bootstrap server answers: nobody finds this worker until one does")

    def drain(self, reason: str, draining: bool = True) -> None:
        """Tell everyone at once that no new work should come here, for as long as any `reason` holds."""
        (self._draining.add if draining else self._draining.discard)(reason)
        self._client.poke()

    def report(self, progress: Progress) -> None:
        """Tell everyone where the worker stands with its assignment."""
        self._progress = progress
        self._client.poke()

    def serve(self, digest: str, incarnation: str) -> None:
        """Be another worker from now on: the same process, other weights."""
        self._client.replace(
            msgspec.structs.replace(
                self._client.worker, weight_digest=digest, incarnation=incarnation, epoch=time.time_ns()
            )
        )

    def take_role(self, role: Role | None) -> Role:
        """Offer to serve as this, None for what the worker was started for; the role that it has from now on.

        Requests that it has go on as they began. A worker without a handoff has no legs to offer.
        """
        known = self._client.worker
        role = role if role is not None and known.control else self._own_role
        if role is not known.role:
            self._client.replace(msgspec.structs.replace(known, role=role))
        return role

    def be_reached(self, control: str, control_key: str) -> None:
        """Have peers dial another endpoint of the handoff, which shows another key."""
        known = self._client.worker
        if (known.control, known.control_key) != (control, control_key):
            self._client.replace(msgspec.structs.replace(known, control=control, control_key=control_key))

    async def close(self) -> None:
        await self._client.aclose()

    def _beat(self) -> Beat:
        stats = self._manager.stats
        load = Load(
            running=int(stats.get("requests_running", 0) + stats.get("requests_prefilling", 0)),
            queued_tokens=int(stats.get("tokens_waiting", 0)),
            free_pages=int(stats.get("pages_free", 0) + stats.get("pages_evictable", 0)),
            total_pages=int(stats.get("pages_total", 0)),
            prompt_tokens=int(stats.get("computed_tokens_total", 0)),
            prompt_seconds=stats.get("prompt_seconds_total", 0.0),
            answer_tokens=int(stats.get("answer_tokens_total", 0)),
            answer_seconds=stats.get("answer_seconds_total", 0.0),
        )
        state = State.DRAINING if self._draining else State.READY
        busy = self._manager.liveness.busy_seconds
        return Beat(
            state=state,
            load=load,
            tick=int(stats.get("tick", 0)),
            busy_seconds=busy,
            progress=self._progress,
            links=dict(self._manager.links),
        )
