"""How many bytes of request bodies a process holds: a body stays whole until its request has ended, for retries."""

from __future__ import annotations

from baton_serving.errors import BatonError, TooLarge, Unavailable

_RETRY_AFTER = 1.0  # seconds


class Bodies:
    """The bound on one body, `limit`, and on all that are `held` at once, `total`, in bytes.

    Only what has arrived counts: a client that announces much and sends little takes nothing from others. Connections
    count up and down by themselves.
    """

    __slots__ = ("held", "limit", "total")

    def __init__(self, limit: int, total: int) -> None:
        self.limit = limit
        self.total = total
        self.held = 0

    def refusal(self, size: int, counted: int = 0) -> BatonError | None:
        """Why a body of `size` bytes, `counted` of which are held already, is not taken: for good, or for now."""
        if size > self.limit:
            return TooLarge(f"the body has {size} bytes or more, at most {self.limit} are taken")
        others = self.held - counted
        if others + size > self.total:
            message = f"bodies of open requests fill {others} of {self.total} bytes; try again later"
            return Unavailable(message, _RETRY_AFTER)
        return None
