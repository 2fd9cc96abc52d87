"""The whole API side of a worker around a scripted scheduler: detokenizer, manager, app, uvicorn on a free port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import zmq
from support.scripted_scheduler import Script, ScriptedScheduler
from support.tiny_tokenizer import tiny_tokenizer

from baton_serving.api.app import create_app
from baton_serving.api.options import AppOptions
from baton_serving.api.server import bind, http_server
from baton_serving.api.state import Service
from baton_serving.runtime.channels import Addresses, Pull, Push
from baton_serving.runtime.detokenizer import Detokenizer, DetokenizerState
from baton_serving.runtime.intake import Intake
from baton_serving.runtime.messages import ApiInput, DetokenizerInput, GenerateInput, SchedulerInput, TokenBatch
from baton_serving.runtime.metrics import Metrics
from baton_serving.runtime.served import ServedWeights
from baton_serving.runtime.tokenizer_manager import RequestObserver, TokenizerManager
from baton_serving.runtime.updater import Updater
from baton_serving.sampling.validate import Limits

WEIGHTS = ServedWeights("d1ge57", path="models/tiny")
CONTEXT = 512
VOCAB = 420
OPTIONS = AppOptions(
    served_model_name="tiny",
    tokenizer_path="models/tiny",
    enable_cache_report=True,
)


def says(text: str, **fields: Any) -> Callable[[GenerateInput], Script]:
    """Every request is answered with `text` and the end token."""
    tokens = tiny_tokenizer().encode(text)
    return lambda message: Script([*tokens, 0], **fields)


class DetokenizerThread:
    """The real detokenizer over real sockets, in a thread rather than a process."""

    def __init__(self, addresses: Addresses, stream_interval: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        inbox: Pull[DetokenizerInput] = Pull(self._context, addresses.detokenizer, DetokenizerInput)
        to_api: Push[ApiInput] = Push(self._context, addresses.api)
        to_scheduler: Push[SchedulerInput] = Push(self._context, addresses.scheduler)
        self._address = addresses.detokenizer
        self._sockets = (inbox, to_api, to_scheduler)
        self.state = DetokenizerState(tiny_tokenizer().vocabulary, stream_interval)
        self._stopping = threading.Event()
        detokenizer = Detokenizer(self.state, inbox, to_api, to_scheduler)
        self._thread = threading.Thread(target=lambda: detokenizer.run(lambda: not self._stopping.is_set()))
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        wake: Push[DetokenizerInput] = Push(self._context, self._address)
        wake.send(TokenBatch())
        self._thread.join()
        wake.close()
        for socket in self._sockets:
            socket.close()
        self._context.term()


@dataclass
class World:
    """A running API. `url` has no trailing slash."""

    scheduler: ScriptedScheduler
    manager: TokenizerManager
    detokenizer: DetokenizerThread
    service: Service
    url: str
    port: int


@asynccontextmanager
async def pipeline(
    script: Callable[[GenerateInput], Script], stream_interval: int = 1, observers: tuple[RequestObserver, ...] = ()
) -> AsyncIterator[tuple[ScriptedScheduler, TokenizerManager, DetokenizerThread]]:
    """Scheduler, manager and detokenizer, without HTTP."""
    addresses = Addresses.create(1)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox: Pull[ApiInput] = Pull(context, addresses.api, ApiInput)
    to_scheduler: Push[SchedulerInput] = Push(context, addresses.scheduler)
    detokenizer = DetokenizerThread(addresses, stream_interval)
    scheduler = ScriptedScheduler(addresses, script)
    manager = TokenizerManager(to_scheduler, inbox, observers, weights=WEIGHTS)
    manager.start()
    await manager.control("ready")  # the scheduler's first state has come before this answer
    try:
        yield scheduler, manager, detokenizer
    finally:
        await manager.close()
        await asyncio.to_thread(scheduler.close)
        await asyncio.to_thread(detokenizer.close)
        inbox.close()
        to_scheduler.close()
        context.term()
        addresses.remove()


def intake(**fields: Any) -> Intake:
    return replace(Intake(tiny_tokenizer(), Limits(VOCAB, CONTEXT)), **fields)


@asynccontextmanager
async def api_world(
    script: Callable[[GenerateInput], Script],
    options: AppOptions = OPTIONS,
    stream_interval: int = 1,
    reads: Intake | None = None,
    observers: tuple[RequestObserver, ...] = (),
) -> AsyncIterator[World]:
    """Everything, with a uvicorn server on a free port."""
    metrics = Metrics({"model": options.served_model_name})
    async with pipeline(script, stream_interval, (metrics, *observers)) as (scheduler, manager, detokenizer):
        updater = Updater(manager, lambda weights: None, lambda is_open: None)
        service = Service(manager, reads or intake(), options, metrics, updater)
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server = http_server(create_app(service))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield World(scheduler, manager, detokenizer, service, f"http://127.0.0.1:{port}", port)
        finally:
            server.should_exit = True
            await serving
