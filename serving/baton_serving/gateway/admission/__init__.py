"""Who may enter: the seam between the data path, which asks, and whatever decides. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from baton_serving.gateway.snapshot import RequestFacts


class Admission(Protocol):
    """Decides when requests may be routed. `number` of the facts names a request; times are in seconds.

    Every request that `offer` did not refuse is ended by exactly one `leave`, whether it was ever admitted or not.
    """

    def offer(self, facts: RequestFacts, now: float) -> bool:
        """True: go on. False: wait until `admit` names it. Raises QueueFull or Unavailable, with `retry_after`."""
        ...

    def admit(self, now: float) -> Sequence[int]:
        """Waiting requests that may go on now. Asked after each `leave`, and every few milliseconds while some wait."""
        ...

    def shed(self, now: float) -> Sequence[int]:
        """Waiting requests that must be refused with 503 now: past their deadline, or pushed out by better ones."""
        ...

    def leave(self, number: int, tokens: int, now: float) -> None:
        """The request has ended; `tokens` is how many it used, prompt and answer, as far as is known."""
        ...

    def counts(self, number: int) -> bool:
        """Whether `leave` makes use of this request's tokens, so that they are worth counting."""
        ...

    @property
    def retry_after(self) -> float:
        """Seconds after which a request that was shed may better be sent again."""
        ...

    def gauges(self) -> Mapping[str, int]:
        """Requests that wait, by class."""
        ...


class OpenDoor:
    """Admits everything at once."""

    def counts(self, number: int) -> bool:
        return False

    def offer(self, facts: RequestFacts, now: float) -> bool:
        return True

    def admit(self, now: float) -> Sequence[int]:
        return ()

    def shed(self, now: float) -> Sequence[int]:
        return ()

    def leave(self, number: int, tokens: int, now: float) -> None:
        """Nothing to give back."""

    @property
    def retry_after(self) -> float:
        return 1.0

    def gauges(self) -> Mapping[str, int]:
        return {}
