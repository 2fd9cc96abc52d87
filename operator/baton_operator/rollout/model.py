"""What a rollout is planned from and what comes of it. Workers of one *version*, which is a name, work together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

PREFILL, DECODE, WHOLE = "prefill", "decode", "worker"  # roles


class Strategy(StrEnum):
    SURGE = "Surge"
    IN_PLACE = "InPlace"


class Stage(StrEnum):
    """Where a worker stands with the weights it was told to serve, as it reports it."""

    SERVING = "serving"
    STAGING = "staging"
    STAGED = "staged"
    SWITCHING = "switching"
    FAILED = "failed"


class Order(StrEnum):
    """What a worker is to do: serve what it serves, have the target at hand, serve the target, or end."""

    KEEP = "keep"
    STAGE = "stage"
    SWITCH = "switch"
    STOP = "stop"


class Phase(StrEnum):
    """Where the rollout stands. `FAILED`: rolled back, and nothing more until another version is wanted."""

    DONE = "Done"
    STAGING = "Staging"
    MOVING = "Moving"
    PAUSED = "Paused"
    ROLLING_BACK = "RollingBack"
    FAILED = "Failed"


@dataclass(frozen=True)
class Target:
    """The version that is wanted, and how many workers of each role."""

    version: str
    counts: Mapping[str, int]

    @property
    def sets(self) -> int:
        """Serving sets that it makes."""
        pairs = [self.counts[role] for role in (PREFILL, DECODE) if role in self.counts]
        return self.counts.get(WHOLE, 0) + (min(pairs) if len(pairs) == 2 else 0)


@dataclass(frozen=True)
class Policy:
    """`surge` and `unavailable` bound workers beside and below the wanted number, by role. At `canary` percent of the
    serving sets the rollout waits to be promoted; 100: it never does. Gates: the share of failed requests, the 95th
    percentile of the time to first token, and a probe, each of the new version; the first two count from `min_requests`
    on. `soak` is how many seconds a step is watched before the next, `deadline` how many the whole may take. `undone`:
    somebody wants the new version to be taken back.
    """

    strategy: Strategy = Strategy.SURGE
    surge: Mapping[str, int] = field(default_factory=dict)
    unavailable: Mapping[str, int] = field(default_factory=dict)
    canary: int = 100
    soak: float = 0.0
    deadline: float = 1800.0
    max_error_rate: float = 1.0
    max_ttft: float = float("inf")
    min_requests: int = 20
    probe: bool = False
    paused: bool = False
    undone: bool = False


@dataclass(frozen=True)
class Worker:
    """One worker as it is now. `version` is what it serves; `whole`: it takes requests whole. `stage` is where it
    stands with the version `heard`, which it was told last, `digest` that of what it staged.

    `ready`: new requests are sent to it. `order` numbers the workers of a role, lowest first.
    """

    id: str
    role: str
    version: str
    ready: bool
    whole: bool = False
    stage: Stage = Stage.SERVING
    heard: str = ""
    digest: str = ""
    error: str = ""
    order: int = 0


@dataclass(frozen=True)
class Health:
    """How requests of one version fare since its roll began; `probe` None: not asked yet."""

    requests: int = 0
    failed: int = 0
    ttft: float = 0.0
    probe: bool | None = None


@dataclass(frozen=True)
class Seen:
    """`admitted` are the versions that every gateway sends requests to; `now` in seconds of any one clock."""

    workers: tuple[Worker, ...]
    admitted: frozenset[str]
    now: float
    health: Mapping[str, Health] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """What must outlive the planner. `stable` is the version that was last rolled out whole, where a failure goes back
    to; `failed` is not tried again. `moving` are the workers that change in place now, `moved_at` is when the last ones
    had; `leaving` are those that were told to end. `spent` seconds count towards the deadline, as of `at`. `promoted`
    is set from outside.
    """

    phase: Phase = Phase.DONE
    stable: str = ""
    version: str = ""
    failed: str = ""
    reason: str = ""
    moving: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    moved_at: float = 0.0
    spent: float = 0.0
    at: float = 0.0
    promoted: bool = False

    @property
    def goal(self) -> str:
        """The version that workers are led to now."""
        return self.stable if self.phase in (Phase.ROLLING_BACK, Phase.FAILED) else self.version


@dataclass(frozen=True)
class Step:
    """What to do now. `orders` and `whole` are by worker id; `counts` says how many workers of each role and version
    there should be. `version` is the one that orders refer to, `shares` weighs new traffic by version, `probe`
    names the version whose probe is wanted. `message` says why it waits and what comes next.
    """

    version: str
    orders: Mapping[str, Order]
    whole: frozenset[str]
    counts: Mapping[tuple[str, str], int]
    shares: Mapping[str, int]
    memory: Memory
    message: str
    probe: str = ""
