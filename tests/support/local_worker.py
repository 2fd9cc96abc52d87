"""A worker without its processes: scheduler and executor in this one, and a test turns the loop by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from baton_serving.config import config_from_values
from baton_serving.runtime.executor import PendingStep
from baton_serving.runtime.facts import resolve_here
from baton_serving.runtime.followers import Followers
from baton_serving.runtime.messages import Failure, Finish, TokenOutput
from baton_serving.runtime.rank import build_rank
from baton_serving.runtime.scheduler_process import scheduler_config
from baton_serving.sampling.params import SamplingParams, TokenLogprobs
from baton_serving.scheduling.request import LogprobOptions, Request
from baton_serving.scheduling.scheduler import Scheduler
from baton_serving.scheduling.step import StepPlan

FLAGS: dict[str, Any] = {"device": "cpu", "page_size": 8, "max_running_requests": 8, "max_total_tokens": 8000}


@dataclass
class Answer:
    """All outputs of one request together."""

    token_ids: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish: Finish | None = None
    failure: Failure | None = None
    embedding: list[float] | None = None

    def take(self, output: TokenOutput) -> None:
        assert self.finish is None, "an output came after the last one"
        assert self.failure is None, "an output came after the last one"
        self.token_ids += output.token_ids
        self.cached_tokens = output.cached_tokens or self.cached_tokens
        self.logprobs += output.logprobs
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.finish, self.failure = output.finish, output.failure
        self.embedding = output.embedding


class LocalWorker:
    """Rank 0 of a worker for the checkpoint at `path`; `flags` are those of `baton serve`, with underscores.

    With `overlap` a step is launched before the previous one is booked, as in the worker's loop.
    """

    def __init__(
        self,
        path: Path,
        *,
        overlap: bool = True,
        rendezvous: str = "",
        followers: Followers | None = None,
        **flags: Any,
    ) -> None:
        config = resolve_here(config_from_values({"model_path": str(path), **FLAGS, **flags}))
        self.rank = build_rank(config, 0, rendezvous)
        self.scheduler = Scheduler(scheduler_config(config), self.rank.loaded.kv_layout, self.rank.pool.pages)
        self._overlap = overlap
        self.followers = followers
        self._in_flight: tuple[StepPlan, PendingStep] | None = None
        self._answers: dict[str, Answer] = {}
        self._added = 0

    def embed(self, prompt: Sequence[int]) -> Answer:
        """Queue a request for the prompt's embedding."""
        return self.add(prompt, SamplingParams(max_new_tokens=0, temperature=0.0), embed=True)

    def add(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        logprobs: LogprobOptions | None = None,
        *,
        embed: bool = False,
    ) -> Answer:
        """Queue a request; its answer fills up as `run` goes on."""
        rid = f"r{self._added}"
        self._added += 1
        eos = frozenset(self.rank.loaded.info.eos_token_ids)
        self._answers[rid] = Answer()
        self.scheduler.add(Request(rid, list(prompt), params, eos_ids=eos, logprobs=logprobs, embed=embed))
        return self._answers[rid]

    def turn(self) -> StepPlan | None:
        """One turn of the loop; the step that it planned."""
        plan = self.scheduler.schedule()
        launched = None
        if plan is not None:
            plan = msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=StepPlan)  # what a follower would see
            if self.followers is not None:
                self.followers.launch(plan)
            launched = (plan, self.rank.executor.launch(plan))
            if not self._overlap:
                self._book(*launched)
                launched = None
        if self._in_flight is not None:
            self._book(*self._in_flight)
        self._in_flight = launched
        self._take(self.scheduler.take_outputs())
        return plan

    def book_in_flight(self) -> None:
        """Book the step that is under way, if any, and launch none."""
        if self._in_flight is not None:
            self._book(*self._in_flight)
        self._in_flight = None
        self._take(self.scheduler.take_outputs())

    def run(self) -> None:
        """Turn until everything is answered, then check the books."""
        while self.turn() is not None or not self.scheduler.idle:
            pass
        self.scheduler.check()

    def generate(self, prompts: Iterable[Sequence[int]], params: SamplingParams) -> list[Answer]:
        """Answer all prompts together."""
        answers = [self.add(prompt, params) for prompt in prompts]
        self.run()
        return answers

    def _book(self, plan: StepPlan, pending: PendingStep) -> None:
        self._take(self.scheduler.commit(plan, pending.result()))

    def _take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            self._answers[output.rid].take(output)
