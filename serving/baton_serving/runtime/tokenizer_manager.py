"""The API process's side of the pipeline: requests out to the scheduler, text back, one terminal reply for each."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from baton_serving.errors import (
    BatonError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    Unavailable,
    error_from_code,
)
from baton_serving.runtime.channels import Pull, Push
from baton_serving.runtime.gate import Gate
from baton_serving.runtime.liveness import Liveness
from baton_serving.runtime.messages import (
    AbortInput,
    ApiInput,
    CacheChanged,
    ControlInput,
    ControlReply,
    Failure,
    GenerateInput,
    SchedulerInput,
    TextBatch,
    TextOutput,
    WorkerState,
)
from baton_serving.runtime.outputs import is_terminal, merge
from baton_serving.runtime.requests import ChoiceOutput, GenerateRequest, RequestRecord
from baton_serving.runtime.served import UNKNOWN_WEIGHTS, ServedWeights

log = logging.getLogger(__name__)

CONTROL_TIMEOUT: Final = 60.0  # seconds; control calls are short, an answer that late will not come


class RequestObserver(Protocol):
    """Is told what happens to every request; must not block."""

    def started(self, record: RequestRecord) -> None: ...

    def produced(self, record: RequestRecord, index: int, tokens: int, now: float) -> None:
        """`tokens` new tokens of choice `index`; the record is as it was before them."""
        ...

    def finished(self, record: RequestRecord) -> None: ...

    def failed(self, failure: Failure) -> None:
        """The worker failed; open requests are about to end with `failure`."""
        ...


class _OpenRequest:
    """A request between admission and its terminal reply, with what its reader has not taken yet.

    Memory stays bounded for slow readers: per choice there is one pending output, which grows by merging.
    """

    def __init__(self, request: GenerateRequest, serial: int, weights: ServedWeights) -> None:
        self.request = request
        self.weights = weights
        # What the scheduler calls the choices: never used twice, though a client may use its rid again.
        self.choice_rids = [f"{request.rid}/{serial}.{index}" for index in range(len(request.choices))]
        self.record = RequestRecord.of(request)
        self.unfinished = set(range(len(request.choices)))
        self.failure: Failure | None = None
        self._pending: dict[int, TextOutput] = {}
        self._ready = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether the reader has seen everything."""
        return not (self.unfinished or self._pending or self.failure)

    def deliver(self, index: int, output: TextOutput) -> None:
        earlier = self._pending.get(index)
        if earlier is None:
            self._pending[index] = output
        else:
            earlier.text += output.text
            merge(earlier.tokens, output.tokens)
        self._ready.set()

    def fail(self, failure: Failure) -> None:
        if self.failure is None:
            self.failure = failure
        self._ready.set()

    async def take(self, deadline: float | None) -> list[ChoiceOutput]:
        """What came since the last call, waiting for something (TimeoutError at the loop's time `deadline`)."""
        async with asyncio.timeout_at(deadline):
            await self._ready.wait()
        self._ready.clear()
        taken = [
            ChoiceOutput(index, output.text, output.tokens, self.weights) for index, output in self._pending.items()
        ]
        self._pending.clear()
        return taken


