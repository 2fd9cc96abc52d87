"""One leg without the other, for benchmarks (`--disaggregation-transfer-backend fake`): nothing is transferred.

A prefill worker computes prompts and lets go of them. A decode worker takes every prompt's KV for arrived: its pages
hold whatever they held before, the first token is made up, and what it generates from there on means nothing.
"""

from __future__ import annotations

import itertools
import logging
import os
import time

from baton_serving.errors import BatonError, InvalidRequest
from baton_serving.runtime.messages import Failure, Finish, GenerateInput, TokenOutput
from baton_serving.scheduling.events import Snapshot
from baton_serving.scheduling.request import Request
from baton_serving.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)


class LoneLeg:
    """A `LoopExtension`. `mode` is "prefill" or "decode": the leg that every request runs here, ticket or not."""

    def __init__(self, scheduler: Scheduler, mode: str) -> None:
        self._scheduler = scheduler
        self._mode = mode
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waiting: dict[str, Request] = {}
        self._open: set[str] = set()
        self._refused: list[TokenOutput] = []
        log.warning("the %s leg runs alone, with made-up KV: answers are for benchmarks only", mode)

    @property
    def wake_fd(self) -> int:
        return self._wake_fd

    def links(self) -> dict[str, float]:
        """None: its KV is made up."""
        return {}

    def stats(self) -> dict[str, float]:
        return {"handoff_waiting": len(self._waiting)}

    def admit(self, message: GenerateInput, request: Request) -> bool:
        """True on decode, where the request waits here for pages (InvalidRequest when it asks for logprobs)."""
        if self._mode == "prefill":
            request.handoff = True
            self._open.add(request.rid)
            return False
        if message.logprobs is not None:
            raise InvalidRequest("made-up KV has no log-probabilities: leave return_logprob out", "return_logprob")
        request.timings.queued = time.time()
        self._waiting[request.rid] = request
        return True

    def aborted(self, rid: str, reason: str) -> None:
        for known in [rid] if rid else list(self._waiting):
            request = self._waiting.pop(known, None)
            if request is not None:
                self._refused.append(_last(request, finish=Finish("abort", reason)))

    def ended(self, output: TokenOutput) -> None:
        if output.rid in self._open:
            self._open.discard(output.rid)
            self._scheduler.handoff_done(output.rid)

    def busy(self, tick: int, seconds: float) -> None:
        """Nobody is to be told."""

    def poll(self, tick: int) -> list[TokenOutput]:
        for request in list(self._waiting.values()):
            try:
                if self._scheduler.reserve(request) is None:
                    break
            except BatonError as error:
                self._refused.append(_last(request, failure=Failure(error.code, error.message)))
            else:
                self._adopt(request)
            del self._waiting[request.rid]
        refused, self._refused = self._refused, []
        return refused

    def planned(self) -> None:
        """Nobody is to be told."""

    def booked(self) -> None:
        for event in self._scheduler.take_handoffs():
            if isinstance(event, Snapshot) or event.rid not in self._open:
                self._scheduler.handoff_done(event.rid)

    def close(self) -> None:
        os.close(self._wake_fd)

    def _adopt(self, request: Request) -> None:
        request.timings.scheduled = request.timings.transferred = time.time()
        token = next(token for token in itertools.count() if token not in request.eos_ids)
        drawn = [token] if len(request.output) < request.limit else []
        self._scheduler.adopt(request.rid, [*request.output, *drawn], unsent=len(drawn), logprobs=[])


def _last(request: Request, finish: Finish | None = None, failure: Failure | None = None) -> TokenOutput:
    """The only output of a request that the scheduler never knew."""
    request.timings.finished = time.time()
    return TokenOutput(
        rid=request.rid,
        prompt_tokens=len(request.prompt),
        completion_tokens=len(request.output),
        finish=finish,
        failure=failure,
        timings=request.timings,
    )
