"""Where an answer goes: a client's connection, or something that rewrites the answer on its way there."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """Takes one answer: `reply`, or `begin`, any number of `relay`, then `end`. `lines` are header lines with CRLF.

    Chunks are whole events framed for HTTP; `framing.unframe` and `framing.frame` get at their payload.
    """

    @property
    def lagging(self) -> bool:
        """Whether the client has yet to take what it was sent."""
        ...

    def reply(self, status: int, lines: bytes, body: bytes) -> None: ...

    def begin(self, status: int, lines: bytes, chunks: bytes) -> None: ...

    def relay(self, chunks: bytes) -> None: ...

    def end(self) -> None: ...
