"""What rank 0 tells the follower ranks, in order, and what they report upward.

A follower acts on these commands only: it has no clock, no queue and no policy of its own, so all ranks launch the
same steps in the same order.
"""

from __future__ import annotations

from typing import Any

import msgspec

from baton_serving.scheduling.step import StepPlan


class Command(msgspec.Struct, tag=True):
    """Base of all commands."""


class Launch(Command):
    plan: StepPlan


class Call(Command):
    """Run a named executor method on every rank; the answer comes back as a `Report` with the same `id`."""

    id: int
    method: str
    args: dict[str, Any] = {}


class Stop(Command):
    """Leave the command loop."""


class Report(msgspec.Struct):
    """A follower's answer to a `Call`; `error` is set when it failed."""

    id: int
    rank: int
    result: Any = None
    error: str | None = None


AnyCommand = Launch | Call | Stop
