"""The queue: no key is lost, none is worked on twice at once, the earliest time wins."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton_operator.controller.work_queue import WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def take_at_once(queue: WorkQueue[str]) -> str | None:
    """What is due now, or None."""
    task = asyncio.create_task(queue.take())
    for _ in range(3):
        await asyncio.sleep(0)
    if task.done():
        return task.result()
    task.cancel()
    return None


class Model(RuleBasedStateMachine):
    """Against a dictionary of due times and a set of what is being worked on."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.loop = asyncio.new_event_loop()
        self.queue = WorkQueue[str](self.clock)
        self.due: dict[str, float] = {}
        self.taken: set[str] = set()

    @rule(key=st.sampled_from("abc"), delay=st.sampled_from([0.0, 1.0, 5.0]))
    def add(self, key: str, delay: float) -> None:
        self.queue.add(key, delay)
        self.due[key] = min(self.due.get(key, float("inf")), self.clock.now + delay)

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def take(self) -> None:
        key = self.loop.run_until_complete(take_at_once(self.queue))
        ready = {k: due for k, due in self.due.items() if due <= self.clock.now and k not in self.taken}
        if not ready:
            assert key is None
            return
        assert key is not None
        assert ready[key] == min(ready.values())
        del self.due[key]
        self.taken.add(key)

    @rule(key=st.sampled_from("abc"))
    def done(self, key: str) -> None:
        if key in self.taken:
            self.queue.done(key)
            self.taken.remove(key)

    @invariant()
    def holds_what_is_due(self) -> None:
        assert len(self.queue) == len(self.due)

    def teardown(self) -> None:
        self.loop.close()


TestModel = Model.TestCase


@given(st.lists(st.integers(0, 3), max_size=30))
def test_workers_share_the_keys_and_each_key_is_worked_on_by_one(keys: list[int]) -> None:
    async def scene() -> None:
        queue, busy, seen = WorkQueue[int](), set[int](), set[int]()

        async def work() -> None:
            while True:
                key = await queue.take()
                assert key not in busy
                busy.add(key)
                seen.add(key)
                await asyncio.sleep(0)
                busy.remove(key)
                queue.done(key)

        tasks = [asyncio.create_task(work()) for _ in range(3)]
        for key in keys:
            queue.add(key)
            await asyncio.sleep(0)
        for _ in range(20 * len(keys) + 20):
            await asyncio.sleep(0)
        assert not len(queue)
        assert not busy
        for task in tasks:
            task.cancel()
        assert seen == set(keys)

    asyncio.run(scene())
