"""What the scheduler loop costs per step: the real loop, scheduler and sockets on a device that only keeps time.

The stand-in runs one step after another, each for a fixed time, and samples a constant token. Without overlap the
device waits while the host works, so its idle time between two steps is all that the next one waits for: book the
result, take in what came, schedule, launch. With overlap it is what of that stays visible. Beside it stands the CPU
time of the scheduler alone, which a busy machine does not blur.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import zmq
from rich.table import Table

from baton_serving.bench.report import Spread
from baton_serving.kv.layout import KVGroup, KVLayout
from baton_serving.runtime.channels import Addresses, Pull, Push
from baton_serving.runtime.figures import Figures
from baton_serving.runtime.followers import Followers
from baton_serving.runtime.loop import SchedulerLoop
from baton_serving.runtime.messages import ApiInput, DetokenizerInput, GenerateInput, SchedulerInput
from baton_serving.runtime.rank_sockets import RankSockets
from baton_serving.runtime.watchdog import GcWarnings, Watchdog
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.config import SchedulerConfig
from baton_serving.scheduling.request import Request
from baton_serving.scheduling.scheduler import Scheduler
from baton_serving.scheduling.step import StepPlan, StepResult

PROMPT_TOKENS = 128
PAGE_SIZE = 64
_TOKEN = 7


@dataclass(frozen=True)
class _TimedStep:
    """A step that is over at `end` on `time.perf_counter`."""

    plan: StepPlan
    end: float

    def result(self) -> StepResult:
        # As waiting for a CUDA event does by default; after a sleep the caches are cold, and all takes twice as long.
        while time.perf_counter() < self.end:
            pass
        return _answer(self.plan)


@dataclass
class StandIn:
    """A device whose every step takes `step_seconds`; `idle` are its pauses before decode steps of `rows` rows."""

    step_seconds: float
    rows: int
    steps: int
    on_enough: Callable[[], None] = lambda: None
    idle: list[float] = field(default_factory=list)
    immediate: bool = False
    _free_at: float = 0.0

    def launch(self, plan: StepPlan) -> _TimedStep:
        """Queue a step behind the last one."""
        now = time.perf_counter()
        start = max(now, self._free_at)
        if plan.rows == self.rows and not any(plan.extend):
            self.idle.append(start - self._free_at)
            if len(self.idle) == self.steps:
                self.on_enough()
        self._free_at = start + self.step_seconds
        return _TimedStep(plan, self._free_at)


class Overhead(msgspec.Struct, frozen=True):
    """Of decode steps of `batch` rows: CPU time of the scheduler alone, device idle time without and with overlap."""

    batch: int
    scheduler: Spread
    host: Spread
    overlapped: Spread


def measure(batch: int, steps: int, step_seconds: float) -> Overhead:
    """Run `steps` decode steps of `batch` requests each way, and note the pauses between them."""
    pauses = [_pauses(batch, steps, step_seconds, overlap) for overlap in (False, True)]
    return Overhead(batch, _scheduling(batch, steps), *pauses)


def table(overheads: list[Overhead], step_seconds: float) -> Table:
    """Microseconds a step, by batch size."""
    columns = ("batch", "schedule + commit p50 (CPU)", "host p50", "host p99", "visible with overlap p50", "p99")
    result = Table(*columns, title_justify="left")
    result.title = f"Scheduler overhead per step (µs), stand-in step of {step_seconds * 1000:g} ms"
    for entry in overheads:
        times = (entry.scheduler.p50, entry.host.p50, entry.host.p99, entry.overlapped.p50, entry.overlapped.p99)
        result.add_row(str(entry.batch), *(f"{milliseconds * 1000:.0f}" for milliseconds in times))
    return result


def _scheduling(batch: int, steps: int) -> Spread:
    """CPU time of `schedule` and `commit` of each decode step, with one step in flight ahead as in service."""
    scheduler = _scheduler(batch, steps)
    for index in range(batch):
        message = _request(index, steps)
        scheduler.add(Request(message.rid, message.input_ids, message.params))
    taken: list[float] = []
    ahead: StepPlan | None = None
    while len(taken) < steps:
        began = time.thread_time()
        plan = scheduler.schedule()
        if ahead is not None:
            scheduler.commit(ahead, _answer(ahead))
        if ahead is not None and plan is not None and plan.rows == batch and not any([*plan.extend, *ahead.extend]):
            taken.append(time.thread_time() - began)
        ahead = plan
    return Spread.of(taken)


def _answer(plan: StepPlan) -> StepResult:
    """What a model would: some token for every row that samples."""
    return StepResult(plan.step, [_TOKEN if sampled else -1 for sampled in plan.sample])


def _pauses(batch: int, steps: int, step_seconds: float, overlap: bool) -> Spread:
    """Build the loop as a scheduler process does, feed it `batch` requests through its socket, and run it."""
    runner = StandIn(step_seconds, batch, steps)
    addresses = Addresses.create(1)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox: Pull[SchedulerInput] = Pull(context, addresses.scheduler, SchedulerInput)
    outlets = [context.socket(zmq.PULL) for _ in range(2)]  # bound, as the other processes would
    for outlet, address in zip(outlets, (addresses.detokenizer, addresses.api), strict=True):
        outlet.set_hwm(0)
        outlet.bind(address)
    to_detokenizer: Push[DetokenizerInput] = Push(context, addresses.detokenizer)
    to_api: Push[ApiInput] = Push(context, addresses.api)
    client: Push[SchedulerInput] = Push(context, addresses.scheduler)
    scheduler = _scheduler(batch, steps)
    loop = SchedulerLoop(
        scheduler,
        runner,
        Followers(RankSockets(context, addresses), 1.0),
        inbox,
        to_detokenizer,
        to_api,
        lambda message: Request(message.rid, message.input_ids, message.params),
        Watchdog(3600.0),
        Figures(scheduler),
        overlap=overlap,
    )
    runner.on_enough = loop.stop
    collections = GcWarnings(0.0)
    collections.install()
    try:
        for index in range(batch):
            client.send(_request(index, steps))
        loop.run()
    finally:
        collections.remove()
        for end in (client, to_detokenizer, to_api, inbox):
            end.close()
        for outlet in outlets:
            outlet.close(0)
        context.term()
        addresses.remove()
    return Spread.of(runner.idle)


def _scheduler(batch: int, steps: int) -> Scheduler:
    length = PROMPT_TOKENS + 2 * steps
    layout = KVLayout(PAGE_SIZE, 8, 128, 128, "bfloat16", (KVGroup((0,)),))
    config = SchedulerConfig(context_len=length + PAGE_SIZE, max_running_requests=batch)
    return Scheduler(config, layout, batch * (length // PAGE_SIZE + 2))


def _request(index: int, steps: int) -> GenerateInput:
    """A prompt that shares no page with another's, and an answer that outlives the measurement."""
    params = SamplingParams(max_new_tokens=2 * steps, temperature=0.0, ignore_eos=True)
    prompt = [index + 1, *range(PROMPT_TOKENS - 1)]
    return GenerateInput(rid=f"bench-{index}", input_ids=prompt, params=params, stream=True)
