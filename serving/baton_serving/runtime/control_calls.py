"""Control calls of the scheduler process: a method's name to its handler, and exactly one reply for each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from baton_serving.errors import BatonError, NotFound
from baton_serving.runtime.messages import ControlInput, ControlReply, Failure


class Later:
    """The result of a call that takes more than one turn of the loop. What is said first counts."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}
        self.error: BatonError | None = None
        self.done = False

    def resolve(self, result: dict[str, Any]) -> None:
        if not self.done:
            self.result, self.done = result, True

    def fail(self, error: BatonError) -> None:
        if not self.done:
            self.error, self.done = error, True


ControlHandler = Callable[..., dict[str, Any] | Later]


class ControlCalls:
    """Answers calls through `reply`. A handler raises BatonError to answer with an error."""

    def __init__(self, handlers: Mapping[str, ControlHandler], reply: Callable[[ControlReply], None]) -> None:
        self._handlers = handlers
        self._reply = reply
        self._open: list[tuple[str, Later]] = []

    def call(self, message: ControlInput) -> None:
        handler = self._handlers.get(message.method)
        try:
            if handler is None:
                raise NotFound(f"the scheduler has no call {message.method!r}")
            result = handler(**message.args)
        except BatonError as error:
            self._refuse(message.id, error)
            return
        if isinstance(result, Later):
            self._open.append((message.id, result))
        else:
            self._reply(ControlReply(id=message.id, result=result))

    def answer(self) -> None:
        """Reply to the calls whose result has come meanwhile."""
        for call_id, later in [entry for entry in self._open if entry[1].done]:
            self._open.remove((call_id, later))
            if later.error is None:
                self._reply(ControlReply(id=call_id, result=later.result))
            else:
                self._refuse(call_id, later.error)

    def _refuse(self, call_id: str, error: BatonError) -> None:
        self._reply(ControlReply(id=call_id, error=Failure(error.code, error.message)))
