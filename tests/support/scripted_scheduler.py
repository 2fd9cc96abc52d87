"""A scheduler that says what a test tells it to, over the real sockets of a worker."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq

from baton_serving.runtime.channels import Addresses, Pull, Push
from baton_serving.runtime.messages import (
    AbortInput,
    ApiInput,
    ControlInput,
    ControlReply,
    DetokenizerInput,
    Failure,
    Finish,
    GenerateInput,
    SchedulerInput,
    StopFound,
    StreamState,
    Timings,
    TokenBatch,
    TokenOutput,
    WorkerState,
)
from baton_serving.sampling.params import TokenLogprobs


@dataclass
class Script:
    """An answer: `tokens` one per step, then `end`; without an end the request hangs until it is aborted.

    `gate`: nothing beyond the first `free` tokens is said before the test sets it.
    """

    tokens: list[int] = field(default_factory=list)
    end: Finish | Failure | None = field(default_factory=lambda: Finish("stop", 0))
    cached: int = 0
    per_step: int = 1
    gate: threading.Event | None = None
    free: int = 0


@dataclass
class _Running:
    message: GenerateInput
    script: Script
    position: int = 0

    @property
    def limit(self) -> int:
        return self.message.params.max_new_tokens - len(self.message.output_ids)


class ScriptedScheduler:
    """Runs in a thread. `script` turns each request into its answer; the lists record what the API asked for."""

    def __init__(self, addresses: Addresses, script: Callable[[GenerateInput], Script]) -> None:
        self.script = script
        self.received: list[GenerateInput] = []
        self.aborted: list[AbortInput] = []
        self.stopped: list[StopFound] = []
        self.controls: dict[str, Callable[[dict[str, Any]], dict[str, Any] | Failure]] = {
            "flush_cache": lambda args: {"pages": 7, "idle": True},
            "ready": lambda args: {},
        }
        self.stats: dict[str, float] = {"requests_running": 1, "requests_waiting": 2, "pages_in_use": 3}
        self.ticking = True
        self._tick = 0
        self._running: dict[str, _Running] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox: Pull[SchedulerInput] = Pull(self._context, addresses.scheduler, SchedulerInput)
        self._to_detokenizer: Push[DetokenizerInput] = Push(self._context, addresses.detokenizer)
        self._to_api: Push[ApiInput] = Push(self._context, addresses.api)
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="scripted-scheduler")
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._inbox.close()
        self._to_detokenizer.close()
        self._to_api.close()
        self._context.term()

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until the records fulfil `condition`; the event loop goes on meanwhile."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(condition, seconds)

        assert await asyncio.to_thread(wait), "the scheduler did not get there"

    def _run(self) -> None:
        last_state = 0.0
        while not self._stopping.is_set():
            if self.ticking and time.monotonic() - last_state > 0.05:
                last_state = time.monotonic()
                self._tick += 1
                self._to_api.send(WorkerState(tick=self._tick, stats=self.stats))
            self._inbox.socket.poll(1 if self._running else 20)
            for message in self._inbox.drain():
                self._take(message)
            self._step()

    def _take(self, message: SchedulerInput) -> None:
        with self._changed:
            if isinstance(message, GenerateInput):
                self.received.append(message)
                self._begin(message)
            elif isinstance(message, AbortInput):
                self.aborted.append(message)
                self._abort(message)
            elif isinstance(message, StopFound):
                self.stopped.append(message)
                self._running.pop(message.rid, None)
            else:
                self._to_api.send(self._control(message))
            self._changed.notify_all()

    def _begin(self, message: GenerateInput) -> None:
        self._running[message.rid] = _Running(message, self.script(message))
        state = StreamState(
            rid=message.rid,
            prompt_tail=message.input_ids[-8:],
            params=message.params,
            stream=message.stream,
            output_ids=message.output_ids,
        )
        self._to_detokenizer.send(TokenBatch(opened=[state]))

    def _abort(self, message: AbortInput) -> None:
        for rid in [message.rid] if message.rid else list(self._running):
            running = self._running.pop(rid, None)
            if running is not None:
                self._say(running, [], Finish("abort", message.reason))

    def _control(self, message: ControlInput) -> ControlReply:
        handler = self.controls.get(message.method)
        result = Failure("not_found", f"no call {message.method}") if handler is None else handler(message.args)
        if isinstance(result, Failure):
            return ControlReply(id=message.id, error=result)
        return ControlReply(id=message.id, result=result)

    def _step(self) -> None:
        for rid, running in list(self._running.items()):
            script = running.script
            if script.gate is not None and running.position >= script.free and not script.gate.is_set():
                continue
            room = min(len(script.tokens), running.limit)
            tokens = script.tokens[running.position : min(running.position + script.per_step, room)]
            running.position += len(tokens)
            end = script.end if running.position >= room else None
            if running.position >= running.limit and room < len(script.tokens):
                end = Finish("length")
            if tokens or end is not None:
                self._say(running, tokens, end)
            if end is not None:
                del self._running[rid]

    def _say(self, running: _Running, tokens: list[int], end: Finish | Failure | None) -> None:
        message = running.message
        options = message.logprobs
        output = TokenOutput(
            rid=message.rid,
            token_ids=list(tokens),
            prompt_tokens=len(message.input_ids),
            cached_tokens=running.script.cached,
            completion_tokens=len(message.output_ids) + running.position,
            finish=end if isinstance(end, Finish) else None,
            failure=end if isinstance(end, Failure) else None,
            timings=_timings(message) if isinstance(end, Finish) else None,
        )
        if message.embed:
            output.embedding = [0.6, 0.0, 0.8]
        if options is not None:
            output.logprobs = [logprob_of(token, options.top, options.token_ids) for token in tokens]
            if (options.start >= 0 or options.replay) and running.position == len(tokens):
                first = max(1, options.start) if options.start >= 0 else len(message.input_ids)
                known = message.input_ids + (message.output_ids if options.replay else [])
                output.prompt_logprobs = [logprob_of(token, options.top, options.token_ids) for token in known[first:]]
        self._to_detokenizer.send(TokenBatch(outputs=[output]))


def _timings(message: GenerateInput) -> Timings:
    known = Timings(received=message.received, transfer_bytes=64, transfer_pages=2, transport="mooncake tcp")
    known.queued, known.scheduled = message.received, message.received + 0.25
    return known


def logprob_of(token: int, top: int, token_ids: tuple[int, ...] = ()) -> TokenLogprobs:
    """A log-probability that tests can compute: minus the id over 100."""
    return TokenLogprobs(
        token_id=token,
        logprob=-token / 100,
        top=[(token + i, -(token + i) / 100) for i in range(top)],
        chosen=[(chosen, -chosen / 100) for chosen in token_ids],
    )
