"""How fast KV pages come from other workers."""

from __future__ import annotations

from typing import Final

_FADE: Final = 0.9  # what an earlier transfer counts beside the next
_MAX_PEERS: Final = 64


class LinkRates:
    """Bytes over the seconds in which writes were under way, by sender; late transfers count most, large ones more.

    Of more than 64 senders those that sent last are remembered.
    """

    def __init__(self) -> None:
        self._moved: dict[str, tuple[float, float]] = {}  # bytes and seconds, latest sender last

    def add(self, sender: str, nbytes: int, seconds: float) -> None:
        """A transfer has arrived."""
        before = self._moved.pop(sender, (0.0, 0.0))
        self._moved[sender] = before[0] * _FADE + nbytes, before[1] * _FADE + seconds
        if len(self._moved) > _MAX_PEERS:
            del self._moved[next(iter(self._moved))]

    def rates(self) -> dict[str, float]:
        """Bytes a second by sender, of those that have sent any."""
        return {name: nbytes / seconds for name, (nbytes, seconds) in self._moved.items() if nbytes and seconds > 0}