class TokenizerManager:
    """Owns all open requests of the API process. Used from one event loop only.

    Start it with `start()` inside the loop. Observers see every request from admission to its end; `cache_changed` is
    called with the blocks that entered and that left the prefix cache. Requests pass its `gate` first; at most
    `max_waiting` wait there while it is shut.
    """

    def __init__(
        self,
        to_scheduler: Push[SchedulerInput],
        inbox: Pull[ApiInput],
        observers: Sequence[RequestObserver] = (),
        cache_changed: Callable[[Sequence[int], Sequence[int]], None] | None = None,
        weights: ServedWeights | None = None,
        max_waiting: int | None = None,
    ) -> None:
        self._to_scheduler = to_scheduler
        self._cache_changed = cache_changed
        self._inbox = inbox
        self._observers = observers
        self._open: dict[str, _OpenRequest] = {}
        self._by_choice: dict[str, tuple[_OpenRequest, int]] = {}
        self._controls: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._serials = itertools.count()
        self._dead: Failure | None = None
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.liveness = Liveness()
        self.gate = Gate(max_waiting)
        self.weights = weights or UNKNOWN_WEIGHTS  # what requests that begin now are answered with
        self.stats: Mapping[str, float] = {}
        self.links: Mapping[str, float] = {}

    def start(self) -> None:
        """Begin to read replies, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inbox.socket.fileno(), self._read)
        self._loop.call_soon(self._read)

    async def close(self) -> None:
        """Fail what is open and stop reading. The sockets stay the caller's."""
        self.end_all(Failure("unavailable", "the worker is shutting down"))
        if self._loop is not None:
            self._loop.remove_reader(self._inbox.socket.fileno())
            self._loop = None

    @property
    def open_requests(self) -> int:
        return len(self._open)

    def drain(self) -> None:
        """Refuse new requests from now on; open ones go on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Return once no request is open."""
        await self._idle.wait()

    @property
    def alive(self) -> bool:
        """Whether the processes behind this one live and the scheduler's tick moves."""
        return self._dead is None and self.liveness.alive

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self.alive and not self._draining

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[ChoiceOutput, None]:
        """The outputs of all choices as they come; each choice's last one carries its `finish`.

        Raises the BatonError that ended the request when it did not end well: then all of its choices are over.
        Leaving the iterator early aborts what is unfinished (use `contextlib.aclosing`).
        """
        deadline = None if request.timeout is None else asyncio.get_running_loop().time() + request.timeout
        await self._pass_gate(request, deadline)
        opened = self._admit(request)
        try:
            self._submit(opened)
            while not opened.over:
                for output in await opened.take(deadline):
                    yield output
                if opened.failure is not None:
                    raise _error(opened.failure)
        except TimeoutError:
            error = DeadlineExceeded(f"the request did not end within {request.timeout:g} s")
            opened.record.outcome, opened.record.message = error.code, error.message
            raise error from None
        except BatonError as error:
            opened.record.outcome, opened.record.message = error.code, error.message
            raise
        finally:
            self._release(opened)

    async def _pass_gate(self, request: GenerateRequest, deadline: float | None) -> None:
        """Wait until the worker takes requests; one that is tied to another worker is refused instead."""
        if self.gate.is_open or request.past_gate:
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self.gate.passed(may_wait=all(choice.handoff is None for choice in request.choices))
        except TimeoutError:
            raise DeadlineExceeded(f"the request could not begin within {request.timeout:g} s") from None

    def abort(self, rid: str, reason: str = "aborted") -> bool:
        """Ask the scheduler to end request `rid` (all when empty); False when it is not open. Its reply ends it."""
        found = list(self._open.values()) if not rid else [self._open[rid]] if rid in self._open else []
        for opened in found:
            self._abort_choices(opened, reason)
        return bool(found)

    def choice_rid(self, rid: str, choice: int) -> str:
        """What the scheduler calls a choice of an open request. Raises NotFound."""
        opened = self._open.get(rid)
        if opened is None or not 0 <= choice < len(opened.choice_rids):
            raise NotFound(f"no request {rid!r} with a choice {choice} is open here")
        return opened.choice_rids[choice]

    async def control(
        self, method: str, args: Mapping[str, Any] | None = None, patience: float = CONTROL_TIMEOUT
    ) -> dict[str, Any]:
        """Call a handler of the scheduler. Raises what it answers, or DeadlineExceeded after `patience` seconds."""
        if self._dead is not None:
            raise _error(self._dead)
        call_id = uuid.uuid4().hex
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._controls[call_id] = future
        try:
            self._to_scheduler.send(ControlInput(id=call_id, method=method, args=dict(args or {})))
            async with asyncio.timeout(patience):
                return await future
        except TimeoutError:
            raise DeadlineExceeded(f"the scheduler did not answer {method} within {patience:g} s") from None
        finally:
            del self._controls[call_id]

    def fail_all(self, failure: Failure) -> None:
        """`end_all` after a fault, such as the death of a child process: observers are told first.

        From another thread: `loop.call_soon_threadsafe(manager.fail_all, failure)`.
        """
        if self._dead is None:
            for observer in self._observers:
                observer.failed(failure)
            self.end_all(failure)

    def end_all(self, failure: Failure) -> None:
        """End every open request and control call with `failure`, and refuse new ones from now on."""
        self._dead = failure
        self.gate.fail(_error(failure))
        for opened in self._open.values():
            opened.fail(failure)
        for future in self._controls.values():
            if not future.done():
                future.set_exception(_error(failure))

    def _admit(self, request: GenerateRequest) -> _OpenRequest:
        if self._dead is not None:
            raise _error(self._dead)
        if self._draining:
            raise Unavailable("the worker is shutting down: send the request to another")
        if request.rid in self._open:
            raise InvalidRequest(f"a request with rid {request.rid!r} is already running: choose another", param="rid")
        opened = _OpenRequest(request, next(self._serials), self.weights)
        self._open[request.rid] = opened
        self._idle.clear()
        for index, rid in enumerate(opened.choice_rids):
            self._by_choice[rid] = (opened, index)
        for observer in self._observers:
            observer.started(opened.record)
        return opened

    def _submit(self, opened: _OpenRequest) -> None:
        request = opened.request
        deadline = 0.0 if request.timeout is None else time.monotonic() + request.timeout
        for index, choice in enumerate(request.choices):
            self._to_scheduler.send(
                GenerateInput(
                    rid=opened.choice_rids[index],
                    input_ids=request.prompts[choice.prompt],
                    params=choice.params,
                    output_ids=list(choice.output_ids),
                    stream=request.stream,
                    logprobs=choice.logprobs,
                    priority=request.priority,
                    handoff=choice.handoff,
                    received=request.received,
                    deadline=deadline,
                    trace=request.trace,
                    embed=choice.embed,
                )
            )

    def _release(self, opened: _OpenRequest) -> None:
        if opened.unfinished and self._dead is None:
            self._abort_choices(opened, opened.record.message or "the client went away")
        for rid in opened.choice_rids:
            del self._by_choice[rid]
        del self._open[opened.request.rid]
        if not self._open:
            self._idle.set()
        record = opened.record
        if not record.outcome:
            record.outcome = "disconnected" if opened.unfinished else record.finish_kinds[0]
        record.finished = time.time()
        for observer in self._observers:
            observer.finished(record)

    def _abort_choices(self, opened: _OpenRequest, reason: str) -> None:
        for index in sorted(opened.unfinished):
            self._to_scheduler.send(AbortInput(rid=opened.choice_rids[index], reason=reason))

    def _read(self) -> None:
        """Take in all that has arrived. ZeroMQ's descriptor stays readable until a receive finds nothing more."""
        try:
            for message in self._inbox.drain():
                self._handle(message)
        except Exception as error:  # nobody else would see it, and requests would hang
            log.exception("reading replies failed")
            self.fail_all(Failure(InternalError.code, f"the API process cannot read replies: {error}"))

    def _handle(self, message: ApiInput) -> None:
        if isinstance(message, TextBatch):
            now = time.time()
            for output in message.outputs:
                self._handle_output(output, now)
        elif isinstance(message, WorkerState):
            self.liveness.observe(message)
            self.stats, self.links = message.stats, message.links
        elif isinstance(message, CacheChanged):
            if self._cache_changed is not None:
                self._cache_changed(message.stored, message.removed)
        else:
            self._handle_control(message)

    def _handle_output(self, output: TextOutput, now: float) -> None:
        """Outputs of requests that are over here (the client went away) are dropped."""
        found = self._by_choice.get(output.rid)
        if found is None:
            return
        opened, index = found
        if index not in opened.unfinished:
            return
        tokens = output.tokens
        self._note(opened.record, index, output, now)
        if is_terminal(tokens):
            opened.unfinished.discard(index)
        if tokens.token_ids or tokens.failure is None:
            opened.deliver(index, output)
        if tokens.failure is not None:
            opened.fail(tokens.failure)

    def _note(self, record: RequestRecord, index: int, output: TextOutput, now: float) -> None:
        tokens = output.tokens
        if tokens.token_ids:
            for observer in self._observers:
                observer.produced(record, index, len(tokens.token_ids), now)
            record.first_token = record.first_token or now
            record.last_output[index] = now
            record.output_ids[index] += tokens.token_ids
            record.texts[index].append(output.text)
        record.cached_tokens[index] = tokens.cached_tokens or record.cached_tokens[index]
        record.timings = tokens.timings or record.timings
        if tokens.finish is not None:
            record.finish_kinds[index] = tokens.finish.kind

    def _handle_control(self, reply: ControlReply) -> None:
        future = self._controls.get(reply.id)
        if future is None or future.done():
            return
        if reply.error is None:
            future.set_result(reply.result)
        else:
            future.set_exception(_error(reply.error))


def _error(failure: Failure) -> BatonError:
    return error_from_code(failure.code, failure.message, failure.param)
