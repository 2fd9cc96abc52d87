"""The bytes that the legs of a request send: the client's body with what the gateway adds, attempt by attempt."""

from __future__ import annotations

import time
from collections.abc import Sequence

from baton_serving.gateway.ask import Ask, Names
from baton_serving.gateway.fleet import Endpoint

LARGE = 64 * 1024  # bytes of a body beyond which a copy costs more than a list of pieces

Body = tuple[bytes | memoryview, bytes]  # what the client sent, and what is added behind it


class Outgoing:
    """Writes one request's bodies. `rid` is the name by which workers know the latest attempt.

    Every attempt has a name and a transfer id that no other ever has, and the same seed.
    """

    __slots__ = ("_ask", "_deadline", "_generates", "_names", "_standing", "rid")

    def __init__(self, ask: Ask, names: Names, deadline: float, generates: bool) -> None:
        """`deadline` on the monotonic clock, 0 for none. What does not generate is sent untouched."""
        self.rid = ask.rid
        self._ask = ask
        self._names = names
        self._deadline = deadline
        self._generates = generates
        self._standing: dict[str, object] | None = None

    def transfer_id(self, attempt: int) -> str:
        return self._names.transfer_id(self._ask.number, attempt)

    def body(
        self,
        attempt: int,
        peer: Endpoint | None,
        receiver: Endpoint,
        resume: dict[str, object] | None,
        transfer_id: str = "",
    ) -> Body:
        """What both legs of an attempt get. `peer` has the pages, or will have, and `receiver` takes them over.

        `resume` is what the client has.
        """
        if not self._generates:
            return memoryview(self._ask.body), b""
        if self._standing is None:
            self._standing = self._ask.standing_additions()
        additions = self._standing
        self.rid = additions["rid"] = self._ask.rid if attempt == 1 else f"{self._ask.rid}.{attempt}"
        if peer is not None:
            transfer_id = transfer_id or self._names.transfer_id(self._ask.number, attempt)
            additions["baton_handoff"] = {
                "transfer_id": transfer_id,
                "peer": peer.id,
                "attempt": attempt - 1,
                "receiver": receiver.id,
            }
        elif "baton_handoff" in additions:
            additions["baton_handoff"] = None
        if resume is not None:
            additions["baton_resume"] = resume
        return self._ask.payload(additions)

    def request(self, endpoint: Endpoint, body: Body, more_lines: bytes = b"") -> Sequence[bytes | memoryview]:
        """The HTTP request to one worker: one piece, or several when the body is large, so that legs share it."""
        ask = self._ask
        lines = ask.lines + more_lines
        if self._deadline:
            lines += b"x-request-timeout: %.3f\r\n" % max(0.001, self._deadline - time.monotonic())
        came, added = body
        size = len(came) + len(added)
        head = b"POST %b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n" % (ask.route, endpoint.pool.host_line, lines, size)
        return (head, came, added) if size > LARGE else (b"".join((head, came, added)),)
