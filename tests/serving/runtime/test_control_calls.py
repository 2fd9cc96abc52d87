"""Every control call gets one reply: at once, later, or an error."""

from __future__ import annotations

from baton_serving.errors import InvalidRequest, NotFound
from baton_serving.runtime.control_calls import ControlCalls, Later
from baton_serving.runtime.messages import ControlInput, ControlReply, Failure


def test_replies_at_once_and_later() -> None:
    replies: list[ControlReply] = []
    waiting = {name: Later() for name in ("first", "second")}
    calls = ControlCalls({"echo": lambda text: {"text": text}, "wait": lambda key: waiting[key]}, replies.append)
    calls.call(ControlInput(id="a", method="echo", args={"text": "hi"}))
    assert replies == [ControlReply(id="a", result={"text": "hi"})]
    for name in waiting:
        calls.call(ControlInput(id=name, method="wait", args={"key": name}))
    calls.answer()
    assert len(replies) == 1
    waiting["second"].fail(InvalidRequest("no"))
    waiting["second"].resolve({"too": "late"})
    calls.answer()
    calls.answer()
    assert replies[1:] == [ControlReply(id="second", error=Failure(InvalidRequest.code, "no"))]
    waiting["first"].resolve({"done": True})
    calls.answer()
    assert replies[2:] == [ControlReply(id="first", result={"done": True})]


def test_errors_are_replies() -> None:
    replies: list[ControlReply] = []

    def refuse() -> Later:
        raise InvalidRequest("not now")

    calls = ControlCalls({"refuse": refuse}, replies.append)
    calls.call(ControlInput(id="a", method="refuse"))
    calls.call(ControlInput(id="b", method="unheard of"))
    assert [reply.error and reply.error.code for reply in replies] == [InvalidRequest.code, NotFound.code]
