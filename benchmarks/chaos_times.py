"""What a stream's wait for its next token is made of, and what it is compared with."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

NEAR_SECONDS = 2.5  # of what happens at about the same time
TOGETHER_SECONDS = 0.5  # between streams that lost their worker at once
SHOWN = 12  # of the slowest
# Up to the end of which the worker's mark says; both legs start at once, so decode may be there later than the pages.
STAGES = {
    "another pair found": "",
    "on its way to a prefill step": "scheduled",
    "prefilled": "prefilled",
    "waited for decode's worker": "queued",
    "pages moved": "transferred",
    "first step of decode": "first_token",
    "back to the client": "",
}

Timings = dict[str, Any]


@dataclass(frozen=True)
class Wait:
    """How long a stream of distinct request `which` waited, from `begun` (unix time) on, and at each stage, or ().

    `about` says for people what it was.
    """

    which: int
    begun: float
    seconds: float
    stages: tuple[float, ...] = ()
    about: str = ""

    @property
    def prefill(self) -> float:
        """Seconds of its own prefill; 0 where unknown."""
        return self.stages[list(STAGES).index("prefilled")] if self.stages else 0.0


def wait_of(which: int, begun: float, sent: float, ended: float, timings: Sequence[Timings], about: str = "") -> Wait:
    """All unix times. `timings` are those of the stream's choices, of which the first to speak since `sent` counts."""
    ours = [
        one for one in timings if one.get("received", 0.0) > sent - 0.01 and 0 < one.get("first_token", 0.0) < ended
    ]
    if not ours:
        return Wait(which, begun, ended - begun, about=about)
    first = min(ours, key=lambda one: float(one["first_token"]))
    at, stages = begun, []
    for mark in (sent, *(first.get(name, 0.0) for name in STAGES.values() if name), ended):
        stages.append(max(0.0, mark - at))
        at = max(at, mark)
    return Wait(which, begun, ended - begun, tuple(stages), about)


@dataclass(frozen=True)
class Compared:
    """Ratios: of streams that went on and of undisturbed ones to the usual first token of the same request, of the
    former to the median of those of the latter that began about then, and to the prefill of their own."""

    resumed: list[float]
    undisturbed: list[float]
    at_the_time: list[float]
    own_prefill: list[float]


def usual_seconds(undisturbed: Sequence[Wait]) -> dict[int, float]:
    """The median wait of each distinct request that was undisturbed at least three times."""
    by_request: dict[int, list[float]] = defaultdict(list)
    for wait in undisturbed:
        by_request[wait.which].append(wait.seconds)
    return {which: statistics.median(seconds) for which, seconds in by_request.items() if len(seconds) >= 3}


def compare(resumed: Sequence[Wait], undisturbed: Sequence[Wait]) -> Compared:
    usual = usual_seconds(undisturbed)
    ratios = [(wait.begun, wait.seconds / usual[wait.which]) for wait in resumed if wait.which in usual]
    control = [(wait.begun, wait.seconds / usual[wait.which]) for wait in undisturbed if wait.which in usual]
    fair = []
    for begun, ratio in ratios:
        near = [other for at, other in control if abs(at - begun) <= NEAR_SECONDS]
        if near:
            fair.append(ratio / statistics.median(near))
    own = [wait.seconds / wait.prefill for wait in resumed if wait.prefill]
    return Compared([ratio for _, ratio in ratios], [ratio for _, ratio in control], fair, own)


def quantiles(values: Sequence[float], unit: float = 1.0) -> str:
    if not values:
        return "nothing measured"
    ordered = [value / unit for value in sorted(values)]
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
    return f"p50 {p50:.2f}, p99 {p99:.2f}, longest {ordered[-1]:.2f}, of {len(ordered)}"


def stage_table(resumed: Sequence[Wait], undisturbed: Sequence[Wait]) -> Table:
    """Where the time goes, in milliseconds."""
    title = "From noticing a loss to the next bytes; from sending an undisturbed request to its first (ms)"
    table = Table("stage", "went on: p50, p90, p99", "undisturbed: p50, p90, p99", title=title, title_justify="left")
    for index, name in enumerate(STAGES):
        cells = []
        for waits in (resumed, undisturbed):
            seconds = sorted(wait.stages[index] for wait in waits if wait.stages)
            at = [seconds[min(len(seconds) - 1, int(len(seconds) * share))] for share in (0.5, 0.9, 0.99) if seconds]
            cells.append(", ".join(f"{one * 1e3:.0f}" for one in at))
        table.add_row(name, *cells)
    return table


def slow_table(resumed: Sequence[Wait], undisturbed: Sequence[Wait]) -> Table:
    """The streams that waited longest of those that went on, measured by the usual first token of the same request."""
    usual = usual_seconds(undisturbed)
    slow = sorted(((wait.seconds / usual[wait.which], wait) for wait in resumed if wait.which in usual), key=_by_ratio)
    table = Table("ratio", "stages (ms)", "at once", "what", title="The slowest to go on", title_justify="left")
    for ratio, wait in reversed(slow[-SHOWN:]):
        together = sum(abs(other.begun - wait.begun) <= TOGETHER_SECONDS for other in resumed)
        stages = ", ".join(f"{seconds * 1e3:.0f}" for seconds in wait.stages) or f"{wait.seconds * 1e3:.0f} in all"
        table.add_row(f"{ratio:.1f}", stages, str(together), wait.about)
    return table


def _by_ratio(measured: tuple[float, Wait]) -> float:
    return measured[0]
