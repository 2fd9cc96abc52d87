"""The API process's side of an update, over a scripted scheduler."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.api_world import WEIGHTS, pipeline, says
from support.scripted_scheduler import Script, ScriptedScheduler

from baton_bootstrap.records import Assignment, Goal, Phase, Progress, Role
from baton_serving.errors import InternalError, InvalidRequest, Unavailable
from baton_serving.runtime.assigned import Assigned
from baton_serving.runtime.messages import Failure, GenerateInput, HandoffTicket
from baton_serving.runtime.requests import Choice, ChoiceOutput, GenerateRequest
from baton_serving.runtime.tokenizer_manager import TokenizerManager
from baton_serving.runtime.updater import Updater
from baton_serving.runtime.weight_source import WeightSource
from baton_serving.sampling.params import SamplingParams

NEW = WeightSource(path="models/new")


@dataclass
class Bench:
    """An updater; the scheduler stages and commits `digest`, and notes what it was asked."""

    scheduler: ScriptedScheduler
    manager: TokenizerManager
    updater: Updater
    asked: list[str] = field(default_factory=list)
    served: list[tuple[str, str]] = field(default_factory=list)
    open: list[bool] = field(default_factory=list)
    shut: asyncio.Event = field(default_factory=asyncio.Event)

    def script(self, **answers: dict[str, Any] | Failure) -> None:
        calls = {
            "weights_stage": {"digest": "new", "bytes": 7},
            "weights_commit": {"digest": "new", "seconds": 0.5},
            "weights_discard": {},
            "weights_progress": {"done": 1, "total": 7},
            "pause": {},
            "continue": {},
            **answers,
        }
        for name, answer in calls.items():
            self.scheduler.controls[name] = self._note(name, answer)

    def _note(
        self, name: str, answer: dict[str, Any] | Failure
    ) -> Callable[[dict[str, Any]], dict[str, Any] | Failure]:
        def call(args: dict[str, Any]) -> dict[str, Any] | Failure:
            self.asked.append(name)
            return answer

        return call

    def note_open(self, is_open: bool) -> None:
        self.open.append(is_open)
        if not is_open:
            self.shut.set()

    async def ask(self, **fields: Any) -> list[ChoiceOutput]:
        params = SamplingParams(max_new_tokens=50)
        request = GenerateRequest(fields.pop("rid", "r"), [[5, 6]], [Choice(0, params, **fields)], stream=True)
        async with aclosing(self.manager.generate(request)) as outputs:
            return [output async for output in outputs]


@asynccontextmanager
async def bench(script: Callable[[GenerateInput], Script] | None = None) -> AsyncIterator[Bench]:
    async with pipeline(script or says("hi")) as (scheduler, manager, _):
        made = Bench(scheduler, manager, None)  # type: ignore[arg-type]
        made.updater = Updater(
            manager,
            lambda weights: made.served.append((weights.digest, weights.incarnation)),
            made.note_open,
        )
        made.script()
        yield made


async def test_running_requests_end_first_and_new_ones_wait() -> None:
    gate = threading.Event()
    async with bench(lambda message: Script([40, 41, 0], gate=gate, free=1)) as made:
        running = asyncio.create_task(made.ask(rid="running"))
        await made.scheduler.until(lambda: len(made.scheduler.received) == 1)
        updating = asyncio.create_task(made.updater.update(NEW, "two", "wait", 30.0))
        await made.scheduler.until(lambda: "weights_stage" in made.asked)
        async with asyncio.timeout(20):
            await made.shut.wait()
        waiting = asyncio.create_task(made.ask(rid="waiting"))
        with pytest.raises(Unavailable, match="being changed"):
            await made.ask(rid="tied", handoff=HandoffTicket(transfer_id="t"))
        assert "weights_commit" not in made.asked
        gate.set()
        switched = await updating
        assert (switched.weights.digest, switched.weights.version, switched.seconds) == ("new", "two", 0.5)
        assert {output.weights.digest for output in await running} == {WEIGHTS.digest}
        assert {output.weights.digest for output in await waiting} == {"new"}
        assert [digest for digest, _ in made.served] == ["new"]
        assert (made.open[0], made.open[-1]) == (False, True)


@pytest.mark.parametrize("call", ["weights_stage", "weights_commit"])
async def test_what_fails_leaves_the_old_weights_serving(call: str) -> None:
    async with bench() as made:
        made.script(**{call: Failure(InvalidRequest.code, "damaged")})
        with pytest.raises(InvalidRequest, match="damaged"):
            await made.updater.update(NEW, None, "wait", 5.0)
        assert made.manager.weights == WEIGHTS
        assert made.served == []
        assert (await made.ask())[-1].weights == WEIGHTS
        assert ("weights_discard" in made.asked) == (call == "weights_commit")


async def test_a_request_that_does_not_end_in_time() -> None:
    gate = threading.Event()
    async with bench(lambda message: Script([40, 0], gate=gate)) as made:
        running = asyncio.create_task(made.ask())
        await made.scheduler.until(lambda: len(made.scheduler.received) == 1)
        with pytest.raises(Unavailable, match="still ran"):
            await made.updater.update(NEW, None, "wait", 0.01)
        gate.set()
        assert (await running)[-1].weights == WEIGHTS


async def test_weights_that_do_not_generate_take_the_worker_out() -> None:
    def fails(message: GenerateInput) -> Script:
        return Script([], Failure("internal_error", "no step"))

    async with bench(fails) as made:
        with pytest.raises(InternalError, match="do not generate"):
            await made.updater.update(NEW, None, "wait", 5.0)
        assert not made.open[-1]
        with pytest.raises(Unavailable, match="do not generate"):
            await made.ask()


async def test_an_assignment_is_followed_step_by_step() -> None:
    async with bench() as made:
        reports: list[Progress] = []
        roles: list[Role | None] = []
        news = asyncio.Event()

        def report(progress: Progress) -> None:
            reports.append(progress)
            news.set()

        assigned = Assigned(made.updater, report, lambda draining: None, roles.append)
        following = asyncio.create_task(assigned.run())

        async def reach(phase: Phase, revision: str) -> None:
            async with asyncio.timeout(20):
                while (assigned.progress.phase, assigned.progress.revision) != (phase, revision):
                    news.clear()
                    await news.wait()

        told = Assignment(revision="v2", model="models/new", goal=Goal.STAGE)
        assigned.hear(told)
        await reach(Phase.STAGED, "v2")
        assert (assigned.progress.digest, "weights_commit" in made.asked) == ("new", False)
        assigned.hear(Assignment(revision="v2", model="models/new", goal=Goal.SWITCH, whole=True))
        await reach(Phase.SERVING, "v2")
        assert (made.manager.weights.digest, roles[-1]) == ("new", Role.BOTH)
        assigned.hear(Assignment(revision="v2b", model="models/new", digest="new", role=Role.DECODE))
        await reach(Phase.SERVING, "v2b")
        assert roles[-1] is Role.DECODE
        assigned.hear(Assignment(revision="v2c", model="models/new", digest="new"))
        await reach(Phase.SERVING, "v2c")
        assert roles[-1] is None
        assert [report.phase for report in reports][:2] == [Phase.STAGING, Phase.STAGED]
        made.script(weights_stage=Failure(InvalidRequest.code, "damaged"))
        assigned.hear(Assignment(revision="v3", model="models/bad", goal=Goal.SWITCH))
        await reach(Phase.FAILED, "v3")
        assert (assigned.progress.error, made.manager.weights.digest) == ("damaged", "new")
        made.script(weights_stage={"digest": "other", "bytes": 1})
        assigned.hear(Assignment(revision="v4", model="models/x", digest="expected", goal=Goal.STAGE))
        await reach(Phase.FAILED, "v4")
        assert "expected is assigned" in assigned.progress.error
        assigned.hear(Assignment(revision="v4", model="", goal=Goal.SERVE))
        await asyncio.sleep(0)
        assert (await made.ask())[-1].weights.digest == "new"
        following.cancel()
