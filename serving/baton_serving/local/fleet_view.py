"""A local service in the rollout planner's terms: its workers as they are now."""

from __future__ import annotations

from collections.abc import Mapping

from baton_bootstrap.records import Entry, Phase
from baton_operator.rollout import Stage, Worker
from baton_serving.local.plan import Kind
from baton_serving.local.supervisor import Slot, Supervisor

_STAGES = {
    Phase.SERVING: Stage.SERVING,
    Phase.STAGING: Stage.STAGING,
    Phase.STAGED: Stage.STAGED,
    Phase.HOLDING: Stage.SWITCHING,
    Phase.SWITCHING: Stage.SWITCHING,
    Phase.FAILED: Stage.FAILED,
}


def entry_of(slot: Slot, supervisor: Supervisor) -> Entry | None:
    """What the registry holds of a slot's worker, if its process is there."""
    return supervisor.view.entries.get(slot.spec.name) if slot.running else None


def seen_workers(supervisor: Supervisor, versions: Mapping[str, str]) -> tuple[Worker, ...]:
    """All workers, of which `versions` says by name what they serve. One that is started again counts as not ready."""
    found = []
    for name, slot in supervisor.slots.items():
        if slot.spec.kind is not Kind.WORKER:
            continue
        entry = entry_of(slot, supervisor)
        order = int(name.rpartition("-")[2])
        if entry is None:
            stage = Stage.FAILED if slot.refused else Stage.SERVING
            heard = versions[name] if slot.refused else ""
            worker = Worker(
                name, slot.spec.role, versions[name], False, stage=stage, heard=heard, error=slot.refused, order=order
            )
        else:
            worker = _worker(name, slot, entry, versions[name], order)
        found.append(worker)
    return tuple(found)


def _worker(name: str, slot: Slot, entry: Entry, version: str, order: int) -> Worker:
    progress = entry.status.progress
    return Worker(
        id=name,
        role=slot.spec.role,
        version=version,
        ready=entry.ready and not slot.leaving,
        whole=slot.spec.role != "worker" and entry.worker.role == "both",
        stage=_STAGES[progress.phase],
        heard=progress.revision,
        digest=progress.digest,
        error=progress.error,
        order=order,
    )
