"""Records to and from protobuf messages. What does not decode raises `Refused`, naming the field."""

from __future__ import annotations

from baton_bootstrap.errors import Refused
from baton_bootstrap.records import (
    Assignment,
    Beat,
    Delta,
    Departure,
    Entry,
    Goal,
    Load,
    Phase,
    Progress,
    Role,
    Snapshot,
    State,
    Status,
    Worker,
)
from baton_bootstrap.wire.generated import registry_pb2 as pb

MAX_BUSY_SECONDS = 3600.0
MAX_LINKS = 256

_ROLES = {Role.PREFILL: pb.ROLE_PREFILL, Role.DECODE: pb.ROLE_DECODE, Role.BOTH: pb.ROLE_BOTH}
_STATES = {
    State.STARTING: pb.STATE_STARTING,
    State.READY: pb.STATE_READY,
    State.DRAINING: pb.STATE_DRAINING,
    State.STALLED: pb.STATE_STALLED,
}
_DEPARTURES = {
    Departure.LEFT: pb.DEPARTURE_LEFT,
    Departure.BROKEN: pb.DEPARTURE_BROKEN,
    Departure.EXPIRED: pb.DEPARTURE_EXPIRED,
}
_GOALS = {Goal.SERVE: pb.GOAL_SERVE, Goal.STAGE: pb.GOAL_STAGE, Goal.SWITCH: pb.GOAL_SWITCH}
_PHASES = {
    Phase.SERVING: pb.PHASE_SERVING,
    Phase.STAGING: pb.PHASE_STAGING,
    Phase.STAGED: pb.PHASE_STAGED,
    Phase.HOLDING: pb.PHASE_HOLDING,
    Phase.SWITCHING: pb.PHASE_SWITCHING,
    Phase.FAILED: pb.PHASE_FAILED,
}
_GOALS_BACK: dict[int, Goal] = {number: goal for goal, number in _GOALS.items()}
_PHASES_BACK: dict[int, Phase] = {number: phase for phase, number in _PHASES.items()}
_ROLES_BACK: dict[int, Role] = {number: role for role, number in _ROLES.items()}
_STATES_BACK: dict[int, State] = {number: state for state, number in _STATES.items()}
_DEPARTURES_BACK: dict[int, Departure] = {number: reason for reason, number in _DEPARTURES.items()}


def worker_to_wire(worker: Worker) -> pb.Worker:
    return pb.Worker(
        id=worker.id,
        incarnation=worker.incarnation,
        epoch=worker.epoch,
        role=_ROLES[worker.role],
        http_url=worker.http_url,
        grpc_url=worker.grpc_url,
        control=worker.control,
        control_key=worker.control_key,
        keys=worker.keys,
        model=worker.model,
        weight_digest=worker.weight_digest,
        engine_digest=worker.engine_digest,
        tp_size=worker.tp_size,
        pp_size=worker.pp_size,
        page_size=worker.page_size,
        dtype=worker.dtype,
        max_total_tokens=worker.max_total_tokens,
        detail=worker.detail,
        process=worker.process,
    )


def worker_from_wire(message: pb.Worker) -> Worker:
    role = _ROLES_BACK.get(message.role)
    if role is None:
        raise Refused(f"worker.role is {message.role}; write one of {', '.join(_ROLES)}")
    return Worker(
        id=message.id,
        incarnation=message.incarnation,
        epoch=message.epoch,
        role=role,
        http_url=message.http_url,
        grpc_url=message.grpc_url,
        control=message.control,
        control_key=message.control_key,
        keys=tuple(message.keys),
        model=message.model,
        weight_digest=message.weight_digest,
        engine_digest=message.engine_digest,
        tp_size=message.tp_size,
        pp_size=message.pp_size,
        page_size=message.page_size,
        dtype=message.dtype,
        max_total_tokens=message.max_total_tokens,
        detail=message.detail,
        process=message.process,
    )


def beat_to_wire(beat: Beat) -> pb.Beat:
    return pb.Beat(
        state=_STATES[beat.state],
        load=_load_to_wire(beat.load),
        tick=beat.tick,
        busy_seconds=min(beat.busy_seconds, MAX_BUSY_SECONDS),
        progress=_progress_to_wire(beat.progress),
        links=beat.links,
    )


def beat_from_wire(message: pb.Beat) -> Beat:
    """A worker does not judge itself stalled; such a beat is refused."""
    state = _state_from_wire(message.state)
    if state is State.STALLED:
        raise Refused("beat.state is stalled; that is the server's verdict, report starting, ready or draining")
    if not 0 <= message.busy_seconds <= MAX_BUSY_SECONDS:
        raise Refused(f"beat.busy_seconds is {message.busy_seconds}; it must lie between 0 and {MAX_BUSY_SECONDS}")
    if len(message.links) > MAX_LINKS:
        raise Refused(f"beat.links names {len(message.links)} workers; at most {MAX_LINKS} are taken")
    return Beat(
        state=state,
        load=_load_from_wire(message.load),
        tick=message.tick,
        busy_seconds=message.busy_seconds,
        progress=_progress_from_wire(message.progress),
        links=dict(message.links),
    )


