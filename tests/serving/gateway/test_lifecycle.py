from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton_serving.gateway.lifecycle import TABLE, TRANSITIONS, Action, Event, Phase

ALWAYS = {Event.CLIENT_GONE, Event.EXPIRED}
ROUTING = {Event.ROUTED, Event.NO_ROUTE}
PREFILL = {Event.PREFILL_DONE, Event.PREFILL_LOST, Event.PREFILL_REFUSED}
DECODE = {Event.DECODE_BYTES, Event.DECODE_DONE, Event.DECODE_LOST}
TAKER = {Event.TAKER_BYTES, Event.TAKER_DONE, Event.TAKER_LOST}
# What can arrive in each phase: routing only while nothing is under way, legs only once sent, and a decode leg that has
# sent bytes can no longer refuse.
POSSIBLE = {
    Phase.QUEUED: ALWAYS | ROUTING,
    Phase.SENT: ALWAYS | PREFILL | DECODE | {Event.DECODE_REFUSED},
    Phase.STREAMING: ALWAYS | PREFILL | DECODE | {Event.DRAINING},
    Phase.STRANDED: ALWAYS | ROUTING,
    Phase.RESENT: ALWAYS | PREFILL | DECODE | {Event.DECODE_REFUSED},
    Phase.MOVING: ALWAYS | PREFILL | DECODE | {Event.STOOD_STILL, Event.MOVE_FAILED},
    Phase.TAKING: ALWAYS | PREFILL | DECODE | TAKER | {Event.MOVE_FAILED},
}
TERMINAL = {
    *(Action.FINISH, Action.PASS_REFUSAL, Action.REPLY_FAILURE, Action.BREAK_OFF, Action.RELEASE),
    Action.SWITCH_AND_FINISH,
}
CLIENT_HAS_BYTES = (Phase.STREAMING, Phase.STRANDED, Phase.RESENT, Phase.MOVING, Phase.TAKING)


def test_the_table_lists_exactly_what_can_happen() -> None:
    assert set(TRANSITIONS) == {(phase, event) for phase, events in POSSIBLE.items() for event in events}


def test_a_terminal_action_ends_and_nothing_else_does() -> None:
    for phase, action in TRANSITIONS.values():
        assert (phase is Phase.ENDED) == (action in TERMINAL)


def test_a_client_that_has_bytes_never_gets_a_status() -> None:
    for (phase, _), (after, action) in TRANSITIONS.items():
        if phase in CLIENT_HAS_BYTES:
            assert action not in {Action.REPLY_FAILURE, Action.PASS_REFUSAL}
            assert after in (*CLIENT_HAS_BYTES, Phase.ENDED)


def test_whoever_retries_has_nothing_under_way_and_whoever_sends_has() -> None:
    for after, action in TRANSITIONS.values():
        assert (action is Action.RETRY) == (after in (Phase.QUEUED, Phase.STRANDED))
        assert (action is Action.SEND) == (after in (Phase.SENT, Phase.RESENT) and action is not Action.NONE)


@given(st.data())
def test_every_life_has_one_terminal_action_whatever_happens(data: st.DataObject) -> None:
    phase, actions = Phase.QUEUED, []
    for _ in range(20):
        if phase is Phase.ENDED:
            phase, action = TABLE[phase][data.draw(st.sampled_from(Event))]
            assert (phase, action) == (Phase.ENDED, Action.NONE)
        else:
            phase, action = TABLE[phase][data.draw(st.sampled_from(sorted(POSSIBLE[phase], key=str)))]
            actions.append(action)
    assert sum(action in TERMINAL for action in actions) == (phase is Phase.ENDED)
    assert all(action not in TERMINAL for action in actions[:-1])
