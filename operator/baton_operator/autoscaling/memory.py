"""What the autoscaler remembers from one decision to the next. All of it may be lost: it then looks on for a while."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf

from baton_operator.planner.observed import WorkerReport

_FORGET = 0.995  # weight of the past, per decision: half is forgotten in about half an hour
_DOUBT = 0.05  # deviation of x, as part of its mean, up to which the slope is rather guessed than read


@dataclass(frozen=True)
class Mean:
    """A mean that forgets: the sum of what was added over the sum of its weights."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, total: float, weight: float, keep: float = _FORGET) -> Mean:
        """With one more look; `keep` is the weight that the former ones keep."""
        return Mean(keep * self.total + total, keep * self.weight + weight)

    @property
    def value(self) -> float | None:
        """None before anything was added."""
        return self.total / self.weight if self.weight > 0 else None


@dataclass(frozen=True)
class Line:
    """How one figure grows with another: least squares over forgetting moments."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float) -> Line:
        f = _FORGET
        return Line(f * self.n + 1, f * self.x + x, f * self.y + y, f * self.xx + x * x, f * self.xy + x * y)

    @property
    def slope(self) -> float:
        """As far as the x seen are too much alike to tell a slope, half of y is taken not to depend on x, as of a step
        a part does not depend on the load.
        """
        mean_x, mean_y = self.x / self.n, self.y / self.n
        spread = max(0.0, self.xx / self.n - mean_x**2)
        guess, doubt = mean_y / mean_x / 2, (_DOUBT * mean_x) ** 2
        return (self.xy / self.n - mean_x * mean_y + doubt * guess) / (spread + doubt)

    def at(self, x: float) -> float:
        """The y that belongs to `x`; there must be points."""
        return (self.y + self.slope * (self.n * x - self.x)) / self.n

    def reaches(self, y: float) -> float:
        """The x at which the line reaches `y`, infinite when it never does; there must be points."""
        return inf if self.slope <= 0 else self.x / self.n + (y - self.y / self.n) / self.slope


@dataclass(frozen=True)
class Series:
    """Values with their times, oldest first."""

    points: tuple[tuple[float, float], ...] = ()

    def add(self, at: float, value: float, keep: float) -> Series:
        """With one more; what is older than `keep` seconds goes."""
        return Series((*(point for point in self.points if point[0] > at - keep), (at, value)))

    def most(self) -> float:
        return max(value for _, value in self.points)

    def span(self) -> float:
        return self.points[-1][0] - self.points[0][0] if self.points else 0.0

    def since(self, at: float) -> Series:
        """The points after `at`."""
        return Series(tuple(point for point in self.points if point[0] > at))

    def trend(self, at: float) -> float:
        """Where the straight line through the points is at `at`; the mean of fewer than eight."""
        count = len(self.points)
        mean = sum(value for _, value in self.points) / count
        if count < 8:
            return mean
        middle = sum(time for time, _ in self.points) / count
        spread = sum((time - middle) ** 2 for time, _ in self.points)
        slope = sum((time - middle) * (value - mean) for time, value in self.points) / spread
        return mean + slope * (at - middle)


@dataclass(frozen=True)
class RoleMemory:
    """Workers that one role needs, and those that it would miss soon if it had fewer.

    `foreseen` are those that it will need in ten minutes. `raised_at` is when it was last given more, or first looked
    at; `rising` says that this was its last change.
    """

    need: float = 0.0
    foreseen: float = 0.0
    lasting: Series = Series()
    raised_at: float = 0.0
    rising: bool = True


@dataclass(frozen=True)
class Memory:
    """`at` is the time of the last decision, `seen` what each worker reported then."""

    at: float | None = None
    seen: Mapping[str, WorkerReport] = field(default_factory=dict)
    queued: int = 0
    rate: Mean = Mean()  # prompt tokens per second of a worker that computes prompts
    crowding: Mean = Mean()  # seconds waited for each unit of ρ/(1-ρ)
    pace: Line = Line()  # seconds per token over pages in use of a worker
    pages: Mean = Mean()  # in use for each request that is being answered
    unevenness: Mean = Mean()  # seconds per token of the slowest worker, in those of all
    demands: Mapping[str, Series] = field(default_factory=dict)
    roles: Mapping[str, RoleMemory] = field(default_factory=dict)
    busy_at: float | None = None  # when there was last anything to do

    def role(self, name: str) -> RoleMemory:
        return self.roles.get(name, RoleMemory())

    def with_role(self, name: str, role: RoleMemory) -> Memory:
        return replace(self, roles={**self.roles, name: role})
