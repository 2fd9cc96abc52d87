"""The guarantee: at every instant some version has a serving set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from baton_operator.rollout.model import DECODE, PREFILL, WHOLE, Worker


def serving_sets(workers: Iterable[Worker]) -> dict[str, int]:
    """By version, how many serving sets the ready workers make.

    A pair is one; where one role is missing, decode workers serve whole, and so do workers that were told to.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for worker in workers:
        if worker.ready:
            counts[worker.version, WHOLE if worker.whole else worker.role] += 1
    found = {}
    for version in {version for version, _ in counts}:
        prefill, decode, whole = (counts[version, role] for role in (PREFILL, DECODE, WHOLE))
        found[version] = whole + (min(prefill, decode) if prefill and decode else decode)
    return {version: sets for version, sets in found.items() if sets}


def serving(workers: Iterable[Worker], without: Collection[str] = (), among: Collection[str] | None = None) -> bool:
    """Whether a serving set is left when the workers `without` are gone; `among`: one of these versions."""
    left = serving_sets(worker for worker in workers if worker.id not in without)
    return any(among is None or version in among for version in left)
