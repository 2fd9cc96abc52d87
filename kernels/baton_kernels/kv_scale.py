"""What a layer's keys and values are divided by before they are rounded to the pool's type, and multiplied by after."""

from __future__ import annotations

from typing import NamedTuple


class KVScale(NamedTuple):
    """Of one layer's keys and values; above 0."""

    k: float = 1.0
    v: float = 1.0


UNSCALED = KVScale()
