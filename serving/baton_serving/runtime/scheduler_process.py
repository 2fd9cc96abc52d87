"""The process of one rank: rank 0 schedules and computes, the others compute what rank 0 says."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

import zmq

from baton_serving import logs
from baton_serving.config import ResolvedConfig, ServerConfig
from baton_serving.handoff.rim import Limits
from baton_serving.model.options import ModelInfo
from baton_serving.runtime.cache_log import CacheLog
from baton_serving.runtime.channels import Addresses, Pull, Push
from baton_serving.runtime.facts import resolve_here
from baton_serving.runtime.figures import Figures
from baton_serving.runtime.followers import Followers, follow
from baton_serving.runtime.handoff_ranks import FollowerEngines
from baton_serving.runtime.handoff_setup import Handoff, transfer_factory
from baton_serving.runtime.identity import Identity
from baton_serving.runtime.lone_leg import LoneLeg
from baton_serving.runtime.loop import SchedulerLoop
from baton_serving.runtime.messages import ApiInput, DetokenizerInput, GenerateInput, SchedulerInput
from baton_serving.runtime.process import Reporter
from baton_serving.runtime.rank import Rank, build_rank, logit_processors, rank_facts
from baton_serving.runtime.rank_sockets import RankSockets
from baton_serving.runtime.watchdog import GcWarnings, Watchdog
from baton_serving.runtime.weight_updates import WeightUpdates
from baton_serving.runtime.weights import RankWeights
from baton_serving.scheduling.config import SchedulerConfig
from baton_serving.scheduling.request import Request
from baton_serving.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)


def rank_main(given: ServerConfig, identity: Identity, tp_rank: int, addresses: Addresses, reporter: Reporter) -> None:
    """Entry point of a rank's process; returns when told to stop.

    Rank 0 decides what the configuration leaves open and where the ranks meet, and tells the parent, which passes it to
    the other ranks.
    """
    logs.configure(f"rank{tp_rank}", given.logging.log_level, given.logging.log_level_http or "warning")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    config: ResolvedConfig
    sockets = None
    if tp_rank == 0:
        config = resolve_here(given)
        sockets = RankSockets(context, addresses, given.runtime.nccl_port or 0)
        addresses = sockets.addresses
        reporter.tell((config, addresses))
    else:
        config, addresses = reporter.hear()
    rank = build_rank(config, tp_rank, addresses.rendezvous, None if sockets is None else sockets.listening)
    gc_warnings = GcWarnings(config.given.logging.gc_warning_threshold_secs)
    gc_warnings.install()
    if sockets is not None:
        _lead(config, identity, rank, context, sockets, reporter)
    else:
        _follow(config, identity, rank, context, addresses, reporter)


def scheduler_config(config: ResolvedConfig) -> SchedulerConfig:
    """The scheduler's part of the configuration."""
    memory, optimization = config.given.memory, config.given.optimization
    return SchedulerConfig(
        context_len=config.context_length,
        max_running_requests=config.max_running_requests,
        max_queued_requests=memory.max_queued_requests,
        max_prefill_tokens=memory.max_prefill_tokens,
        chunked_prefill_size=config.chunked_prefill_size,
        enable_mixed_chunk=optimization.enable_mixed_chunk,
        schedule_policy=memory.schedule_policy,
        schedule_conservativeness=memory.schedule_conservativeness,
        disable_radix_cache=optimization.disable_radix_cache,
        allow_auto_truncate=config.given.api.allow_auto_truncate,
        num_reserved_decode_tokens=config.given.disaggregation.num_reserved_decode_tokens,
        random_seed=config.random_seed,
    )


def request_maker(info: ModelInfo, digest: Callable[[], str]) -> Callable[[GenerateInput], Request]:
    """Turns messages into the scheduler's requests. Their KV is shared only with requests of the same weights, whose
    `digest` may change between two requests."""
    eos = frozenset(info.eos_token_ids)

    def make_request(message: GenerateInput) -> Request:
        return Request(
            message.rid,
            message.input_ids,
            message.params,
            eos_ids=eos,
            namespace=digest(),
            priority=message.priority,
            logprobs=message.logprobs,
            output=message.output_ids,  # sent by another worker: generation goes on after them
            received=message.received,
            embed=message.embed,
        )

    return make_request


def _follow(
    config: ResolvedConfig,
    identity: Identity,
    rank: Rank,
    context: zmq.Context[zmq.Socket[bytes]],
    addresses: Addresses,
    reporter: Reporter,
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # rank 0 may be gone: nobody will say stop
    engines = None
    weights = RankWeights(rank)
    if _transfers(config):
        name, timeout = identity.incarnation, Limits().write
        engines = FollowerEngines(context, addresses, rank, transfer_factory(config, identity.host), name, timeout)
    follow(rank.executor, rank.parallel.tp_rank, context, addresses, weights.handlers, lambda: reporter.ready({}))
    weights.close()
    if engines is not None:
        engines.close()


def _transfers(config: ResolvedConfig) -> bool:
    given = config.given.disaggregation
    return given.disaggregation_mode != "null" and given.disaggregation_transfer_backend != "fake"


def _lead(
    config: ResolvedConfig,
    identity: Identity,
    rank: Rank,
    context: zmq.Context[zmq.Socket[bytes]],
    sockets: RankSockets,
    reporter: Reporter,
) -> None:
    addresses = sockets.addresses
    sockets.meet(config.dist_timeout, transfers=_transfers(config))
    inbox: Pull[SchedulerInput] = Pull(context, addresses.scheduler, SchedulerInput)
    to_detokenizer: Push[DetokenizerInput] = Push(context, addresses.detokenizer)
    to_api: Push[ApiInput] = Push(context, addresses.api)
    followers = Followers(sockets, config.dist_timeout)
    cache_log = None if config.given.optimization.disable_radix_cache else CacheLog()
    scheduler = Scheduler(scheduler_config(config), rank.loaded.kv_layout, rank.pool.pages, observer=cache_log)
    handoff = Handoff(config, identity, rank, scheduler, sockets) if _transfers(config) else None
    mode = config.given.disaggregation.disaggregation_mode
    lone = LoneLeg(scheduler, mode) if handoff is None and mode != "null" else None
    watchdog = Watchdog(config.given.runtime.watchdog_timeout)
    weights = RankWeights(rank)
    updates = WeightUpdates(weights, followers, scheduler, handoff, lambda seconds: loop.declare(seconds))
    loop = SchedulerLoop(
        scheduler,
        rank.executor,
        followers,
        inbox,
        to_detokenizer,
        to_api,
        request_maker(rank.loaded.info, lambda: weights.digest),
        watchdog,
        Figures(scheduler),
        overlap=not config.given.optimization.disable_overlap_schedule,
        log_interval=config.given.logging.decode_log_interval,
        extension=lone if handoff is None else handoff.bridge,
        cache_log=cache_log,
        controls={**updates.controls, **({} if handoff is None else handoff.controls)},
        updates=updates,
    )
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    reached = ("", "") if handoff is None else (handoff.service.endpoint, handoff.key)
    reporter.ready(rank_facts(rank, logit_processors(config), *reached).to_plain())
    watchdog.start()
    try:
        loop.run()
    finally:
        watchdog.stop()
        weights.close()
        if handoff is not None:
            handoff.close()
        if lone is not None:
            lone.close()
        followers.stop()
        to_detokenizer.close(linger_ms=200)
        to_api.close(linger_ms=200)
        inbox.close()
        sockets.close()
        context.term()
