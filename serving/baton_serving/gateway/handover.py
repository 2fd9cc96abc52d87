"""Moving a running stream with its pages: the draining worker stands still, another takes over, the streams switch.

The first worker's `POST /baton/move` answers with the tokens that it has; all of their events come on its stream before
whatever it sends at the end. From the question on, an event that ends the answer is held back: it may only say that the
request was handed over (docs/internals/handoff.md).
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from baton_serving.gateway.fleet import Endpoint
from baton_serving.gateway.http.framing import frame, split_events, unframe
from baton_serving.gateway.http.head import Head
from baton_serving.gateway.http.upstream import Connection
from baton_serving.gateway.transcript import finished_choices


class Handover:
    """One stream's move. `told` are the tokens after which the taker goes on; None until the first worker stands still.

    Streams of one choice only: the transfer of each choice is a request of its own to the first worker, and choices
    that end in between would leave the others behind.
    """

    def __init__(self, transfer_id: str, attempt: int) -> None:
        self.transfer_id = transfer_id
        self.attempt = attempt
        self.told: list[int] | None = None
        self.early = b""  # what the taker sent before the client had all that came before
        self.taker_over = False
        self._held: list[bytes] = []

    @property
    def holds_end(self) -> bool:
        """Whether the first worker's stream has come to an end, real or not."""
        return bool(self._held)

    def pass_on(self, chunks: bytes) -> bytes:
        """The first worker's chunks without the end of the answer and what follows it."""
        events = split_events(unframe(chunks))
        going: list[bytes] = []
        for event in events:
            if self._held or event == b"data: [DONE]\n\n" or finished_choices(event):
                self._held.append(event)
            else:
                going.append(event)
        return frame(b"".join(going))

    def give_back(self) -> bytes:
        """What was held back, when the first worker goes on after all."""
        held, self._held = self._held, []
        return frame(b"".join(held))

    async def withdraw(self, endpoint: Endpoint, rid: str) -> None:
        """Tell the first worker that nobody will take the request over."""
        await MoveCall(endpoint, lambda tokens: None).send(self.request(rid, withdraw=True))

    def request(self, rid: str, *, withdraw: bool = False) -> bytes:
        """The body of `POST /baton/move`; with `withdraw` the request is to go on where it is."""
        ticket = {"transfer_id": self.transfer_id, "attempt": self.attempt - 1}
        return orjson.dumps({"rid": rid, "choice": 0, **ticket, "withdraw": withdraw})


class MoveCall:
    """Asks a worker to stand still; calls `on_answer` once, with the tokens or None when it does not."""

    def __init__(self, endpoint: Endpoint, on_answer: Callable[[list[int] | None], None]) -> None:
        self._endpoint = endpoint
        self._on_answer = on_answer
        self._status = 0

    async def send(self, body: bytes) -> None:
        pool = self._endpoint.pool
        try:
            connection: Connection = pool.take() or await pool.connect()
        except OSError:
            self._on_answer(None)
            return
        head = b"POST /baton/move HTTP/1.1\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        connection.send(self, (head % (pool.host_line, len(body)) + body,))

    def on_head(self, head: Head) -> bool:
        self._status = head.status
        return False

    def on_events(self, chunks: bytes) -> None:
        """Never, as `on_head` said."""

    def on_end(self, body: bytes) -> None:
        self._on_answer(_tokens(body) if self._status == 200 else None)

    def on_lost(self, reason: str) -> None:
        self._on_answer(None)


def _tokens(body: bytes) -> list[int] | None:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    tokens = answer.get("output_ids") if isinstance(answer, dict) else None
    return tokens if isinstance(tokens, list) and all(isinstance(token, int) for token in tokens) else None
