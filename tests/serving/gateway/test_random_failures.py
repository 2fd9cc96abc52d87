"""Requests under random failures: each gets its terminal reply, no token twice or never, and every leg is released."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.gateway_bench import Bench, eventually, gateway_bench
from support.gateway_model import MODES, Behaviour, Model, listen

from baton_bootstrap.records import State
from baton_serving.gateway.core import Patience
from baton_serving.gateway.routing import RoutingConfig

WORKERS = ("p1", "p2", "d1", "d2", "b1")
names = st.sampled_from(WORKERS)


class Gateway(RuleBasedStateMachine):
    """A gateway over two prefill, two decode workers and one that serves whole, on an event loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.model = Model()
        self.behaviours = {name: Behaviour() for name in WORKERS}
        self.shown = set(WORKERS)
        self.asked: list[asyncio.Task[None]] = []
        self.bench: Bench

    @initialize()
    def begin(self) -> None:
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        config = RoutingConfig(policy="power_of_two", attempts=4, worker_wait=0.3, migrate_wait=0.6)
        patience = Patience(stall=0.3, half=0.25, first_byte=0.5)
        self.bench = await self.stack.enter_async_context(gateway_bench(config, patience))
        for name in WORKERS:
            role = "prefill" if name[0] == "p" else "decode"
            await self.bench.worker(name, self.model.script(self.behaviours[name], role))

    @rule(n=st.integers(1, 3), stream=st.booleans(), seed=st.integers(0, 99), tokens=st.integers(1, 12))
    def ask(self, n: int, stream: bool, seed: int, tokens: int) -> None:
        body = {"model": "m", "prompt": "hi", "n": n, "stream": stream, "seed": seed, "max_tokens": tokens}
        self.asked.append(self.loop.create_task(self._ask(body)))

    async def _ask(self, body: dict[str, Any]) -> None:
        async with self.bench.session.post(f"{self.bench.url}/v1/completions", json=body) as response:
            if response.status != 200:
                assert response.status in (500, 503), await response.text()
                assert (await response.json())["error"]["message"]
            elif body["stream"]:
                (await listen(response.content.iter_any())).check(body)
            else:
                assert len((await response.json())["choices"]) == body["n"]

    @rule(name=names, mode=st.sampled_from(MODES), after=st.integers(0, 10))
    def break_down(self, name: str, mode: str, after: int) -> None:
        behaviour = self.behaviours[name]
        behaviour.mode, behaviour.after = mode, after

    @rule(name=names)
    def recover(self, name: str) -> None:
        self.behaviours[name].mode = "well"

    @rule(name=names, state=st.sampled_from([State.READY, State.DRAINING, State.STALLED]))
    def change_state(self, name: str, state: State) -> None:
        self._worker(name).state = state
        self._show()

    @rule(name=names)
    def vanish_or_return(self, name: str) -> None:
        self.shown ^= {name}
        self._show()

    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        """A client hangs up."""
        if self.asked:
            self.asked[which % len(self.asked)].cancel()

    @rule(turns=st.integers(1, 40))
    def go_on(self, turns: int) -> None:
        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turn())

    @invariant()
    def nothing_went_wrong_so_far(self) -> None:
        for task in self.asked:
            if task.done() and not task.cancelled():
                task.result()

    def teardown(self) -> None:
        try:
            self.loop.run_until_complete(self._end())
        finally:
            self.loop.close()

    async def _end(self) -> None:
        if self.asked:
            done, pending = await asyncio.wait(self.asked, timeout=15)
            assert not pending, "a request without a terminal reply"
            for task in done:
                if not task.cancelled():
                    task.result()
        for behaviour in self.behaviours.values():
            behaviour.mode = "well"
        await self.stack.aclose()  # fails for a leg that was not released
        await eventually(lambda: not self.model.active)  # workers have seen the end of every leg

    def _worker(self, name: str) -> Any:
        return self.bench.workers[WORKERS.index(name)]

    def _show(self) -> None:
        async def show() -> None:
            self.bench.show(*(self._worker(name) for name in WORKERS if name in self.shown))

        self.loop.run_until_complete(show())


TestGateway = Gateway.TestCase
TestGateway.settings = settings(
    max_examples=80, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
