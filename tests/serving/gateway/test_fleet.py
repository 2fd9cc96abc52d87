from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from baton_bootstrap.records import Entry, Load, Role, State, Status, Worker
from baton_serving.gateway.fleet import Endpoint, Fleet, Route
from baton_serving.gateway.leg import NOBODY, Leg
from baton_serving.gateway.policies import POLICIES
from baton_serving.gateway.routing import Router, RoutingConfig
from baton_serving.gateway.snapshot import RequestFacts

P, D, B = Role.PREFILL, Role.DECODE, Role.BOTH


def entry(
    worker_id: str,
    role: Role,
    weights: str = "w1",
    state: State = State.READY,
    model: str = "m",
    start: int = 1,
    url: str = "http://h:1",
    page_size: int = 16,
) -> Entry:
    worker = Worker(
        id=worker_id,
        incarnation=f"{worker_id}.{start}",
        epoch=start,
        role=role,
        http_url=url,
        model=model,
        weight_digest=weights,
        page_size=page_size,
    )
    return Entry(worker=worker, status=Status(state=state))


def fleet_of(*entries: Entry) -> Fleet:
    fleet = Fleet()
    fleet.update(entries)
    return fleet


def find_route(
    fleet: Fleet, number: int = 0, avoid: frozenset[Endpoint] = frozenset(), policy: str = "round_robin"
) -> Route | None:
    router = Router(RoutingConfig(policy=policy))
    router.fleet = fleet
    router.seen()
    decision = router.route(RequestFacts(number=number, model="m", prompt=b"", prompt_tokens=1), avoid)
    return None if decision is None else decision.route


def route(fleet: Fleet, number: int = 0, avoid: frozenset[Endpoint] = frozenset()) -> str:
    return str(find_route(fleet, number, avoid))


def test_only_equal_weights_and_pages_are_paired() -> None:
    fleet = fleet_of(entry("p1", P, "w1"), entry("p2", P, "w2"), entry("d1", D, "w1"), entry("d2", D, "w2"))
    assert {route(fleet, ticket) for ticket in range(8)} == {"p1>d1", "p2>d2"}
    assert route(fleet_of(entry("p1", P, page_size=64), entry("d1", D))) == "d1"


def test_new_requests_follow_the_shares_of_versions() -> None:
    workers = [("p1", P, "w1"), ("d1", D, "w1"), ("p2", P, "w2"), ("d2", D, "w2")]
    shares = {"w1": 90, "w2": 10}
    entries = [
        Entry(worker=made.worker, status=Status(state=State.READY, share=shares[weights]))
        for worker_id, role, weights in workers
        if (made := entry(worker_id, role, weights))
    ]
    fleet = fleet_of(*entries)
    drawn = [route(fleet, ticket) for ticket in range(1000)]
    assert set(drawn) == {"p1>d1", "p2>d2"}
    assert 50 < drawn.count("p2>d2") < 150
    others = frozenset(endpoint for endpoint in fleet.endpoints.values() if endpoint.worker.id in ("p1", "d1"))
    assert {route(fleet, ticket, others) for ticket in range(50)} == {"p2>d2"}


def test_a_process_that_changed_its_weights_lives_on() -> None:
    def incarnation(start: int, process: str) -> Entry:
        made = entry("d", D, f"w{start}", start=start)
        return Entry(worker=msgspec.structs.replace(made.worker, process=process), status=made.status)

    fleet = fleet_of(incarnation(1, "a"))
    (gone,) = fleet.update([incarnation(2, "a")])
    assert fleet.lives_on(gone)
    (gone,) = fleet.update([incarnation(3, "b")])
    assert not fleet.lives_on(gone)


def test_a_worker_may_change_its_role() -> None:
    fleet = fleet_of(entry("p", P), entry("d", D))
    before = next(one for one in fleet.endpoints.values() if one.worker.id == "p")
    fleet.update([entry("p", B), entry("d", D)])
    assert route(fleet) == "p"
    assert next(one for one in fleet.endpoints.values() if one.worker.id == "p") is before


