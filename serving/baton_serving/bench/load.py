"""Offering requests to a server: when each starts, and no more at once than allowed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from baton_serving.bench.client import Disconnect, Outcome
from baton_serving.bench.workload import Item


@dataclass(frozen=True)
class Pace:
    """`rate` requests a second, arriving at random (None: all at once, or when they are due); `concurrency` at most."""

    rate: float | None = None
    concurrency: int | None = None


def starts(items: Sequence[Item], pace: Pace, seed: int) -> list[float]:
    """Seconds after the start at which each item arrives: a Poisson process of the pace's rate, or its due time."""
    if pace.rate is None:
        return [item.due or 0.0 for item in items]
    rng = random.Random(seed)
    at, times = 0.0, []
    for _ in items:
        times.append(at)
        at += rng.expovariate(pace.rate)
    return times


def disconnects(items: Sequence[Item], fraction: float, seed: int) -> list[Disconnect | None]:
    """For each item whether its client leaves early, and when: mid-stream, or in the first tenth of a second."""
    rng = random.Random(seed)
    leaving: list[Disconnect | None] = []
    for item in items:
        chosen = rng.random() < fraction
        chunks, seconds = rng.randrange(item.output_tokens), rng.random() * 0.1
        leaving.append(Disconnect(chunks, seconds) if chosen else None)
    return leaving


async def offer(
    items: Sequence[Item],
    send: Callable[[int, Item], Awaitable[Outcome]],
    pace: Pace,
    seed: int,
    on_done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Send every item at its time and collect the outcomes in item order; `on_done` hears of each as it ends."""
    gate = asyncio.Semaphore(pace.concurrency or len(items))

    async def one(index: int, item: Item) -> Outcome:
        async with gate:
            outcome = await send(index, item)
        on_done(outcome)
        return outcome

    loop = asyncio.get_running_loop()
    begin = loop.time()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for index, (item, at) in enumerate(zip(items, starts(items, pace, seed), strict=True)):
            if (wait := begin + at - loop.time()) > 0:
                await asyncio.sleep(wait)
            tasks.append(group.create_task(one(index, item)))
    return [task.result() for task in tasks]