def status_to_wire(status: Status) -> pb.Status:
    return pb.Status(
        state=_STATES[status.state],
        load=_load_to_wire(status.load),
        progress=_progress_to_wire(status.progress),
        share=status.share,
    )


def status_from_wire(message: pb.Status) -> Status:
    return Status(
        state=_state_from_wire(message.state),
        load=_load_from_wire(message.load),
        progress=_progress_from_wire(message.progress),
        share=message.share,
    )


def assignment_to_wire(assignment: Assignment) -> pb.Assignment:
    return pb.Assignment(
        revision=assignment.revision,
        model=assignment.model,
        model_revision=assignment.model_revision,
        digest=assignment.digest,
        goal=_GOALS[assignment.goal],
        whole=assignment.whole,
        share=assignment.share,
        role=pb.ROLE_UNSPECIFIED if assignment.role is None else _ROLES[assignment.role],
    )


def assignment_from_wire(message: pb.Assignment) -> Assignment:
    goal = _GOALS_BACK.get(message.goal)
    if goal is None:
        raise Refused(f"assignment.goal is {message.goal}; write one of {', '.join(_GOALS)}")
    return Assignment(
        revision=message.revision,
        model=message.model,
        model_revision=message.model_revision,
        digest=message.digest,
        goal=goal,
        whole=message.whole,
        share=message.share,
        role=_ROLES_BACK.get(message.role),
    )


def entry_to_wire(entry: Entry) -> pb.Entry:
    return pb.Entry(worker=worker_to_wire(entry.worker), status=status_to_wire(entry.status))


def entry_from_wire(message: pb.Entry) -> Entry:
    return Entry(worker=worker_from_wire(message.worker), status=status_from_wire(message.status))


def snapshot_to_wire(snapshot: Snapshot, quiet_seconds: float) -> pb.Snapshot:
    return pb.Snapshot(
        instance=snapshot.instance,
        revision=snapshot.revision,
        warming=snapshot.warming,
        quiet_seconds=quiet_seconds,
        entries=[entry_to_wire(entry) for entry in snapshot.entries],
    )


def snapshot_from_wire(message: pb.Snapshot) -> Snapshot:
    return Snapshot(
        instance=message.instance,
        revision=message.revision,
        warming=message.warming,
        entries=tuple(entry_from_wire(entry) for entry in message.entries),
    )


def delta_to_wire(delta: Delta) -> pb.Delta:
    return pb.Delta(
        base=delta.base,
        revision=delta.revision,
        warming=delta.warming,
        joined=[entry_to_wire(entry) for entry in delta.joined],
        changed=[pb.StatusChange(id=key, status=status_to_wire(status)) for key, status in delta.changed.items()],
        removed=[pb.Removal(id=key, reason=_DEPARTURES[reason]) for key, reason in delta.removed.items()],
    )


def delta_from_wire(message: pb.Delta) -> Delta:
    return Delta(
        base=message.base,
        revision=message.revision,
        warming=message.warming,
        joined=tuple(entry_from_wire(entry) for entry in message.joined),
        changed={change.id: status_from_wire(change.status) for change in message.changed},
        removed={removal.id: _DEPARTURES_BACK[removal.reason] for removal in message.removed},
    )


def _state_from_wire(number: int) -> State:
    state = _STATES_BACK.get(number)
    if state is None:
        raise Refused(f"state is {number}; write one of starting, ready, draining")
    return state


def _load_to_wire(load: Load) -> pb.Load:
    return pb.Load(
        running=load.running,
        queued_tokens=load.queued_tokens,
        free_pages=load.free_pages,
        total_pages=load.total_pages,
        prompt_tokens=load.prompt_tokens,
        prompt_seconds=load.prompt_seconds,
        answer_tokens=load.answer_tokens,
        answer_seconds=load.answer_seconds,
    )


def _load_from_wire(message: pb.Load) -> Load:
    return Load(
        running=message.running,
        queued_tokens=message.queued_tokens,
        free_pages=message.free_pages,
        total_pages=message.total_pages,
        prompt_tokens=message.prompt_tokens,
        prompt_seconds=message.prompt_seconds,
        answer_tokens=message.answer_tokens,
        answer_seconds=message.answer_seconds,
    )


def _progress_to_wire(progress: Progress) -> pb.Progress | None:
    if progress == Progress():
        return None
    return pb.Progress(
        revision=progress.revision,
        phase=_PHASES[progress.phase],
        digest=progress.digest,
        done=progress.done,
        total=progress.total,
        error=progress.error,
        gap_seconds=progress.gap_seconds,
    )


def _progress_from_wire(message: pb.Progress) -> Progress:
    """A worker without an assignment sends none."""
    if message.phase == pb.PHASE_UNSPECIFIED:
        return Progress()
    phase = _PHASES_BACK.get(message.phase)
    if phase is None:
        raise Refused(f"progress.phase is {message.phase}; write one of {', '.join(_PHASES)}")
    return Progress(
        revision=message.revision,
        phase=phase,
        digest=message.digest,
        done=message.done,
        total=message.total,
        error=message.error,
        gap_seconds=message.gap_seconds,
    )
