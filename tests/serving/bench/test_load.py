import asyncio
import itertools

import pytest

from baton_serving.bench.client import Ending, Outcome
from baton_serving.bench.load import Pace, disconnects, offer, starts
from baton_serving.bench.workload import Item

ITEMS = [Item((1,), 8)] * 400


def test_arrivals_are_poisson_of_the_rate() -> None:
    times = starts(ITEMS, Pace(rate=20.0), seed=1)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times[0] == 0
    assert min(gaps) > 0
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 20, rel=0.15)
    assert starts(ITEMS, Pace(rate=20.0), seed=1) == times
    assert starts([Item((1,), 1, 2.5), Item((1,), 1)], Pace(), seed=1) == [2.5, 0.0]


def test_the_asked_for_part_of_clients_leaves() -> None:
    leaving = [each for each in disconnects(ITEMS, 0.2, seed=2) if each is not None]
    assert 50 < len(leaving) < 110
    assert {each.chunks for each in leaving} == set(range(8))
    assert not any(disconnects(ITEMS, 0.0, seed=2))


async def test_no_more_than_the_concurrency_are_in_flight() -> None:
    flying, most, heard = 0, 0, 0

    async def send(index: int, item: Item) -> Outcome:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0)
        flying -= 1
        return Outcome(float(index), ending=Ending.DONE)

    def on_done(outcome: Outcome) -> None:
        nonlocal heard
        heard += 1

    outcomes = await offer(ITEMS, send, Pace(concurrency=7), 0, on_done)
    assert [outcome.started for outcome in outcomes] == list(range(400))
    assert (most, heard) == (7, 400)
