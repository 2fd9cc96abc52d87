"""One leg alone: every request runs it, and nothing is held afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.local_worker import Answer, LocalWorker

from baton_serving.errors import InvalidRequest
from baton_serving.runtime.lone_leg import LoneLeg
from baton_serving.runtime.messages import GenerateInput, TokenOutput
from baton_serving.runtime.scheduler_process import request_maker
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.request import LogprobOptions

BATON_TINY = Path(__file__).parents[3] / "examples" / "models" / "baton-tiny"


class Driver:
    """A worker whose loop is turned by hand, with the extension where the loop has it."""

    def __init__(self, mode: str) -> None:
        self.worker = LocalWorker(BATON_TINY, chunked_prefill_size=32, max_total_tokens=400)
        self.leg = LoneLeg(self.worker.scheduler, mode)
        self.make = request_maker(self.worker.rank.loaded)
        self.widest = 0  # tokens of a row of any step

    def ask(self, rid: str, tokens: int, new: int = 6, logprobs: LogprobOptions | None = None) -> Answer:
        params = SamplingParams(max_new_tokens=new, temperature=0.0, ignore_eos=True)
        message = GenerateInput(rid, [5 + len(self.worker._answers)] * tokens, params, logprobs=logprobs)
        request = self.make(message)
        if not self.leg.admit(message, request):
            self.worker.scheduler.add(request)
        return self.worker._answers.setdefault(rid, Answer())

    def turn(self) -> None:
        self._take(self.leg.poll(0))
        plan = self.worker.turn()
        self.widest = max(self.widest, *plan.lengths) if plan is not None else self.widest
        self.leg.booked()
        outputs = self.worker.scheduler.take_outputs()
        self._take(outputs)

    def _take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            self.worker._answers[output.rid].take(output)
            if output.finish is not None:
                self.leg.ended(output)

    def run(self, *answers: Answer) -> None:
        for _ in range(200):
            self.turn()
            if self.worker.scheduler.idle and all(a.finish or a.failure for a in answers):
                self.worker.scheduler.check()
                return
        pytest.fail(f"not over: {answers}")


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    made = Driver(request.param)
    yield made
    made.leg.close()


@pytest.mark.parametrize("driver", ["decode"], indirect=True)
def test_decode_generates_from_kv_that_nobody_sent(driver: Driver) -> None:
    """More requests than there are pages for: the last ones wait for room."""
    answers = [driver.ask(f"r{number}", 150) for number in range(4)]
    driver.turn()
    assert driver.leg.stats()["handoff_waiting"] > 0
    driver.run(*answers)
    assert [(len(answer.token_ids), answer.finish and answer.finish.kind) for answer in answers] == [(6, "length")] * 4
    assert driver.widest == 1, "a prompt was computed"


@pytest.mark.parametrize("driver", ["prefill"], indirect=True)
def test_prefill_computes_and_lets_go(driver: Driver) -> None:
    answers = [driver.ask(f"r{number}", 150) for number in range(3)]
    driver.run(*answers)
    assert [answer.finish and answer.finish.kind for answer in answers] == ["handoff"] * 3


@pytest.mark.parametrize("driver", ["prefill", "decode"], indirect=True)
def test_an_abort_leaves_nothing_behind(driver: Driver) -> None:
    answers = [driver.ask(f"r{number}", 150) for number in range(4)]
    driver.turn()
    for rid in ("r0", "r3"):
        driver.worker.scheduler.abort(rid)
        driver.leg.aborted(rid, "aborted")
    driver.run(*answers)
    assert [answer.finish and answer.finish.kind for answer in (answers[0], answers[3])] == ["abort"] * 2


@pytest.mark.parametrize("driver", ["decode"], indirect=True)
def test_made_up_kv_has_no_logprobs_and_a_prompt_must_fit(driver: Driver) -> None:
    with pytest.raises(InvalidRequest, match="no log-probabilities"):
        driver.ask("r", 5, logprobs=LogprobOptions())
    answer = driver.ask("long", 2000)
    driver.run(answer)
    assert answer.failure is not None
