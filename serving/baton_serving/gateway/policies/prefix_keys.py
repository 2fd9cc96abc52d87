"""Names for the beginnings of a prompt: what the prefix index, the consistent hash and cache events speak of.

A prompt is cut at fixed places, and each key is a hash of everything up to one of them. The places lie further apart
the deeper they are, so a long prompt has some dozens of keys and each key tells its length to within an eighth. Keys
begin with the model and its weights: the same words before other weights have other keys.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

import xxhash

FIRST_CUT = 128  # bytes, some 32 tokens
LAST_CUT = 64 * 1024 * 1024
WHOLE = 65535  # the fraction that stands for a whole prompt
HEADER = b"x-baton-prefix-keys"


def _cuts() -> tuple[int, ...]:
    cuts = [FIRST_CUT]
    while cuts[-1] < LAST_CUT:
        cuts.append(cuts[-1] + max(FIRST_CUT, cuts[-1] // 8 // FIRST_CUT * FIRST_CUT))
    return tuple(cuts)


CUTS = _cuts()
_SHARES = tuple(-cut * WHOLE for cut in CUTS)


def seed_of(model: str, weight_digest: str) -> int:
    """Where the keys of prompts for this model with these weights begin."""
    return xxhash.xxh3_64_intdigest(f"{model}\0{weight_digest}".encode())


def prefix_keys(prompt: bytes | memoryview, seed: int) -> list[int]:
    """A key for each place of `CUTS` within `prompt`, shortest beginning first."""
    size = len(prompt)
    if size < FIRST_CUT:
        return []
    digest = xxhash.xxh3_64_intdigest
    view = memoryview(prompt)
    keys: list[int] = []
    key, start = seed, 0
    for cut in CUTS:
        if cut > size:
            break
        key = digest(view[start:cut], key)
        keys.append(key)
        start = cut
    return keys


def header_value(keys: Sequence[int], prompt_bytes: int) -> bytes:
    """`HEADER`'s value, for a worker that tells what it caches: hex of the keys (64 bits, little end first), then, for
    each, the fraction of the prompt that it stands for (16 bits, `WHOLE` for all of it).

    The worker can then say of what it holds by which keys it is known, without knowing how they are made.
    """
    names = array("Q", keys)
    fractions = array("H", [-(share // prompt_bytes) for share in _SHARES[: len(keys)]])  # rounded up
    if sys.byteorder == "big":
        names.byteswap()
        fractions.byteswap()
    return (names.tobytes() + fractions.tobytes()).hex().encode()
