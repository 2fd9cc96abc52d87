"""What a worker's stream of cache events carries, one JSON object a line; see docs/internals/cache-events.md."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence

import msgspec

PATH = "/baton/cache_events"
BEAT_SECONDS = 5.0  # between two lines at most: a stream that is silent much longer is dead


class CacheFrame(msgspec.Struct, omit_defaults=True):
    """One line. `seq` rises by one with every change, so a reader sees that it missed some; a beat repeats the last.

    With `snapshot`, `stored` is all that the cache holds. Keys are 64-bit numbers, little end first, packed.
    """

    seq: int
    snapshot: bool = False
    stored: bytes = b""
    removed: bytes = b""


def pack_keys(keys: Iterable[int]) -> bytes:
    packed = array("Q", keys)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_keys(data: bytes) -> Sequence[int]:
    """Raises ValueError when `data` is no whole number of keys."""
    keys = array("Q")
    keys.frombytes(data)
    if sys.byteorder == "big":
        keys.byteswap()
    return keys


def read_names(value: str) -> list[tuple[int, int]]:
    """What the header `x-baton-prefix-keys` names: each key, and how much of the prompt it stands for, in 1/65,535.

    Raises ValueError when it is not hex of as many 16-bit fractions as 64-bit keys.
    """
    data = bytes.fromhex(value)
    count, rest = divmod(len(data), 10)
    if rest:
        raise ValueError("it is not made of keys and fractions")
    fractions = array("H", data[8 * count :])
    if sys.byteorder == "big":
        fractions.byteswap()
    return list(zip(unpack_keys(data[: 8 * count]), fractions, strict=True))
