"""The state tables, every state against every event."""

from __future__ import annotations

import itertools

import pytest

from baton_serving.handoff.machines import (
    RECEIVE_TABLE,
    SEND_TABLE,
    ReceiveAction,
    ReceiveEvent,
    ReceiveState,
    SendAction,
    SendEvent,
    SendState,
)

SEND_OVER = {SendState.DELIVERED, SendState.FAILED}
RECEIVE_OVER = {ReceiveState.ARRIVED, ReceiveState.FAILED}
SEND_PAIRS = list(itertools.product(SendState, SendEvent))
RECEIVE_PAIRS = list(itertools.product(ReceiveState, ReceiveEvent))


@pytest.mark.parametrize(("state", "event"), SEND_PAIRS)
def test_every_send_pair_is_defined_and_sound(state: SendState, event: SendEvent) -> None:
    after, actions = SEND_TABLE.step(state, event)
    if state in SEND_OVER:
        assert after is state, "an ended transfer never comes back"
        assert SendAction.REPORT_FAILED not in actions
    reports = {SendAction.REPORT_DELIVERED, SendAction.REPORT_FAILED} & set(actions)
    begins_to_end = state not in SEND_OVER | {SendState.QUIESCING} and (
        after in SEND_OVER or after is SendState.QUIESCING
    )
    assert len(reports) == (1 if begins_to_end else 0), "one terminal report, when the transfer begins to end"
    if SendAction.REPORT_QUIET in actions:
        assert (state, event) == (SendState.QUIESCING, SendEvent.QUIET)
    if SendAction.SEND_SNAPSHOT in actions:
        assert (state, event) == (SendState.WRITING, SendEvent.COMPLETE)


@pytest.mark.parametrize(("state", "event"), RECEIVE_PAIRS)
def test_every_receive_pair_is_defined_and_sound(state: ReceiveState, event: ReceiveEvent) -> None:
    after, actions = RECEIVE_TABLE.step(state, event)
    if state in RECEIVE_OVER:
        assert (after, actions) == (state, ())
    reports = {ReceiveAction.REPORT_ARRIVED, ReceiveAction.REPORT_FAILED} & set(actions)
    begins_to_end = state not in RECEIVE_OVER | {ReceiveState.DRAINING} and (
        after in RECEIVE_OVER or after is ReceiveState.DRAINING
    )
    assert len(reports) == (1 if begins_to_end else 0)
    if ReceiveAction.SEND_PAGES in actions:
        assert (state, event) == (ReceiveState.BEGUN, ReceiveEvent.ANNOUNCE)


def test_announced_pages_leave_only_by_proof() -> None:
    """From the states in which bytes may land, only an event that proves the writer quiet leads to an end."""
    proofs = {ReceiveEvent.SNAPSHOT, ReceiveEvent.PEER_QUIET, ReceiveEvent.FENCED}
    exposed = (ReceiveState.RECEIVING, ReceiveState.DRAINING)
    for state, event in itertools.product(exposed, set(ReceiveEvent) - proofs):
        assert RECEIVE_TABLE.step(state, event)[0] in exposed, (state, event)


def test_a_send_with_writes_in_flight_ends_only_when_they_have() -> None:
    for event in set(SendEvent) - {SendEvent.QUIET}:
        assert SEND_TABLE.step(SendState.QUIESCING, event)[0] is SendState.QUIESCING
    for event in set(SendEvent) - {SendEvent.COMPLETE}:
        assert SEND_TABLE.step(SendState.WRITING, event)[0] in (SendState.WRITING, SendState.QUIESCING)


@pytest.mark.parametrize("state", [s for s in SendState if s not in SEND_OVER | {SendState.QUIESCING}])
def test_a_send_can_be_ended_from_every_state(state: SendState) -> None:
    for event in (SendEvent.ABORT, SendEvent.PEER_ABORT, SendEvent.PEER_LOST):
        after, actions = SEND_TABLE.step(state, event)
        assert after in (SendState.FAILED, SendState.QUIESCING)
        assert SendAction.REPORT_FAILED in actions


@pytest.mark.parametrize("state", [s for s in ReceiveState if s not in RECEIVE_OVER | {ReceiveState.DRAINING}])
def test_a_receive_can_be_aborted_from_every_state(state: ReceiveState) -> None:
    after, actions = RECEIVE_TABLE.step(state, ReceiveEvent.ABORT)
    assert after in (ReceiveState.FAILED, ReceiveState.DRAINING)
    assert actions == (ReceiveAction.SEND_ABORT, ReceiveAction.REPORT_FAILED)


def test_every_state_is_reached() -> None:
    for table, first in ((SEND_TABLE, SendState.OPENED), (RECEIVE_TABLE, ReceiveState.EXPECTING)):
        reached, frontier = {first}, [first]
        while frontier:
            state = frontier.pop()
            for (before, _), (after, _) in table.rows.items():
                if before is state and after not in reached:
                    reached.add(after)
                    frontier.append(after)
        assert reached == set(type(first))
