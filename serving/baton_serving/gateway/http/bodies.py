"""How many bytes of request bodies a process holds: a body stays whole until its request has ended, for retries."""

from __future__ import annotations

from baton_serving.errors import TooLarge, Unavailable

_RETRY_AFTER = 1.0  # seconds


class Bodies:
    """The bound on one body, `limit`, and on all that are held at once, `total`, both in bytes.

    Only what has arrived counts: a client that announces much and sends little takes nothing from others.
    """

    __slots__ = ("held", "limit", "total")

    def __init__(self, limit: int, total: int) -> None:
        self.limit = limit
        self.total = total
        self.held = 0

    def announced(self, size: int) -> None:
        """A body of so many bytes is about to come. Raises TooLarge, or Unavailable when there is no room now."""
        if size > self.limit:
            raise TooLarge(f"the body has {size} bytes, at most {self.limit} are taken")
        if self.held + size > self.total:
            raise self._full()

    def take(self, size: int, came: int) -> None:
        """`size` more bytes of a body of which `came` are held. Raises as `announced` does, and then holds none."""
        if came + size > self.limit:
            raise TooLarge(f"the body is larger than {self.limit} bytes")
        if self.held + size > self.total:
            raise self._full()
        self.held += size

    def release(self, size: int) -> None:
        self.held -= size

    def _full(self) -> Unavailable:
        return Unavailable(
            f"bodies of open requests fill {self.held} of {self.total} bytes; try again later", _RETRY_AFTER
        )
