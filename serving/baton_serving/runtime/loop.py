"""The scheduler loop of rank 0: receive, schedule the next step, launch it, book the previous one, send its tokens.

With overlap the device works on step n+1 while the host books step n; without, a step is booked before the next one is
planned, and only its tokens go out meanwhile. Where the host is the device nothing can overlap, and tokens go out
before the next step begins. The loop does nothing slow itself: no look-ups, no HTTP, no sends that could block.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import zmq

from baton_serving.errors import InvalidRequest
from baton_serving.runtime.cache_log import CacheLog
from baton_serving.runtime.channels import Pull, Push
from baton_serving.runtime.control_calls import ControlCalls, ControlHandler
from baton_serving.runtime.figures import Figures
from baton_serving.runtime.followers import Followers
from baton_serving.runtime.foresight import LONG_STEP, Foresight
from baton_serving.runtime.messages import (
    AbortInput,
    ApiInput,
    ControlInput,
    DetokenizerInput,
    Failure,
    GenerateInput,
    SchedulerInput,
    StopFound,
    StreamState,
    TokenBatch,
    WorkerState,
)
from baton_serving.runtime.watchdog import Watchdog
from baton_serving.scheduling.events import TokenOutput
from baton_serving.scheduling.request import Request
from baton_serving.scheduling.scheduler import Scheduler
from baton_serving.scheduling.step import StepPlan, StepResult

log = logging.getLogger(__name__)

STATE_INTERVAL = 0.25  # seconds between two reports of tick and pools
IDLE_POLL_MS = 250
PROMPT_TAIL = 16  # tokens of the prompt that the detokenizer needs: a character may begin there


class LaunchedStep(Protocol):
    """A step on the device: the executor's `PendingStep`."""

    def result(self) -> StepResult: ...


class StepRunner(Protocol):
    """What the loop launches steps on: the executor, or a stand-in that measures the loop."""

    @property
    def immediate(self) -> bool:
        """Whether a step is over when `launch` returns."""
        ...

    def launch(self, plan: StepPlan) -> LaunchedStep: ...


class LoopExtension(Protocol):
    """A part of the worker that lives on the loop's turns: the handoff."""

    @property
    def wake_fd(self) -> int:
        """File descriptor that becomes readable when `poll` has something to do."""
        ...

    def stats(self) -> dict[str, float]:
        """Its gauges and counters."""
        ...

    def links(self) -> dict[str, float]:
        """Bytes a second at which KV pages come from other workers, by worker."""
        ...

    def admit(self, message: GenerateInput, request: Request) -> bool:
        """Take charge of a new request; False leaves it to the scheduler."""
        ...

    def aborted(self, rid: str, reason: str) -> None:
        """The request, or every one (""), is to end; also called for requests that are not the extension's."""
        ...

    def ended(self, output: TokenOutput) -> None:
        """The scheduler put out the last output of a request."""
        ...

    def busy(self, tick: int, seconds: float) -> None:
        """The loop is about to stand still for up to `seconds`."""
        ...

    def poll(self, tick: int) -> list[TokenOutput]:
        """Take in what happened since the last turn, and return last outputs of requests that it was in charge of."""
        ...

    def planned(self) -> None:
        """A step was planned and is about to be launched."""
        ...

    def booked(self) -> None:
        """A step was booked."""
        ...


class LoopUpdates(Protocol):
    """What changes the weights between two steps."""

    @property
    def paused(self) -> bool:
        """No step may be launched."""
        ...

    def poll(self) -> None:
        """Go on with what takes more than one turn."""
        ...


