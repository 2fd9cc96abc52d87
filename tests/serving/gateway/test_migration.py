"""Streams whose worker is lost in the middle go on at another, token for token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from support.gateway_bench import Bench, Call, eventually, gateway_bench
from support.gateway_model import Behaviour, Heard, Model, event, listen, token

from baton_bootstrap.records import State
from baton_serving.gateway.core import Patience
from baton_serving.gateway.routing import RoutingConfig


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    config = RoutingConfig(policy="round_robin", attempts=3, worker_wait=0.3, migrate_wait=0.5)
    async with gateway_bench(config, Patience(stall=0.4, half=0.3)) as made:
        yield made


@pytest.fixture
def model() -> Model:
    return Model()


async def start(bench: Bench, model: Model, worker_id: str, mode: str = "well", after: int = 0) -> Behaviour:
    behaviour = Behaviour(mode, after)
    await bench.worker(worker_id, model.script(behaviour, "prefill" if worker_id[0] == "p" else "decode"))
    return behaviour


async def ask(
    bench: Bench, path: str = "/v1/completions", **fields: Any
) -> tuple[Heard, dict[str, Any], aiohttp.ClientResponse]:
    body = {"model": "m", "prompt": "hi", "stream": True, "seed": 3, **fields}
    async with bench.session.post(bench.url + path, json=body) as response:
        assert response.status == 200, await response.text()
        heard = await listen(response.content.iter_any())
    heard.check(body)
    return heard, body, response


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("mode", ["die", "hang", "half", "garbage", "cut", "error"])
async def test_a_stream_goes_on_at_another_pair(bench: Bench, model: Model, mode: str, n: int) -> None:
    await start(bench, model, "p1")
    await start(bench, model, "d1", mode, after=5)
    await start(bench, model, "d2")
    heard, _, response = await ask(bench, n=n)
    assert heard.done
    assert len(model.resumed) == 2  # both legs of the continuation
    assert sum(map(len, model.resumed[0]["baton_resume"]["output_ids"])) >= 5 - n
    assert response.headers["x-baton-route"] == "p1>d1"
    text = await (await bench.session.get(f"{bench.url}/metrics")).text()
    assert 'baton_gateway_migrations_total{how="computed"} 1.0' in text


async def test_the_prefill_worker_that_holds_the_prompt_computes_the_rest(bench: Bench, model: Model) -> None:
    await start(bench, model, "p1")
    await start(bench, model, "p2")
    await start(bench, model, "d1", "die", after=5)
    await start(bench, model, "d2")
    heard, _, response = await ask(bench)
    assert heard.done
    assert response.headers["x-baton-route"] == "p1>d1"
    assert {body["baton_handoff"]["peer"] for body in model.resumed} == {"p1"}


async def test_choices_that_were_over_are_not_told_twice(bench: Bench, model: Model) -> None:
    await start(bench, model, "b1", "die", after=13)  # the first of three is over by then
    await start(bench, model, "b2")
    heard, _, _ = await ask(bench, n=3, max_tokens=3)
    assert heard.done


async def test_a_stream_survives_several_losses(bench: Bench, model: Model) -> None:
    for number in range(5):
        await start(bench, model, f"b{number}", "die", after=4)
    await start(bench, model, "b5")
    heard, _, _ = await ask(bench, max_tokens=40)
    assert heard.done


async def test_without_anyone_to_go_on_it_ends_in_an_error_event(bench: Bench, model: Model) -> None:
    await start(bench, model, "b1", "die", after=4)
    heard, _, _ = await ask(bench)
    assert len(heard.tokens[0]) == 4
    assert "b1 was lost" in heard.error


async def test_only_a_worker_with_the_same_weights_goes_on(bench: Bench, model: Model) -> None:
    await start(bench, model, "b1", "die", after=4)
    await bench.worker("b2", model.script(Behaviour(), "decode"), weights="w2")
    while True:
        heard, _, response = await ask(bench)
        if response.headers["x-baton-route"] == "b1":
            break
    assert heard.error
    assert not any("baton_resume" in call.body for call in bench.workers[1].calls)


async def test_a_seed_is_sent_when_the_client_has_none(bench: Bench, model: Model) -> None:
    await start(bench, model, "b1", "die", after=4)
    await start(bench, model, "b2")
    async with bench.post(stream=True) as response:
        heard = await listen(response.content.iter_any())
    [resumed] = model.resumed
    heard.check({"seed": resumed["seed"]})
    assert bench.workers[0].calls[0].body["seed"] == resumed["seed"]


async def test_a_whole_answer_is_asked_for_anew(bench: Bench, model: Model) -> None:
    await start(bench, model, "b1", "half")
    await start(bench, model, "b2")
    async with bench.post(stream=False, seed=3) as response:
        assert (await response.json())["choices"][0]["text"].startswith(" t")


async def test_a_stalled_workers_streams_go_on_elsewhere(bench: Bench, model: Model) -> None:
    behaviour = await start(bench, model, "b1", "hang", after=4)
    asking = asyncio.ensure_future(ask(bench))
    await bench.workers[0].called()
    await start(bench, model, "b2")
    bench.workers[0].state = State.STALLED
    bench.show(*bench.workers)
    heard, _, _ = await asking
    assert heard.done
    assert behaviour.mode == "hang"


@pytest.mark.parametrize("comes", ["it recovers", "another"])
async def test_a_stalled_worker_keeps_what_nobody_else_could_take(bench: Bench, model: Model, comes: str) -> None:
    """Whoever is there first goes on."""
    await start(bench, model, "b1")
    go_on = asyncio.Event()

    async def held(call: Call) -> None:
        await call.head()
        await call.chunk(event("cmpl-1", 0, [token(3, 0, 0)], 0, None))
        await go_on.wait()
        for position in range(1, 3):
            await call.chunk(event("cmpl-1", 0, [token(3, 0, position)], position, None))
        await call.chunk(event("cmpl-1", 0, [], 3, "length") + b"data: [DONE]\n\n")
        await call.end()

    stalled = bench.workers[0]
    stalled.script = held
    asking = asyncio.ensure_future(ask(bench, max_tokens=3))
    await stalled.called()
    [exchange] = bench.core.open
    await eventually(lambda: bool(exchange.record.first_byte))
    stalled.state = State.STALLED
    bench.show(stalled)
    assert exchange.record.notes == ()
    if comes == "another":
        await start(bench, model, "b2")
    else:
        stalled.state = State.READY
        bench.show(stalled)
        go_on.set()
    heard, _, response = await asking
    assert heard.done
    request_id = response.headers["x-request-id"]
    told = await (await bench.session.get(f"{bench.url}/v1/baton/explain/{request_id}")).json()
    assert len(told["attempts"]) == (2 if comes == "another" else 1)


async def slow_stream(bench: Bench, model: Model, **fields: Any) -> tuple[asyncio.Task[Any], Behaviour]:
    """A stream on d1 that waits in its middle until the behaviour changes; d2 is there as well."""
    await start(bench, model, "p1")
    behaviour = await start(bench, model, "d1")
    asking = asyncio.create_task(ask(bench, **{"max_tokens": 2000, **fields}))
    await bench.workers[1].called()
    await eventually(lambda: any(running.tokens[0] for running in model.running.values()))
    await start(bench, model, "d2")
    return asking, behaviour


def drain(bench: Bench, index: int) -> None:
    bench.workers[index].state = State.DRAINING
    bench.show(*bench.workers)


async def test_a_draining_workers_stream_moves_with_its_pages(bench: Bench, model: Model) -> None:
    asking, _ = await slow_stream(bench, model)
    drain(bench, 1)
    heard, _, _ = await asking
    assert heard.done
    assert len(model.moves) == 1
    [resumed] = model.resumed
    assert resumed["baton_handoff"]["peer"] == "d1"
    text = await (await bench.session.get(f"{bench.url}/metrics")).text()
    assert 'baton_gateway_migrations_total{how="moved"} 1.0' in text


@pytest.mark.parametrize(
    "fields", [{"n": 2, "max_tokens": 1000}, {"path": "/generate", "return_logprob": True}], ids=["choices", "measured"]
)
async def test_what_pages_do_not_hold_ends_where_it_is(bench: Bench, model: Model, fields: dict[str, Any]) -> None:
    asking, _ = await slow_stream(bench, model, **fields)
    drain(bench, 1)
    heard, _, _ = await asking
    assert heard.done
    assert not model.moves


@pytest.mark.parametrize("fate", ["refuses", "die"])
async def test_a_move_that_nobody_takes_changes_nothing(bench: Bench, model: Model, fate: str) -> None:
    """The worker that stands still is told that the other was lost: it does not wait for it."""
    model.refuse_takers = fate == "refuses"
    asking, _ = await slow_stream(bench, model)
    if fate != "refuses":
        bench.workers[2].script = model.script(Behaviour(fate), "decode")
    drain(bench, 1)
    heard, _, _ = await asking
    assert heard.done
    assert [move.given_up.is_set() for move in model.moves.values()] == [True]


async def test_a_stream_is_not_asked_to_move_where_nobody_can_take_it(bench: Bench, model: Model) -> None:
    """Its worker would stand still for nobody: it ends what it has begun, as before a switch of weights."""
    await start(bench, model, "d1")
    asking = asyncio.create_task(ask(bench, max_tokens=2000))
    await bench.workers[0].called()
    await eventually(lambda: any(running.tokens[0] for running in model.running.values()))
    await bench.worker("d2", model.script(Behaviour(), "decode"), weights="w2")
    drain(bench, 0)
    await eventually(lambda: all(running.tokens[0] for running in model.running.values()))
    heard, _, _ = await asking
    assert heard.done
    assert not model.moves


async def test_a_worker_that_dies_while_it_moves_is_computed_again(bench: Bench, model: Model) -> None:
    asking, behaviour = await slow_stream(bench, model)
    behaviour.mode = "die"
    drain(bench, 1)
    heard, _, _ = await asking
    assert heard.done


async def test_explain_tells_of_the_move(bench: Bench, model: Model) -> None:
    await start(bench, model, "b1", "die", after=4)
    await start(bench, model, "b2")
    _, _, response = await ask(bench)
    request_id = response.headers["x-request-id"]
    told = await (await bench.session.get(f"{bench.url}/v1/baton/explain/{request_id}")).json()
    assert (told["outcome"], told["migrations"]) == ("done", 1)
    assert [attempt["decode"]["worker"] for attempt in told["attempts"]] == ["b1", "b2"]
    assert [stage["what"] for stage in told["stages"]] == ["lost", "goes on"]
    assert 0 < told["first_byte_after"] < told["ended_after"]
