"""`baton serve`: the API process of a worker, from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import os
import signal
import socket
from pathlib import Path

import uvloop

from baton_bootstrap.announce import announce
from baton_bootstrap.errors import SetupError
from baton_bootstrap.files import LOOK_EVERY, Stamp, stamp
from baton_bootstrap.records import Role
from baton_bootstrap.tls import Tls
from baton_serving import logs
from baton_serving.api.app import create_app, create_probe_app
from baton_serving.api.grpc.server import GrpcServer
from baton_serving.api.node import serve_node
from baton_serving.api.options import AppOptions
from baton_serving.api.server import bind, http_server, reserve
from baton_serving.api.state import Service
from baton_serving.config import ResolvedConfig, ServerConfig
from baton_serving.config.check import addresses, check
from baton_serving.errors import BatonError, ConfigError, InternalError, Unavailable
from baton_serving.runtime.assigned import Assigned
from baton_serving.runtime.bootstrap_access import as_assigned, tls_of
from baton_serving.runtime.cache_feed import CacheFeed
from baton_serving.runtime.crash_dump import CrashDump
from baton_serving.runtime.identity import Identity
from baton_serving.runtime.messages import Failure
from baton_serving.runtime.metrics import Metrics
from baton_serving.runtime.reachable import reachable_host, url_of
from baton_serving.runtime.registration import Registration, worker_record
from baton_serving.runtime.request_log import RequestLog
from baton_serving.runtime.request_spans import RequestSpans
from baton_serving.runtime.requests import Choice, GenerateRequest
from baton_serving.runtime.served import ServedWeights
from baton_serving.runtime.stages import Stages
from baton_serving.runtime.tokenizer_manager import RequestObserver, TokenizerManager
from baton_serving.runtime.updater import Updater
from baton_serving.runtime.vocabulary import NO_VOCABULARY
from baton_serving.runtime.watchdog import GcWarnings
from baton_serving.runtime.worker import Worker, WorkerFacts, load_intake
from baton_serving.sampling.params import SamplingParams
from baton_serving.tracing import Tracing

log = logging.getLogger(__name__)

DRAIN_VARIABLE = "BATON_DRAIN_SECONDS"  # set by a deployment: how long open requests may take to end
DRAIN_SECONDS = "25"  # below Kubernetes' default grace period of 30
_END_SECONDS = 10.0  # for all processes of a worker to end after it


def serve(config: ServerConfig) -> int:
    """Serve until SIGTERM or SIGINT, or until a child dies. Returns the exit status: 0, or 1 after a death.

    Raises ConfigError, before anything slow where that is possible, for what the caller must change.
    """
    check(config)
    logs.configure("api", config.logging.log_level, config.logging.log_level_http or "warning")
    http = config.http
    meeting = addresses("--disaggregation-bootstrap-addr", config.disaggregation.disaggregation_bootstrap_addr)
    probe_port, open_probes = http.probe_port, contextlib.nullcontext(None)
    with (
        bind(http.host, http.port) as listener,
        open_probes if probe_port is None else bind(http.host, probe_port, "--probe-port") as probes,
        reserve("--grpc-port", http.host, http.grpc_port),
    ):
        tls = _tls(config)
        listening, port = listener.getsockname()[:2]
        host = reachable_host(listening, meeting)
        if config.nodes.node_rank > 0:
            return _serve_node(config, host, listener, tls, probes)
        config = as_assigned(config)
        with Worker(config, Identity.fresh(host, port)) as worker:
            stages = Stages(config.logging.show_time_cost)
            facts = worker.start()
            stages.over("all of the ranks and the detokenizer")
            api = _ApiProcess(worker, facts, listener, tls, probes)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(api.run())


def _serve_node(
    config: ServerConfig, host: str, listener: socket.socket, tls: Tls | None, probes: socket.socket | None
) -> int:
    """All that a node above 0 has to answer is probes."""
    patience = _drain_seconds() + _END_SECONDS
    if probes is not None:
        listener.close()
        return serve_node(config, host, probes, None, patience)
    return serve_node(config, host, listener, None if tls is None else tls.server, patience)


class _ApiProcess:
    """What lives on the API process's event loop."""

    def __init__(
        self,
        worker: Worker,
        facts: WorkerFacts,
        listener: socket.socket,
        tls: Tls | None,
        probes: socket.socket | None,
    ) -> None:
        self._worker = worker
        self._facts = facts
        self._config = facts.config
        self._listener = listener
        self._tls = tls
        self._probes = probes
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._status = 0
        self._tracing: Tracing | None = None
        self._grpc_port = 0
        self._intake, self._tokenizer = load_intake(facts)
        self._options = _app_options(self._config, facts)
        given = self._config.given
        served = ServedWeights(
            facts.rank.weight_digest, given.api.weight_version, given.model.model_path, facts.identity.incarnation
        )
        self._labels = {
            "model": self._options.served_model_name,
            "weight_digest": served.digest,
            "role": given.disaggregation.disaggregation_mode,
        }
        self._metrics = Metrics(self._labels)
        self._cache_feed = (
            None if given.optimization.disable_radix_cache else CacheFeed(served.digest, facts.rank.page_size)
        )
        self._manager = TokenizerManager(
            worker.to_scheduler,
            worker.inbox,
            self._observers(),
            None if self._cache_feed is None else self._cache_feed.changed,
            served,
            given.memory.max_queued_requests,
        )
        self._updater = Updater(self._manager, self._weights_changed, self._opened)
        self._registration: Registration | None = None
        self._following: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def run(self) -> int:
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)
        self._worker.watch(self._child_died_soon)
        self._manager.start()
        service = Service(self._manager, self._intake, self._options, self._metrics, self._updater, self._cache_feed)
        tls = None if self._tls is None else self._tls.server
        server = http_server(create_app(service), self._config.log_level_http, tls)
        refreshing = asyncio.create_task(_refresh(self._tls))
        grpc_server = await self._start_grpc(service)
        if not self._config.given.http.skip_server_warmup:
            stages = Stages(self._config.given.logging.show_time_cost)
            await _warm_up(self._manager)
            stages.over("the warm-up request")
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        probing = asyncio.create_task(self._answer_probes(service))
        await self._register()
        self._announce()
        # Else full collections look through all that was imported, for some 50 ms in which no stream goes on.
        GcWarnings(self._config.given.logging.gc_warning_threshold_secs).install()
        gc.set_threshold(50_000, 20, 50)
        await asyncio.wait([asyncio.create_task(self._stopping.wait()), serving], return_when=asyncio.FIRST_COMPLETED)
        for task in (self._following, self._renewing):
            if task is not None:
                task.cancel()
        if self._registration is not None:
            self._registration.drain("stopping")
        self._manager.drain()
        await _drain(self._manager)
        if self._cache_feed is not None:
            self._cache_feed.close()
        server.should_exit = True
        await serving
        refreshing.cancel()
        probing.cancel()
        await asyncio.wait([probing])
        if grpc_server is not None:
            await grpc_server.stop()
        if self._registration is not None:
            await self._registration.close()
        await self._manager.close()
        if self._tokenizer is not None:
            self._tokenizer.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        return self._status

    async def _answer_probes(self, service: Service) -> None:
        if self._probes is not None:
            await http_server(create_probe_app(service)).serve(sockets=[self._probes])

    def _observers(self) -> list[RequestObserver]:
        observers: list[RequestObserver] = [self._metrics]
        if self._cache_feed is not None:
            observers.append(self._cache_feed)
        given = self._config.given.logging
        if given.log_requests:
            vocabulary = NO_VOCABULARY if self._tokenizer is None else self._tokenizer.vocabulary
            observers.append(RequestLog(given.log_requests_level, vocabulary))
        if given.enable_trace:
            self._tracing = Tracing(f"baton-worker-{self._options.served_model_name}", given.otlp_traces_endpoint)
            observers.append(RequestSpans(self._tracing, lambda: self._labels["role"]))
        if given.crash_dump_folder is not None:
            observers.append(CrashDump(Path(given.crash_dump_folder), self._options.server_args))
        return observers

    async def _start_grpc(self, service: Service) -> GrpcServer | None:
        options = self._config.given.http
        if options.grpc_port is None:
            return None
        tls = None if self._tls is None else self._tls.files
        server = GrpcServer(service, options.host, options.grpc_port, tls)
        self._grpc_port = await server.start()
        return server

    async def _register(self) -> None:
        """Be found by others, and follow what is assigned."""
        if not self._config.bootstrap_addrs:
            return
        port = self._listener.getsockname()[1]
        record = worker_record(self._config, self._facts.identity, self._facts.rank, port)
        registration = Registration(self._config, record, self._manager, lambda news: assigned.hear(news))
        assigned = Assigned(
            self._updater,
            registration.report,
            lambda draining: registration.drain("assignment", draining),
            lambda role: self._role_taken(registration.take_role(role)),
        )
        await registration.start()
        self._registration = registration
        self._following = asyncio.create_task(assigned.run())
        self._renewing = asyncio.create_task(self._renew_keys(registration))

    async def _renew_keys(self, registration: Registration) -> None:
        """Have the handoff take renewed keys over."""
        path = self._config.given.disaggregation.disaggregation_curve_key_file
        seen: Stamp = ()
        while path is not None:
            found = stamp([Path(path)])
            if found != seen:
                try:
                    renewed = await self._manager.control("keys_renew")
                except BatonError as error:
                    log.warning("keys not taken over yet: %s", error.message)
                else:
                    seen = found
                    registration.be_reached(renewed["control"], renewed["control_key"])
            await asyncio.sleep(LOOK_EVERY)

    def _weights_changed(self, weights: ServedWeights) -> None:
        self._labels["weight_digest"] = weights.digest
        if self._cache_feed is not None:
            self._cache_feed.rename(weights.digest)
        if self._registration is not None:
            self._registration.serve(weights.digest, weights.incarnation)

    def _role_taken(self, role: Role) -> None:
        if role is not Role.BOTH:
            self._labels["role"] = role

    def _opened(self, is_open: bool) -> None:
        if self._registration is not None:
            self._registration.drain("gate", not is_open)

    def _child_died_soon(self, name: str, exit_code: int | None) -> None:
        """From the watching thread."""
        self._loop.call_soon_threadsafe(self._child_died, name, exit_code)

    def _child_died(self, name: str, exit_code: int | None) -> None:
        if self._stopping.is_set():
            return
        log.error("%s ended with exit code %s: the worker goes down with it", name, exit_code)
        self._status = 1
        message = f"the worker failed: {name} ended with exit code {exit_code}"
        self._manager.fail_all(Failure(InternalError.code, message))
        self._stopping.set()

    def _announce(self) -> None:
        port = self._listener.getsockname()[1]
        path = self._config.given.http.announce_file
        url = url_of(self._facts.identity.host, port, secure=self._tls is not None)
        facts: dict[str, str | int] = {"url": url, "http_port": port}
        if self._grpc_port:
            facts["grpc_port"] = self._grpc_port
        announce(facts, Path(path) if path else None)


