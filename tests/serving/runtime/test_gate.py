from __future__ import annotations

import asyncio

import pytest

from baton_serving.errors import QueueFull, Unavailable
from baton_serving.runtime.gate import Gate


async def test_requests_wait_until_nobody_holds_it_shut() -> None:
    gate = Gate()
    await gate.passed(may_wait=False)
    gate.close("one", "first reason")
    gate.close("two", "second reason")
    waiting = asyncio.create_task(gate.passed(may_wait=True))
    await asyncio.sleep(0)
    gate.open("one")
    await asyncio.sleep(0)
    assert (gate.waiting, waiting.done()) == (1, False)
    gate.open("two")
    await waiting
    assert gate.waiting == 0


async def test_some_are_refused() -> None:
    gate = Gate(limit=1)
    gate.close("one", "held back")
    with pytest.raises(Unavailable, match="held back"):
        await gate.passed(may_wait=False)
    waiting = asyncio.create_task(gate.passed(may_wait=True))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await gate.passed(may_wait=True)
    gate.close("two", "memory is away", refuse=True)
    with pytest.raises(Unavailable, match="memory is away"):
        await gate.passed(may_wait=True)
    gate.fail(Unavailable("shutting down"))
    with pytest.raises(Unavailable, match="shutting down"):
        await waiting
