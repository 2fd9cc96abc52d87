"""What the registry knows of a worker: facts fixed at its start, what it reports, and what watchers are told."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Role(StrEnum):
    """A preference, not a wall: any worker can run a request whole."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"


class State(StrEnum):
    """`STALLED` is the server's verdict on a ready worker whose scheduler stands still; a worker never reports it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STALLED = "stalled"


class Departure(StrEnum):
    """Why a worker is gone: it said so, its stream broke, or its lease ran out."""

    LEFT = "left"
    BROKEN = "broken"
    EXPIRED = "expired"


class Goal(StrEnum):
    """How far a worker is to go with the weights of its assignment: keep what it serves; have the new ones at hand and
    checked beside; take no new work, end what runs, and serve the new ones."""

    SERVE = "serve"
    STAGE = "stage"
    SWITCH = "switch"


class Phase(StrEnum):
    """Where a worker stands with its assignment."""

    SERVING = "serving"
    STAGING = "staging"
    STAGED = "staged"
    HOLDING = "holding"
    SWITCHING = "switching"
    FAILED = "failed"


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that hold while one worker process serves one set of weights.

    `incarnation` is new on every start and with other weights, and compared whole; `process` is new on every start
    only. `epoch`, the unix time of the incarnation's begin in nanoseconds, orders the incarnations of one `id`.
    `control` is the ZeroMQ endpoint of the handoff, `control_key` the CURVE public key that it shows. `keys` are
    further names it answers to in look-ups, such as the `host:port` by which a router calls a prefill worker's
    bootstrap. `detail` is opaque.
    """

    id: str
    incarnation: str
    epoch: int
    role: Role
    http_url: str
    grpc_url: str = ""
    control: str = ""
    control_key: str = ""
    keys: tuple[str, ...] = ()
    model: str = ""
    weight_digest: str = ""
    engine_digest: str = ""
    tp_size: int = 1
    pp_size: int = 1
    page_size: int = 0
    dtype: str = ""
    max_total_tokens: int = 0
    detail: bytes = b""
    process: str = ""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy a worker is: requests running, uncached prompt tokens waiting, KV pages free and in all.

    The rest counts from the worker's start: prompt tokens computed and the seconds of the steps that computed any;
    tokens put out, and the seconds from each request's token to its next, summed over requests.
    """

    running: int = 0
    queued_tokens: int = 0
    free_pages: int = 0
    total_pages: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    answer_tokens: int = 0
    answer_seconds: float = 0.0


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to serve. `revision` names the change in reports; `digest` is what the checkpoint `model` must
    have, "" for whatever it is. `role` is the one to have, None for that it was started for; `whole`: serve requests
    whole, whatever its role. `share` weighs new traffic for workers of its weights against that for others.
    """

    revision: str
    model: str
    model_revision: str = ""
    digest: str = ""
    goal: Goal = Goal.SERVE
    whole: bool = False
    share: int = 100
    role: Role | None = None

    @property
    def takes(self) -> Role | None:
        """The role that the worker offers, None for that it was started for."""
        return Role.BOTH if self.whole else self.role


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker stands with the assignment of `revision`. `digest` is of what is staged; `done` and `total` are
    bytes; `gap_seconds` is how long the last switch kept steps from running.
    """

    revision: str = ""
    phase: Phase = Phase.SERVING
    digest: str = ""
    done: int = 0
    total: int = 0
    error: str = ""
    gap_seconds: float = 0.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The changing part of an entry, as watchers see it."""

    state: State = State.STARTING
    load: Load = Load()
    progress: Progress = Progress()
    share: int = 100


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """One heartbeat. `tick` counts turns of the scheduler loop, which turns when idle too.

    A worker that knows its next turn will be long says so first: `busy_seconds` from now the tick may stand still.
    `links` are bytes a second at which KV pages come from other workers, by their ids; the operator reads them,
    watchers do not. One that fetches its model is `STARTING` and says how far it is in `progress`.
    """

    state: State = State.STARTING
    load: Load = Load()
    tick: int = 0
    busy_seconds: float = 0.0
    progress: Progress = Progress()
    links: dict[str, float] = {}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A live worker as watchers and look-ups see it."""

    worker: Worker
    status: Status

    @property
    def ready(self) -> bool:
        return self.status.state is State.READY


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Every live worker at `revision` of the server run `instance`.

    While `warming`, a worker missing here may be alive and not back yet.
    """

    instance: str
    revision: int
    warming: bool
    entries: tuple[Entry, ...]


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What turns a view at revision `base` into the one at `revision`: apply removals, then joins, then changes.

    An id in `joined` replaces whatever the view holds under it. `removed` and `changed` map ids.
    """

    base: int
    revision: int
    warming: bool
    joined: tuple[Entry, ...] = ()
    changed: dict[str, Status] = {}
    removed: dict[str, Departure] = {}
