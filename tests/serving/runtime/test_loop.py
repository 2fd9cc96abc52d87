"""The scheduler loop over its sockets, with a device that answers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import zmq

from baton_serving.kv.layout import KVGroup, KVLayout
from baton_serving.runtime import loop as loop_module
from baton_serving.runtime.channels import Addresses, Pull, Push
from baton_serving.runtime.figures import Figures
from baton_serving.runtime.followers import Followers
from baton_serving.runtime.loop import SchedulerLoop, StepRunner
from baton_serving.runtime.messages import (
    AbortInput,
    ApiInput,
    ControlInput,
    ControlReply,
    DetokenizerInput,
    GenerateInput,
    SchedulerInput,
    TokenOutput,
    WorkerState,
)
from baton_serving.runtime.rank_sockets import RankSockets
from baton_serving.runtime.watchdog import Watchdog
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.config import SchedulerConfig
from baton_serving.scheduling.request import Request
from baton_serving.scheduling.scheduler import Scheduler
from baton_serving.scheduling.step import StepPlan, StepResult

PATIENCE_MS = 30_000
TOKEN = 7


@dataclass(frozen=True)
class _Done:
    plan: StepPlan

    def result(self) -> StepResult:
        return StepResult(self.plan.step, [TOKEN if sampled else -1 for sampled in self.plan.sample])


class _AtOnce:
    immediate = False

    def launch(self, plan: StepPlan) -> _Done:
        return _Done(plan)


class _InLaunch:
    """Computes a step in `launch`, when it is told to."""

    immediate = True

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)

    def launch(self, plan: StepPlan) -> _Done:
        assert self.go.acquire(timeout=PATIENCE_MS / 1000)
        return _Done(plan)


class World:
    """A loop in a thread, and the ends of its sockets that other processes hold."""

    def __init__(self, overlap: bool, runner: StepRunner | None = None) -> None:
        self._addresses = Addresses.create(1)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        inbox: Pull[SchedulerInput] = Pull(self._context, self._addresses.scheduler, SchedulerInput)
        self._detokenizer: Pull[DetokenizerInput] = Pull(self._context, self._addresses.detokenizer, DetokenizerInput)
        self._api: Pull[ApiInput] = Pull(self._context, self._addresses.api, ApiInput)
        self._to_scheduler: Push[SchedulerInput] = Push(self._context, self._addresses.scheduler)
        to_detokenizer: Push[DetokenizerInput] = Push(self._context, self._addresses.detokenizer)
        to_api: Push[ApiInput] = Push(self._context, self._addresses.api)
        layout = KVLayout(16, 1, 8, 8, "float32", (KVGroup((0,)),))
        scheduler = Scheduler(SchedulerConfig(context_len=256, max_running_requests=4), layout, 20)
        self._loop = SchedulerLoop(
            scheduler,
            runner or _AtOnce(),
            Followers(RankSockets(self._context, self._addresses), 1.0),
            inbox,
            to_detokenizer,
            to_api,
            lambda message: Request(message.rid, message.input_ids, message.params),
            Watchdog(3600.0),
            Figures(scheduler),
            overlap=overlap,
        )
        self._sockets = (inbox, self._detokenizer, self._api, self._to_scheduler, to_detokenizer, to_api)
        self._thread = threading.Thread(target=self._loop.run)
        self._thread.start()

    def send(self, message: SchedulerInput) -> None:
        self._to_scheduler.send(message)

    def ask(self, rid: str, prompt_tokens: int = 40, new_tokens: int = 6) -> None:
        params = SamplingParams(max_new_tokens=new_tokens, temperature=0.0)
        self.send(GenerateInput(rid=rid, input_ids=[1] * prompt_tokens, params=params))

    def outputs(self, rid: str) -> list[TokenOutput]:
        """What comes until the request's last output, other requests' left out."""
        seen: list[TokenOutput] = []
        while not seen or (seen[-1].finish is None and seen[-1].failure is None):
            assert self._detokenizer.socket.poll(PATIENCE_MS), f"{rid} was never answered"
            seen += [output for output in self._detokenizer.recv().outputs if output.rid == rid]
        return seen

    def token(self) -> TokenOutput:
        """The next output of any request."""
        while True:
            assert self._detokenizer.socket.poll(PATIENCE_MS), "no token came"
            for output in self._detokenizer.recv().outputs:
                return output

    def heard(self) -> ApiInput:
        assert self._api.socket.poll(PATIENCE_MS), "the loop is silent"
        return self._api.recv()

    def at_rest(self) -> WorkerState:
        """The next report with nothing running."""
        while True:
            state = self.heard()
            assert isinstance(state, WorkerState)
            if not state.stats["requests_running"] + state.stats["requests_prefilling"]:
                return state

    def close(self) -> None:
        self._loop.stop()
        self._thread.join()
        for socket in self._sockets:
            socket.close()
        self._context.term()
        self._addresses.remove()


@pytest.fixture(params=[False, True], ids=["booked at once", "overlap"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """It reports when it comes to rest, and by the clock only once, at the start."""
    monkeypatch.setattr(loop_module, "STATE_INTERVAL", 1e9)
    world = World(request.param)
    yield world
    world.close()


def test_every_rest_is_reported_with_all_pages_given_back(world: World) -> None:
    first = world.heard()
    assert isinstance(first, WorkerState)
    for number in range(3):
        world.ask(f"r{number}")
        tokens = [token for output in world.outputs(f"r{number}") for token in output.token_ids]
        assert tokens == [TOKEN] * 6
        state = world.at_rest()
        assert state.stats["pages_in_use"] == 0
        assert state.stats["generated_tokens_total"] >= 6 * (number + 1)


def test_a_step_that_may_compile_is_declared_before_it_starts(world: World) -> None:
    """The API process hears of it, and that it is over; the next step of its kind is not declared."""
    world.heard()
    world.ask("first")
    world.outputs("first")
    declared = world.heard()
    assert isinstance(declared, WorkerState)
    assert declared.busy_until > time.monotonic() + 10
    assert world.at_rest().busy_until == 0
    world.ask("second")
    world.outputs("second")
    state = world.heard()
    assert isinstance(state, WorkerState)
    assert state.busy_until == 0


def test_tokens_do_not_wait_for_the_next_step_where_launching_is_computing() -> None:
    runner = _InLaunch()
    world = World(overlap=True, runner=runner)
    world.ask("r", new_tokens=3)
    for number in range(1, 4):
        runner.go.release()
        assert world.token().completion_tokens == number
    world.close()


def test_a_refused_request_is_answered_and_the_next_one_served(world: World) -> None:
    world.ask("long", prompt_tokens=300)
    (refusal,) = world.outputs("long")
    assert refusal.failure is not None
    assert refusal.failure.code == "invalid_request_error"
    world.ask("short")
    assert world.outputs("short")[-1].finish is not None


def test_an_abort_ends_a_request_and_an_unknown_one_does_nothing(world: World) -> None:
    world.send(AbortInput(rid="nobody"))
    world.ask("endless", new_tokens=200)
    world.send(AbortInput(rid="endless", reason="the client went away"))
    last = world.outputs("endless")[-1]
    assert last.finish is not None
    assert (last.finish.kind, last.finish.matched) in (("abort", "the client went away"), ("length", None))


def test_control_calls(world: World) -> None:
    world.heard()
    for method, failed in (("check", False), ("flush_cache", False), ("unheard_of", True)):
        world.send(ControlInput(id=method, method=method))
        reply = world.heard()
        assert isinstance(reply, ControlReply)
        assert reply.id == method
        assert (reply.error is not None) == failed
