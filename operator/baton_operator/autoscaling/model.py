"""What the autoscaler is told: aims, bounds, and the fleet as it stands. Times in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from baton_operator.planner.observed import WorkerReport


@dataclass(frozen=True)
class Targets:
    """`ttft` and `tpot` are what 99 of 100 requests should keep: seconds to the first token, and from token to token.

    `pages` is the part of a worker's KV pages that may be in use. Demand is foreseen `lead` ahead, for as long as a
    worker takes to come up. Workers go when for `shrink` fewer would have done; all of them after `idle` without any
    request. Prefill workers number between `ratio[0]` and `ratio[1]` times the decode workers. With `flip` a worker of
    one role may take the other, which costs no time.
    """

    ttft: float = 1.0
    tpot: float = 0.05
    pages: float = 0.8
    lead: float = 60.0
    shrink: float = 300.0
    idle: float = 300.0
    ratio: tuple[float, float] = (0.1, 10.0)
    flip: bool = False


@dataclass(frozen=True)
class Bounds:
    """Fewest and most workers of a role."""

    least: int
    most: int


@dataclass(frozen=True)
class Fleet:
    """What stands: by role the workers that are wanted, and what each worker reports.

    `waiting` are requests that gateways hold because no worker is ready. While not `settled`, such as during a change
    of weights, nothing is taken away.
    """

    wanted: Mapping[str, int]
    workers: Sequence[WorkerReport] = field(default=())
    waiting: int = 0
    settled: bool = True

    @property
    def divided(self) -> bool:
        return "prefill" in self.wanted
