"""`baton serve`: the API process of a worker, from start to drain."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import signal
import socket
from pathlib import Path

from baton_bootstrap.announce import announce
from baton_serving import logs
from baton_serving.api.app import create_app
from baton_serving.api.options import AppOptions
from baton_serving.api.server import bind, http_server
from baton_serving.api.state import Service
from baton_serving.config import ResolvedConfig, ServerConfig
from baton_serving.errors import InternalError, Unavailable
from baton_serving.runtime.facts import resolve_here
from baton_serving.runtime.messages import Failure
from baton_serving.runtime.metrics import Metrics
from baton_serving.runtime.requests import Choice, GenerateRequest
from baton_serving.runtime.tokenizer_manager import TokenizerManager
from baton_serving.runtime.worker import Worker, WorkerFacts, load_intake
from baton_serving.sampling.params import SamplingParams

log = logging.getLogger(__name__)

DRAIN_SECONDS = 25.0  # below Kubernetes' default grace period of 30


def serve(config: ServerConfig) -> int:
    """Serve until SIGTERM or SIGINT, or until a child dies. Returns the exit status: 0, or 1 after a death.

    Raises ConfigError, before anything slow where that is possible, for what the caller must change.
    """
    logs.configure("api", config.logging.log_level, config.logging.log_level_http or "warning")
    with bind(config.http.host, config.http.port) as listener:
        resolved = resolve_here(config)
        with Worker(resolved) as worker:
            facts = worker.start()
            return asyncio.run(_ApiProcess(worker, facts, listener).run())


class _ApiProcess:
    """What lives on the API process's event loop."""

    def __init__(self, worker: Worker, facts: WorkerFacts, listener: socket.socket) -> None:
        self._worker = worker
        self._facts = facts
        self._config = worker.config
        self._listener = listener
        self._status = 0

    async def run(self) -> int:
        intake, tokenizer = load_intake(self._config, self._facts)
        options = _app_options(self._config, self._facts)
        labels = {"model": options.served_model_name, "weight_digest": options.weight_digest}
        metrics = Metrics(labels, lambda: manager.stats)
        manager = TokenizerManager(self._worker.to_scheduler, self._worker.inbox, [metrics])
        manager.start()
        app = create_app(Service(manager=manager, intake=intake, options=options, metrics=metrics))
        server = http_server(app, self._config.log_level_http)
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)

        def died(name: str, exit_code: int | None) -> None:
            loop.call_soon_threadsafe(self._child_died, name, exit_code, manager, stopping)

        self._worker.watch(died)
        if not self._config.given.http.skip_server_warmup:
            await _warm_up(manager)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        self._announce()
        await asyncio.wait([asyncio.create_task(stopping.wait()), serving], return_when=asyncio.FIRST_COMPLETED)
        await _drain(manager)
        server.should_exit = True
        await serving
        await manager.close()
        if tokenizer is not None:
            tokenizer.close()
        return self._status

    def _child_died(self, name: str, exit_code: int | None, manager: TokenizerManager, stopping: asyncio.Event) -> None:
        if stopping.is_set():
            return
        log.error("%s ended with exit code %s: the worker goes down with it", name, exit_code)
        self._status = 1
        manager.fail_all(Failure(InternalError.code, f"the worker failed: {name} ended with exit code {exit_code}"))
        stopping.set()

    def _announce(self) -> None:
        host, port = self._listener.getsockname()[:2]
        path = self._config.given.http.announce_file
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        announce({"url": url, "http_port": port}, Path(path) if path else None)


async def _warm_up(manager: TokenizerManager) -> None:
    """One short request of our own, so that the first client does not pay for first-time work."""
    params = SamplingParams(max_new_tokens=4, temperature=0.0, ignore_eos=True)
    request = GenerateRequest("warm-up", [[0] * 8], [Choice(prompt=0, params=params)], route="warm-up")
    async for _ in manager.generate(request):
        pass


async def _drain(manager: TokenizerManager) -> None:
    """Let open requests end, up to a bound, then fail the rest."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            await manager.wait_idle()
    except TimeoutError:
        manager.fail_all(Failure(Unavailable.code, "the worker is shutting down"))


def _app_options(config: ResolvedConfig, facts: WorkerFacts) -> AppOptions:
    given = config.given
    return AppOptions(
        served_model_name=config.served_model_name,
        model_path=given.model.model_path,
        tokenizer_path=config.tokenizer_path,
        weight_digest=facts.rank.weight_digest,
        weight_version=given.api.weight_version,
        api_key=given.api.api_key,
        enable_cache_report=given.api.enable_cache_report,
        server_args=_server_args(config, facts),
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
