from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton_serving.gateway.lifecycle import TRANSITIONS, Action, Event, Phase, advance

# What can arrive in each phase: routing only while queued, legs only once sent. After the first bytes of decode its
# refusal cannot come any more: it would have been the head of the reply.
POSSIBLE = {
    Phase.QUEUED: {Event.ROUTED, Event.NO_ROUTE, Event.CLIENT_GONE},
    Phase.SENT: set(Event) - {Event.ROUTED, Event.NO_ROUTE},
    Phase.STREAMING: set(Event) - {Event.ROUTED, Event.NO_ROUTE, Event.DECODE_REFUSED},
}
TERMINAL = {Action.FINISH, Action.PASS_REFUSAL, Action.REPLY_FAILURE, Action.BREAK_OFF, Action.RELEASE}


def test_the_table_lists_exactly_what_can_happen() -> None:
    assert set(TRANSITIONS) == {(phase, event) for phase, events in POSSIBLE.items() for event in events}


def test_a_terminal_action_ends_and_nothing_else_does() -> None:
    for phase, action in TRANSITIONS.values():
        assert (phase is Phase.ENDED) == (action in TERMINAL)


def test_nothing_is_retried_once_the_client_has_bytes() -> None:
    for (phase, _), (_, action) in TRANSITIONS.items():
        assert phase is not Phase.STREAMING or action not in {Action.RETRY, Action.SEND, Action.REPLY_FAILURE}


@given(st.data())
def test_every_life_has_one_terminal_action_whatever_happens(data: st.DataObject) -> None:
    phase, actions = Phase.QUEUED, []
    for _ in range(12):
        if phase is Phase.ENDED:
            phase, action = advance(phase, data.draw(st.sampled_from(Event)))
            assert (phase, action) == (Phase.ENDED, Action.NONE)
        else:
            phase, action = advance(phase, data.draw(st.sampled_from(sorted(POSSIBLE[phase], key=str))))
            actions.append(action)
    assert sum(action in TERMINAL for action in actions) == (phase is Phase.ENDED)
    assert all(action not in TERMINAL for action in actions[:-1])
