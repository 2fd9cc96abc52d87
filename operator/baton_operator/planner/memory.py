"""What a rollout must remember, in the service's status and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from baton_operator.api.status import RolloutStatus, WorkerStatus
from baton_operator.planner.observed import WorkerReport
from baton_operator.rollout import Memory, Phase, Worker

_WRITTEN_EVERY: Final = 10.0  # seconds after which time alone is worth a write
_MOST: Final = 64  # workers listed


def recall(status: RolloutStatus | None) -> Memory:
    """What `record` wrote; nothing of a service that is new."""
    if status is None:
        return Memory()
    return Memory(
        phase=Phase(status.phase),
        stable=status.stable,
        version=status.version,
        failed=status.failed,
        reason=status.reason,
        moving=frozenset(status.moving),
        moved_at=_seconds(status.moved_at),
        spent=status.spent_seconds,
        at=_seconds(status.looked_at),
        promoted=status.promoted,
    )


def record(
    memory: Memory,
    before: RolloutStatus | None,
    workers: Sequence[Worker],
    reports: Sequence[WorkerReport],
    message: str,
) -> RolloutStatus:
    """The status of a rollout; of one that is over, only what does not change with time."""
    made = RolloutStatus(phase=str(memory.phase), version=memory.version, stable=memory.stable)
    if memory.phase is Phase.DONE:
        return made
    words = {"failed": memory.failed, "reason": memory.reason[:1024], "message": message[:1024]}
    made = made.model_copy(update=words)
    if memory.phase is Phase.FAILED:
        return made
    running = {
        "moving": sorted(memory.moving),
        "moved_at": _text(memory.moved_at),
        "looked_at": _text(memory.at),
        "spent_seconds": round(memory.spent, 3),
        "promoted": memory.promoted,
        "workers": _workers(workers, reports),
    }
    made = made.model_copy(update=running)
    if before is not None and memory.at - _seconds(before.looked_at) < _WRITTEN_EVERY:
        clock = {"looked_at": before.looked_at, "spent_seconds": before.spent_seconds}
        if made.model_copy(update=clock) == before:
            return before
    return made


def _workers(workers: Sequence[Worker], reports: Sequence[WorkerReport]) -> list[WorkerStatus]:
    progress = {one.id: f" {one.done} of {one.total} bytes" for one in reports if one.phase == "staging" and one.total}
    return [
        WorkerStatus(
            name=one.id,
            revision=one.version,
            stage=f"{one.stage}{progress.get(one.id, '')}{'' if one.ready else ', not ready'}",
        )
        for one in sorted(workers, key=lambda worker: worker.id)[:_MOST]
    ]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else ""