class SchedulerLoop:
    """Owns the scheduler; runs on the main thread of rank 0's process until `stop`."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: StepRunner,
        followers: Followers,
        inbox: Pull[SchedulerInput],
        to_detokenizer: Push[DetokenizerInput],
        to_api: Push[ApiInput],
        make_request: Callable[[GenerateInput], Request],
        watchdog: Watchdog,
        figures: Figures,
        *,
        overlap: bool = True,
        log_interval: int = 0,
        extension: LoopExtension | None = None,
        cache_log: CacheLog | None = None,
        controls: Mapping[str, ControlHandler] | None = None,
        updates: LoopUpdates | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._followers = followers
        self._inbox = inbox
        self._to_detokenizer = to_detokenizer
        self._to_api = to_api
        self._make_request = make_request
        self._watchdog = watchdog
        self._overlap = overlap and not executor.immediate
        self._log_interval = log_interval
        self._extension = extension
        self._cache_log = cache_log
        self._updates = updates
        handlers: dict[str, ControlHandler] = {"flush_cache": self._flush_cache, "check": self._check}
        self._controls = ControlCalls({**handlers, **(controls or {})}, to_api.send)
        self._opened: list[StreamState] = []
        self._in_flight: tuple[StepPlan, LaunchedStep, float] | None = None
        self._stopping = False
        self._tick = 0
        self._rested = self._checked = True  # nothing ran since the last report, and since the last check of the books
        self._next_state = 0.0
        self._steps = 0
        self._figures = figures
        self._foresight = Foresight()
        self._poller = zmq.Poller()
        self._poller.register(inbox.socket, zmq.POLLIN)
        if extension is not None:
            self._poller.register(extension.wake_fd, zmq.POLLIN)

    @property
    def tick(self) -> int:
        """Turns of the loop so far; it moves when idle too."""
        return self._tick

    def stop(self) -> None:
        """Leave the loop after this turn; for signal handlers."""
        self._stopping = True

    def declare(self, seconds: float) -> None:
        """Tell watchdog, API process and peers that an operation of up to `seconds` begins, in which no turn ends.

        Whatever keeps the loop longer than a step usually does calls this first; the next turn takes it back.
        """
        self._watchdog.busy(seconds)
        self._report(busy_until=time.monotonic() + seconds)
        self._next_state = 0.0
        if self._extension is not None:
            self._extension.busy(self._tick, seconds)

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopping:
            self._turn()

    def _turn(self) -> None:
        booked = None
        outputs: list[TokenOutput] = []
        if not self._overlap and (booked := self._in_flight) is not None:
            outputs += self._book(booked)
        outputs += self._receive()
        if self._updates is not None:
            self._updates.poll()
        paused = self._updates is not None and self._updates.paused
        plan = None if paused else self._scheduler.schedule()
        launched = None
        if self._extension is not None:
            self._extension.planned()
        if plan is not None:
            expected = self._foresight.expected(plan)
            if expected > LONG_STEP:
                self.declare(expected)
            if self._executor.immediate:
                self._put_out(outputs)
                outputs = []
            began = time.monotonic()
            self._followers.launch(plan)
            launched = (plan, self._executor.launch(plan), began)
        if self._overlap and (booked := self._in_flight) is not None:
            outputs += self._book(booked)
        self._in_flight = launched
        if plan is not None:
            self._foresight.took(plan, time.monotonic() - began)
        self._put_out(outputs)
        self._tick += 1
        self._watchdog.tick()
        if plan is None and booked is None:  # what was booked may have made room: plan again before resting
            self._rest()
            return
        self._rested = self._checked = False
        if time.monotonic() >= self._next_state:
            self._report()

    def _receive(self) -> list[TokenOutput]:
        """Take in all that came; returns last outputs of requests that the scheduler does not know."""
        refused: list[TokenOutput] = []
        for message in self._inbox.drain():
            match message:
                case GenerateInput():
                    refused += self._admit(message)
                case AbortInput():
                    self._abort(message)
                case StopFound():
                    self._scheduler.stop_found(message.rid, message.completion_tokens)
                case ControlInput():
                    self._controls.call(message)
        return refused + (self._extension.poll(self._tick) if self._extension is not None else [])

    def _admit(self, message: GenerateInput) -> list[TokenOutput]:
        request = self._make_request(message)
        self._opened.append(
            StreamState(
                rid=message.rid,
                prompt_tail=message.input_ids[-PROMPT_TAIL:],
                params=message.params,
                stream=message.stream,
                output_ids=message.output_ids,
            )
        )
        try:
            if self._extension is None or not self._extension.admit(message, request):
                self._scheduler.add(request)
        except InvalidRequest as error:
            failure = Failure(error.code, error.message, error.param)
            return [TokenOutput(rid=message.rid, prompt_tokens=len(message.input_ids), failure=failure)]
        return []

    def _abort(self, message: AbortInput) -> None:
        if message.rid:
            self._scheduler.abort(message.rid, message.reason)
        else:
            self._scheduler.abort_all(message.reason)
        if self._extension is not None:
            self._extension.aborted(message.rid, message.reason)

    def _book(self, launched: tuple[StepPlan, LaunchedStep, float]) -> list[TokenOutput]:
        plan, pending, launched_at = launched
        result = pending.result()
        self._steps += 1
        self._figures.stepped(plan, launched_at)
        if self._log_interval and self._steps % self._log_interval == 0:
            self._log_step(plan)
        outputs = self._scheduler.commit(plan, result)
        if self._extension is not None:
            self._extension.booked()
        return outputs

    def _put_out(self, outputs: list[TokenOutput]) -> None:
        """Send these and the scheduler's own, changes of the cache and what control calls wait for."""
        self._send(outputs + self._scheduler.take_outputs())
        self._tell_cache()
        self._controls.answer()

    def _send(self, outputs: list[TokenOutput]) -> None:
        if outputs or self._opened:
            self._figures.put_out(outputs)
            if self._extension is not None:
                for output in outputs:
                    if output.finish is not None or output.failure is not None:
                        self._extension.ended(output)
            self._to_detokenizer.send(TokenBatch(opened=self._opened, outputs=outputs))
            self._opened = []

    def _tell_cache(self) -> None:
        changed = None if self._cache_log is None else self._cache_log.take()
        if changed is not None:
            self._to_api.send(changed)

    def _rest(self) -> None:
        """Nothing to run: say so once, and wait for something to do. Check the books when nothing comes for a while."""
        idle = self._scheduler.idle
        if (idle and not self._rested) or time.monotonic() >= self._next_state:
            self._report()
        self._rested = idle
        if not self._stopping and not self._poller.poll(IDLE_POLL_MS) and idle and not self._checked:
            self._scheduler.check()
            self._checked = True

    def _report(self, busy_until: float = 0.0) -> None:
        self._next_state = time.monotonic() + STATE_INTERVAL
        stats, links = self._figures.report(self._tick), {}
        if self._extension is not None:
            stats.update(self._extension.stats())
            links = self._extension.links()
        self._to_api.send(WorkerState(tick=self._tick, stats=stats, busy_until=busy_until, links=links))

    def _log_step(self, plan: StepPlan) -> None:
        stats = self._scheduler.stats()
        log.info(
            "step %d: %d rows, %d tokens; %d running, %d waiting; pages: %d free, %d cached, %d in use",
            plan.step,
            plan.rows,
            sum(plan.lengths),
            stats["requests_running"],
            stats["requests_waiting"],
            stats["pages_free"],
            stats["pages_cached"],
            stats["pages_in_use"],
        )

    def _flush_cache(self) -> dict[str, Any]:
        """Requests that run keep their pages: the cache is only empty afterwards when there are none."""
        return {"pages": self._scheduler.flush_cache(), "flushed": self._scheduler.idle}

    def _check(self) -> dict[str, Any]:
        self._scheduler.check()
        return {"idle": self._scheduler.idle, **self._scheduler.stats()}