def test_pairs_come_first_then_whole_workers_then_any_worker_alone() -> None:
    pair = [entry("p", P), entry("d", D)]
    assert route(fleet_of(*pair, entry("b", B))) == "p>d"
    assert route(fleet_of(pair[1], entry("b", B))) == "b"
    assert route(fleet_of(pair[1])) == "d"
    assert route(fleet_of(pair[0])) == "p"


def test_only_ready_workers_count() -> None:
    for state in (State.STARTING, State.DRAINING, State.STALLED):
        assert route(fleet_of(entry("p", P, state=state), entry("d", D))) == "d"
        assert route(fleet_of(entry("d", D, state=state))) == "None"


def test_avoided_workers_are_not_taken() -> None:
    fleet = fleet_of(entry("p", P), entry("q", P), entry("d", D), entry("e", D))
    by_id = {endpoint.worker.id: endpoint for endpoint in fleet.endpoints.values()}
    assert {route(fleet, n, frozenset({by_id["p"], by_id["d"]})) for n in range(4)} == {"q>e"}
    assert route(fleet, 0, frozenset({by_id["p"], by_id["q"]})) in {"d", "e"}
    assert route(fleet, 0, frozenset(by_id.values())) == "None"


def test_an_endpoint_that_is_missing_for_a_moment_keeps_its_legs() -> None:
    fleet = fleet_of(entry("d", D))
    [endpoint] = fleet.endpoints.values()
    endpoint.legs.add(Leg(endpoint, "decode", NOBODY, 0))
    assert fleet.update([]) == [endpoint]
    assert fleet.update([]) == []
    assert fleet.update([entry("d", D)]) == []
    assert list(fleet.endpoints.values()) == [endpoint]
    assert not fleet.expire(endpoint)


def test_a_restarted_worker_is_a_stranger() -> None:
    fleet = fleet_of(entry("d", D, start=1))
    [old] = fleet.endpoints.values()
    assert fleet.update([entry("d", D, start=2)]) == [old]
    assert fleet.replaced(old)
    assert fleet.expire(old)
    assert not fleet.expire(old)
    assert list(fleet.endpoints.values()) != [old]


def test_a_worker_without_a_usable_address_gets_no_requests() -> None:
    assert route(fleet_of(entry("d", D, url="ftp://h:1"), entry("e", D))) == "e"


def test_load_is_what_was_reported_or_what_was_sent_whichever_is_more() -> None:
    fleet = fleet_of(entry("d", D))
    [endpoint] = fleet.endpoints.values()
    endpoint.legs.add(Leg(endpoint, "decode", NOBODY, 0))
    assert endpoint.running == 1
    models = fleet.models
    fleet.update(
        [Entry(worker=endpoint.worker, status=Status(state=State.READY, load=Load(running=5, queued_tokens=7)))]
    )
    assert fleet.models is models  # loads alone leave all that was worked out for the fleet in place
    assert (endpoint.running, endpoint.queued_tokens) == (5, 7)


fleets = st.lists(
    st.builds(
        entry,
        st.integers(0, 99).map(lambda n: f"x{n}"),
        st.sampled_from(Role),
        st.sampled_from(["w1", "w2"]),
        st.sampled_from(list(State)),
    ),
    max_size=8,
    unique_by=lambda one: one.worker.id,
)


@given(fleets, st.sampled_from(sorted(POLICIES)), st.integers(0, 1000), st.data())
def test_a_route_never_crosses_weights_and_is_found_when_there_is_one(
    entries: list[Entry], policy: str, ticket: int, data: st.DataObject
) -> None:
    fleet = fleet_of(*entries)
    everyone = list(fleet.endpoints.values())
    avoid = frozenset(data.draw(st.lists(st.sampled_from(everyone), max_size=4)) if everyone else [])
    usable = [one for one in everyone if one.status.state is State.READY and one not in avoid]
    found = find_route(fleet, ticket, avoid, policy) if "m" in fleet.models else None
    assert (found is not None) == bool(usable)
    if found is not None:
        assert set(found.endpoints) <= set(usable)
        assert len({one.worker.weight_digest for one in found.endpoints}) == 1
        assert found.prefill is None or (found.prefill.worker.role, found.decode.worker.role) == (P, D)
        helpers = [one for one in usable if one.worker.role is not P]
        assert found.decode.worker.role is not P or not helpers