def _tls(config: ServerConfig) -> Tls | None:
    files = tls_of(config)
    try:
        return None if files is None else Tls(files)
    except SetupError as error:
        raise ConfigError(f"--ssl-certfile: {error}") from error


async def _refresh(tls: Tls | None) -> None:
    while tls is not None:
        await asyncio.sleep(LOOK_EVERY)
        tls.refresh()


async def _warm_up(manager: TokenizerManager) -> None:
    """One short request of our own, so that the first client does not pay for first-time work."""
    params = SamplingParams(max_new_tokens=4, temperature=0.0, ignore_eos=True)
    request = GenerateRequest("warm-up", [[0] * 8], [Choice(prompt=0, params=params)], route="warm-up")
    async for _ in manager.generate(request):
        pass


def _drain_seconds() -> float:
    return float(os.environ.get(DRAIN_VARIABLE) or DRAIN_SECONDS)


async def _drain(manager: TokenizerManager) -> None:
    """Let open requests end, up to a bound, then fail the rest."""
    try:
        async with asyncio.timeout(_drain_seconds()):
            await manager.wait_idle()
    except TimeoutError:
        manager.end_all(Failure(Unavailable.code, "the worker is shutting down"))


def _app_options(config: ResolvedConfig, facts: WorkerFacts) -> AppOptions:
    given = config.given
    return AppOptions(
        served_model_name=config.served_model_name,
        tokenizer_path=config.tokenizer_path,
        api_key=given.api.api_key,
        enable_cache_report=given.api.enable_cache_report,
        stream_output=given.runtime.stream_output,
        is_embedding=given.model.is_embedding,
        tool_call_parser=given.api.tool_call_parser,
        server_args=_server_args(config, facts),
        page_size=facts.rank.page_size,
        memory_tags=["kv_cache", "weights"] if config.device == "cuda" else ["kv_cache"],
    )


def _server_args(config: ResolvedConfig, facts: WorkerFacts) -> dict[str, object]:
    """The flags in force, secrets left out, and what became of those that were left open."""
    groups = dataclasses.asdict(config.given)
    args: dict[str, object] = {}
    for group in groups.values():
        args.update(group)
    args.pop("api_key")
    decided = dataclasses.asdict(dataclasses.replace(config, model_overrides={}, preferred_sampling_params={}))
    decided.pop("given")
    args.update(decided)
    args.update(facts.rank.to_plain())
    plain: dict[str, object] = json.loads(json.dumps(args, default=list))
    return plain
