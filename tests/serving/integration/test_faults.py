"""Killed, stopped, replaced and confused processes: every request ends once, nothing stays held, the next is right."""

from __future__ import annotations

import asyncio
import random
import signal
import socket

import httpx
import pytest
import zmq
from support.baton_processes import BATON_TINY, BATON_TINY_V2, BatonProcesses
from support.disaggregation import (
    Fleet,
    Legs,
    Shape,
    ask,
    disaggregated,
    ended,
    fresh_prompt,
    greedy,
    leg_bodies,
    next_is_right,
    reached,
    send_pair,
    settled,
    start_fleet,
    until,
)

LONG = 1850


def many(client: httpx.AsyncClient, fleet: Fleet, count: int = 5) -> list[Legs]:
    """Requests that keep the pair busy for a while, in every state of a handoff."""
    draw = random.Random()
    return [send_pair(client, fleet, greedy(fresh_prompt(LONG, draw))) for _ in range(count)]


def all_registered(fleet: Fleet) -> bool:
    found = httpx.get(f"{fleet.bootstrap.url}/workers").json()["workers"]
    return {worker.key for worker in fleet.workers} <= {one["id"] for one in found}


async def kill_while_pages_move(client: httpx.AsyncClient, fleet: Fleet, victim: str) -> None:
    """Of several requests in every state, those that had not arrived end with an error that names the dead worker."""
    dead, survivor = fleet.prefills[0], fleet.decodes[0]
    if victim == "decode":
        dead, survivor = survivor, dead
    legs = many(client, fleet)
    await reached(fleet.decodes[0], "requests_reserved")
    dead.kill()
    answers = [await ended(leg.decode if victim == "prefill" else leg.prefill) for leg in legs]
    assert {answer.status for answer in answers} <= {200, 503}
    failed = [answer for answer in answers if answer.status == 503]
    assert failed
    assert all(dead.key in answer.error["message"] for answer in failed), failed
    await settled(survivor)
    for leg in legs:
        await asyncio.gather(ended(leg.prefill), ended(leg.decode))


async def test_prefill_killed_while_pages_move_and_replaced(client: httpx.AsyncClient, fleet: Fleet) -> None:
    await kill_while_pages_move(client, fleet, "prefill")
    fleet.revive()
    await next_is_right(client, fleet, fleet.whole)


async def test_decode_killed_while_pages_move_and_replaced(client: httpx.AsyncClient, fleet: Fleet) -> None:
    await kill_while_pages_move(client, fleet, "decode")
    fleet.revive()
    await next_is_right(client, fleet, fleet.whole)


async def test_a_client_that_leaves_in_any_state(client: httpx.AsyncClient, fleet: Fleet) -> None:
    prefill, decode = fleet.prefills[0], fleet.decodes[0]
    draw = random.Random(5)
    states = {
        "waiting for pages": (decode, "requests_reserved"),
        "prefilling": (prefill, "requests_prefilling"),
        "decoding": (decode, "requests_running"),
    }
    for worker, metric in states.values():
        for leaves in ("prefill", "decode"):
            legs = send_pair(client, fleet, greedy(fresh_prompt(LONG, draw), tokens=400))
            await reached(worker, metric)
            gone, left = (legs.prefill, legs.decode) if leaves == "prefill" else (legs.decode, legs.prefill)
            gone.cancel()
            assert (await ended(left)).status in (200, 503)  # 200: its work was done
            await settled(*fleet.workers)
    await next_is_right(client, fleet, fleet.whole)


@pytest.mark.parametrize("alone", ["prefill", "decode"])
async def test_a_leg_whose_other_half_left_before_it_came(client: httpx.AsyncClient, fleet: Fleet, alone: str) -> None:
    prefill, decode = fleet.prefills[0], fleet.decodes[0]
    first, second = leg_bodies(greedy(fresh_prompt(100, random.Random())), prefill)
    early, late = ((prefill, first), (decode, second)) if alone == "prefill" else ((decode, second), (prefill, first))
    leaving = asyncio.create_task(ask(client, *early))
    if alone == "prefill":
        await reached(prefill, "kv_pages_in_use")  # done, and waiting to be asked for its pages
    else:
        await reached(decode, "handoff_waiting")
    leaving.cancel()
    await settled(early[0])
    answer = await ended(asyncio.create_task(ask(client, *late)))
    assert answer.status == 503
    await next_is_right(client, fleet, fleet.whole)


async def test_bad_tickets_are_refused(client: httpx.AsyncClient, fleet: Fleet) -> None:
    prefill, decode = fleet.prefills[0], fleet.decodes[0]
    first, second = leg_bodies(greedy([5, 6, 7]), prefill, transfer_id="once only")
    answers = await asyncio.gather(ask(client, prefill, first), ask(client, decode, second))
    assert [answer.status for answer in answers] == [200, 200]
    for worker, body in ((prefill, first), (decode, second)):
        answer = await ask(client, worker, body)
        assert (answer.status, answer.error["param"]) == (400, "transfer_id")
        assert "was used before" in answer.error["message"]
    _, stranger = leg_bodies(greedy([5, 6, 7]), prefill)
    stranger["baton_handoff"]["peer"] = "192.0.2.1:80"
    answer = await ask(client, decode, stranger)
    assert answer.status == 503
    assert "no worker is registered as '192.0.2.1:80'" in answer.error["message"]
    _, nameless = leg_bodies(greedy([5, 6, 7]), prefill)
    del nameless["baton_handoff"]["peer"]
    assert (await ask(client, decode, nameless)).status == 400
    await next_is_right(client, fleet, fleet.whole)


