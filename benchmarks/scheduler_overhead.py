"""Time that the scheduler takes per decode step, with a stand-in runner that answers at once.

    python benchmarks/scheduler_overhead.py

Measures planning plus booking (`schedule` + `commit`) in CPU time of the calling thread, with one step in flight
ahead as in service, and prints milliseconds per step at several batch sizes.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import deque
from typing import NamedTuple

from baton_serving.kv.layout import KVGroup, KVLayout
from baton_serving.sampling.params import SamplingParams
from baton_serving.scheduling.config import SchedulerConfig
from baton_serving.scheduling.request import Request
from baton_serving.scheduling.scheduler import Scheduler
from baton_serving.scheduling.step import StepPlan, StepResult


class Overhead(NamedTuple):
    """Milliseconds of scheduling per decode step."""

    batch: int
    page_size: int
    p50: float
    p99: float
    mean: float


def answer(plan: StepPlan) -> StepResult:
    """What a model would: some token for every row that samples."""
    return StepResult(plan.step, [7 if sample else -1 for sample in plan.sample])


def measure(batch: int, page_size: int = 64, steps: int = 2000, windows: tuple[int | None, ...] = (None,)) -> Overhead:
    """Run `batch` requests of 512 prompt tokens, and time `steps` decode steps after their prefill."""
    prompt_tokens = 512
    context = prompt_tokens + steps + 64
    layout = KVLayout(
        page_size, 1, 64, 64, "bfloat16", tuple(KVGroup((i,), window) for i, window in enumerate(windows))
    )
    config = SchedulerConfig(context_len=context, max_running_requests=batch, max_prefill_tokens=batch * prompt_tokens)
    scheduler = Scheduler(config, layout, batch * len(windows) * (context // page_size + 2))
    params = SamplingParams(max_new_tokens=steps + 32, ignore_eos=True)
    for i in range(batch):
        scheduler.add(Request(f"request-{i}", [i, *range(1, prompt_tokens)], params))
    in_flight: deque[tuple[StepPlan, StepResult]] = deque()
    taken: list[float] = []
    while len(taken) < steps:
        began = time.thread_time()
        plan = scheduler.schedule()
        planned = time.thread_time() - began
        if plan is None:
            break
        in_flight.append((plan, answer(plan)))
        if len(in_flight) < 2:
            continue
        began = time.thread_time()
        scheduler.commit(*in_flight.popleft())
        if not any(plan.extend) and plan.rows == batch:
            taken.append((planned + time.thread_time() - began) * 1e3)
    taken.sort()
    return Overhead(batch, page_size, taken[len(taken) // 2], taken[int(len(taken) * 0.99)], sum(taken) / len(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--page-size", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    gc.freeze()
    print(f"{'batch':>6} {'page':>5} {'p50 ms':>8} {'p99 ms':>8} {'mean ms':>8}")
    for page_size in args.page_size:
        for batch in args.batch:
            row = measure(batch, page_size, args.steps)
            print(f"{row.batch:>6} {row.page_size:>5} {row.p50:>8.3f} {row.p99:>8.3f} {row.mean:>8.3f}")


if __name__ == "__main__":
    main()