async def test_noise_on_the_control_socket_is_counted_and_survived(client: httpx.AsyncClient, fleet: Fleet) -> None:
    draw = random.Random(9)
    for worker in fleet.workers:
        refused = worker.metrics()["baton_handoff_refused_messages_total"]
        info = (await client.get(f"{worker.url}/server_info")).json()
        endpoint = info["handoff_endpoint"]
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(draw.randbytes(5000))
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.connect(endpoint)
            for size in (0, 1, 7, 100, 100_000):
                dealer.send(draw.randbytes(size))
            await reached(worker, "handoff_refused_messages_total", refused + 5)
    await next_is_right(client, fleet, fleet.whole)


async def test_bootstrap_restarts_under_load(client: httpx.AsyncClient, fleet: Fleet) -> None:
    port = str(fleet.bootstrap.facts["grpc"]).rpartition(":")[2]
    legs = many(client, fleet, 3)
    await reached(fleet.decodes[0], "requests_reserved")
    fleet.bootstrap.kill()
    for leg in legs:
        assert [(await ended(leg.prefill)).status, (await ended(leg.decode)).status] == [200, 200]
    fleet.bootstrap = fleet.processes.bootstrap(int(port))
    await until(lambda: all_registered(fleet), "workers to register again")
    await next_is_right(client, fleet, fleet.whole)


async def test_other_weights_are_refused_with_both_sides_named(
    client: httpx.AsyncClient, fleet: Fleet, processes: BatonProcesses
) -> None:
    decode = fleet.decodes[0]
    options = disaggregated("prefill", fleet.bootstrap, fleet.shape.backend)
    stranger = processes.worker("stranger", BATON_TINY_V2, *options).wait_announced()
    first, second = leg_bodies(greedy([5, 6, 7]), stranger)
    computing = asyncio.create_task(ask(client, stranger, first))
    answer = await ask(client, decode, second)
    computing.cancel()  # as the gateway does when one leg has failed
    assert answer.status == 503
    message = answer.error["message"]
    assert stranger.key in message
    assert decode.key in message
    assert (await ask(client, stranger, greedy([5, 6, 7]))).status == 200
    await settled(stranger, decode)
    await next_is_right(client, fleet, fleet.whole)


@pytest.fixture
def fleet_of(processes: BatonProcesses, request: pytest.FixtureRequest) -> Fleet:
    """A pair of its own for a test that names the backend."""
    return start_fleet(processes, BATON_TINY, Shape(request.param))


@pytest.mark.deep
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fleet_of", ["mooncake", "nixl"], indirect=True)
async def test_kills_before_during_and_after_a_transfer(client: httpx.AsyncClient, fleet_of: Fleet) -> None:
    fleet = fleet_of
    for victim in ("prefill", "decode"):
        for kill in (kill_before, kill_while_pages_move, kill_after):
            await kill(client, fleet, victim)
            fleet.revive()
            await next_is_right(client, fleet, fleet.whole)


async def kill_before(client: httpx.AsyncClient, fleet: Fleet, victim: str) -> None:
    """One leg is there when the other's worker dies."""
    prefill, decode = fleet.prefills[0], fleet.decodes[0]
    first, second = leg_bodies(greedy(fresh_prompt(100, random.Random())), prefill)
    if victim == "prefill":
        leg = asyncio.create_task(ask(client, decode, second))
        await reached(decode, "handoff_waiting")
        prefill.kill()
    else:
        leg = asyncio.create_task(ask(client, prefill, first))
        await reached(prefill, "kv_pages_in_use")
        decode.kill()
    assert (await ended(leg)).status in (503, 504)  # 504: nobody ever asked for the pages
    await settled(decode if victim == "prefill" else prefill)


async def kill_after(client: httpx.AsyncClient, fleet: Fleet, victim: str) -> None:
    """The pages have arrived: the prefill worker's death changes nothing any more, nor does decode's for it."""
    legs = send_pair(client, fleet, greedy(fresh_prompt(LONG, random.Random()), tokens=200))
    await reached(fleet.decodes[0], "requests_running")
    (fleet.prefills if victim == "prefill" else fleet.decodes)[0].kill()
    assert (await ended(legs.decode if victim == "prefill" else legs.prefill)).status == 200
    await settled(fleet.decodes[0] if victim == "prefill" else fleet.prefills[0])
    await asyncio.gather(ended(legs.prefill), ended(legs.decode))


@pytest.mark.deep
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fleet_of", ["mooncake", "nixl"], indirect=True)
@pytest.mark.parametrize("hung", ["prefill", "decode"])
async def test_a_worker_stopped_for_longer_than_its_lease(
    client: httpx.AsyncClient, fleet_of: Fleet, hung: str
) -> None:
    fleet = fleet_of
    legs = many(client, fleet)
    await reached(fleet.decodes[0], "requests_reserved")
    victim = fleet.prefills[0] if hung == "prefill" else fleet.decodes[0]
    survivor = fleet.decodes[0] if hung == "prefill" else fleet.prefills[0]
    victim.signal(signal.SIGSTOP)
    for leg in legs:
        answer = await ended(leg.decode if hung == "prefill" else leg.prefill)
        assert answer.status in (200, 503)
    await settled(survivor)
    victim.signal(signal.SIGCONT)
    for leg in legs:
        answer = await ended(leg.prefill if hung == "prefill" else leg.decode)
        assert answer.status in (200, 503)
    await settled(*fleet.workers)
    await next_is_right(client, fleet, fleet.whole)
