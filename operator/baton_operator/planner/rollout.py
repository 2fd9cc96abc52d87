"""How a service gets from one revision to the next: the rollout planner, told of the cluster, and what its step means
there: numbers of replicas, assignments for workers, and the status in which it remembers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from baton_operator.api.status import RolloutStatus
from baton_operator.planner.context import PROMOTED, UNDONE, Context
from baton_operator.planner.fleet import Fleet, Member
from baton_operator.planner.flips import at_home, flips_of, may_flip, with_flips
from baton_operator.planner.memory import recall, record
from baton_operator.planner.observed import Group, Key, Observed, key_of
from baton_operator.planner.records import Records, Version
from baton_operator.planner.revision import RoleRevision, name_of, wanted_revisions
from baton_operator.planner.scaling import desired_replicas
from baton_operator.planner.worker import workload_name
from baton_operator.rollout import (
    WHOLE,
    Memory,
    Order,
    Phase,
    Policy,
    Seen,
    Step,
    Strategy,
    Target,
    Worker,
    policy_of,
    serving_sets,
    step,
)

_BUSY: Final = (Phase.STAGING, Phase.MOVING, Phase.ROLLING_BACK)
_LOOK, _LOOK_PAUSED = 1.0, 5.0  # seconds between two looks at a change that is under way
_UNSEEN: Final = "no bootstrap server says what the workers do; their weights stay until one does"


@dataclass(frozen=True)
class Rollout:
    """One step. `replicas` are by workload; one that is missing is to be deleted. `records` are those to keep, `proven`
    those whose workers have served, `weights` the digests found. The workers are led to the roles of `current`, of
    which each is to have `desired` workers. `assignments` are by worker, None when nobody could take them; `probe`
    names a revision of which a worker is to be asked. `flips` are the roles of workers that have another than they
    were started for.
    """

    current: Sequence[RoleRevision]
    desired: Mapping[str, int]
    replicas: Mapping[Key, int]
    records: Sequence[Key]
    proven: frozenset[Key]
    weights: Mapping[Key, str]
    workers: Sequence[Worker]
    goal: str
    status: RolloutStatus
    assignments: Mapping[str, Mapping[str, object]] | None = None
    probe: str = ""
    probed: Sequence[str] = ()
    requeue_after: float | None = None
    serving: Mapping[str, int] = field(default_factory=dict)
    flips: Mapping[str, str] = field(default_factory=dict)


def plan_rollout(context: Context, observed: Observed, records: Records, now: datetime) -> Rollout:
    """The next step of one service."""
    return _Planning(context, observed, records, now).rollout()


class _Planning:
    def __init__(self, context: Context, observed: Observed, records: Records, now: datetime) -> None:
        self._context = context
        self._observed = observed
        self._records = records
        self._now = now
        self._before = context.service.status.rollout
        self._wanted = name_of(wanted_revisions(context.manifest.spec))
        self._proven = {key_of(group) for group in observed.groups() if group.proven}
        self._memory = self._recall()
        self._goal = self._version(self._memory.goal if self._memory.version == self._wanted else self._wanted)
        needed = (self._goal.name, self._memory.stable, self._wanted)
        names = dict.fromkeys((*needed, *records.names))
        known = {name: found for name in names if (found := records.version(name)) is not None}
        resting = self._memory.phase is Phase.DONE and self._memory.version == self._wanted
        self._resting = resting
        flips = {one.name: one.role for one in context.service.status.flips}
        self._fleet = Fleet(observed, records, list(known.values()), resting=resting, flips=flips)
        changed = {member.worker.version for member in self._fleet.members if member.worker.version != member.starts}
        self._versions = {name: version for name, version in known.items() if name in needed or name in changed}
        self._groups = [group for group in observed.groups() if self._counts(group)]
        kept = {key_of(group) for group in self._groups}
        self._members = [member for member in self._fleet.members if member.key in kept]

    def rollout(self) -> Rollout:
        policy = replace(policy_of(self._context.manifest), undone=self._context.service.says(UNDONE))
        desired = desired_replicas(self._context, self._goal.roles, self._observed)
        if not any(desired.values()):
            return self._asleep(desired)
        self._members = self._with_flips(desired)
        policy = replace(policy, strategy=self._strategy(policy))
        in_place = policy.strategy is Strategy.IN_PLACE
        idle = self._memory.phase in (Phase.DONE, Phase.FAILED) and self._memory.version in ("", self._wanted)
        if in_place and self._observed.workers is None and not idle:
            return self._unseen(desired)
        target = Target(self._wanted, self._target(desired, busy=in_place and not idle))
        planned = step(target, policy, replace(self._seen(), now=self._now.timestamp()), self._memory)
        self._memory = replace(planned.memory, leaving=frozenset())
        return self._result(planned, policy, desired)

    def _with_flips(self, desired: Mapping[str, int]) -> list[Member]:
        """Roles change between rollouts, and while the workers can be told so."""
        if not may_flip(self._context.manifest.spec):
            return self._members if self._goal.roles[-1].whole else at_home(self._members)
        goal = {key_of(role) for role in self._goal.roles}
        settled = self._resting and all(member.key in goal for member in self._members)
        return with_flips(self._members, desired) if settled and self._observed.workers is not None else self._members

    def _result(self, planned: Step, policy: Policy, desired: Mapping[str, int]) -> Rollout:
        memory, in_place = self._memory, policy.strategy is Strategy.IN_PLACE
        wait = _LOOK if memory.phase in _BUSY else _LOOK_PAUSED if memory.phase is Phase.PAUSED else None
        made = self._plain(desired, self._replicas(planned, in_place=in_place), planned.message)
        probed = [one.id for one in made.workers if one.version == planned.probe and one.ready]
        return replace(
            made,
            assignments=None if self._observed.workers is None else self._assignments(planned, in_place=in_place),
            probe=planned.probe if probed else "",
            probed=probed,
            requeue_after=wait,
        )

    def _plain(self, desired: Mapping[str, int], replicas: Mapping[Key, int], message: str) -> Rollout:
        workers = tuple(member.worker for member in self._members)
        serving = serving_sets(workers)
        proven = self._proven | {key_of(role) for v in self._versions.values() if v.name in serving for role in v.roles}
        needed = [key_of(role) for version in self._versions.values() for role in version.roles]
        return Rollout(
            current=self._goal.roles,
            desired=desired,
            replicas=replicas,
            records=list(dict.fromkeys([*replicas, *needed])),
            proven=frozenset(proven),
            weights=self._fleet.weights(),
            workers=workers,
            goal=self._goal.name,
            status=record(self._memory, self._before, workers, self._observed.workers or (), message),
            serving=serving,
            flips=flips_of(self._members),
        )

    def _asleep(self, desired: Mapping[str, int]) -> Rollout:
        """Nothing is to run, so there is nothing to go back to either."""
        self._memory = Memory(stable=self._wanted, version=self._wanted)
        self._goal = self._version(self._wanted)
        running = {key_of(group): 0 for group in self._observed.groups() if group.present or group.wanted}
        return self._plain(desired, running | {key_of(role): 0 for role in self._goal.roles}, "")

    def _unseen(self, desired: Mapping[str, int]) -> Rollout:
        """A change is wanted that cannot begin, or not go on, for now."""
        if self._memory.version != self._wanted:
            now = self._now.timestamp()
            fresh = Memory(Phase.STAGING, self._memory.stable, self._wanted, at=now, moved_at=now)
            self._memory = replace(fresh, moving=self._memory.moving)
        made = self._plain(desired, {key_of(group): group.wanted for group in self._groups}, _UNSEEN)
        return replace(made, requeue_after=_LOOK)

    def _recall(self) -> Memory:
        """What the status says; nothing, where the revision to go back to never served."""
        memory = recall(self._before)
        if memory.version == self._wanted and self._context.service.says(PROMOTED):
            memory = replace(memory, promoted=True)
        stable = self._records.version(memory.stable)
        proven = stable is not None and (stable.proven or key_of(stable.roles[-1]) in self._proven)
        return memory if proven or memory.version == self._wanted == memory.stable else Memory()

    def _version(self, name: str) -> Version:
        found = self._records.version(name) or self._records.version(self._wanted)
        assert found is not None  # the wanted one is recorded or about to be
        return found

    def _counts(self, group: Group) -> bool:
        """Whether its workers matter: those that never served make room for what is wanted at once.

        One that is ready serves, though nobody may have found the time to note it.
        """
        key = key_of(group)
        if group.proven or key in {key_of(role) for v in self._versions.values() for role in v.roles}:
            return True
        return self._fleet.serves(group)

    def _seen(self) -> Seen:
        seen = self._fleet.seen(self._now.timestamp())
        return replace(seen, workers=tuple(member.worker for member in self._members))

    def _strategy(self, policy: Policy) -> Strategy:
        """Not always the one that is asked for: weights are all that changes in place, and new pods come to a workload
        of the goal for those only that have left it, so that what was changed in place there is changed back so."""
        if policy.strategy is Strategy.IN_PLACE:
            return Strategy.IN_PLACE if self._only_weights_differ() else Strategy.SURGE
        astray = bool(self._memory.moving) or any(one.worker.version != self._goal.name for one in self._members)
        home = {key_of(role) for role in self._goal.roles}
        return Strategy.IN_PLACE if astray and all(one.key in home for one in self._members) else Strategy.SURGE

    def _only_weights_differ(self) -> bool:
        same = all(self._records.settings(m.key) == self._goal.settings.get(m.key[0]) for m in self._members)
        return same and ({m.key[0] for m in self._members} in (set(), set(self._goal.settings)))

    def _target(self, desired: Mapping[str, int], *, busy: bool) -> dict[str, int]:
        """Workers wanted by the planner's roles; while weights change in place none is taken away."""
        found = {}
        for role in self._goal.roles:
            name = WHOLE if role.whole else role.role
            there = sum(member.worker.role == name for member in self._members)
            found[name] = max(desired[role.role], there if busy else 0)
        return found

    def _replicas(self, planned: Step, *, in_place: bool) -> dict[Key, int]:
        found = {key_of(group): 0 for group in self._observed.groups() if group.present or group.wanted}
        found |= {key_of(group): group.wanted for group in self._groups if group.present or group.wanted}
        stops = {worker for worker, order in planned.orders.items() if order is Order.STOP}
        stay = [member for member in self._members if member.worker.id not in stops]
        # A workload that shrinks further could lose another pod than the one that is meant.
        for member in self._members:
            found[member.key] -= member.worker.id in stops and member.key not in self._fleet.shrinking
        for (role, version), count in planned.counts.items():
            there = sum((m.worker.role, m.worker.version) == (role, version) for m in stay)
            key = self._host(role, version, in_place=in_place)
            if key is not None and (count > there or (version == planned.version and key not in found)):
                found[key] = found.get(key, 0) + max(0, count - there)
        return found

    def _host(self, role: str, version: str, *, in_place: bool) -> Key | None:
        """The workload that new workers of a version join: its own, or one whose workers changed to it in place."""
        known = self._versions.get(version)
        roles = {WHOLE if one.whole else one.role: one for one in (known.roles if known else ())}
        if known is None or role not in roles:
            return None
        own = roles[role]
        running = [key_of(group) for group in self._groups if group.wanted and group.role == own.role]
        near = [key for key in running if self._records.settings(key) == known.settings[own.role]]
        return near[0] if in_place and near and key_of(own) not in running else key_of(own)

    def _assignments(self, planned: Step, *, in_place: bool) -> dict[str, Mapping[str, object]]:
        known = [member for member in self._members if "/" not in member.worker.id]
        found = {member.worker.id: self._assignment(member, planned, in_place=in_place) for member in known}
        if in_place and self._goal.digest:  # for those that are started before anybody has heard of them
            for role in self._goal.roles:
                key = self._host(WHOLE if role.whole else role.role, self._goal.name, in_place=True)
                if key is not None and key != key_of(role):
                    name = workload_name(self._context, replace(role, revision=key[1]))
                    found[name] = {**self._order(self._goal.name, "switch"), "whole": False, "share": 100}
        return found

    def _order(self, name: str, goal: str) -> Mapping[str, object]:
        version = self._versions.get(name)
        return {
            "revision": name,
            "model": "" if version is None else version.model,
            "model_revision": "" if version is None else version.model_revision,
            "digest": "" if version is None else version.digest,
            "goal": goal if version is not None else "serve",
        }

    def _assignment(self, member: Member, planned: Step, *, in_place: bool) -> Mapping[str, object]:
        """What a worker is to serve. One that is not up yet begins with the goal, where others have tried it."""
        worker, order = member.worker, planned.orders.get(member.worker.id, Order.KEEP)
        new = in_place and worker.id not in self._fleet.reporting and bool(self._goal.digest)
        name = planned.version if new or order in (Order.STAGE, Order.SWITCH) else worker.version
        changed = name != member.starts and order is not Order.STAGE
        goal = "switch" if new or order is Order.SWITCH or changed else "stage" if order is Order.STAGE else "serve"
        whole, share = worker.id in planned.whole, planned.shares.get(worker.version, 100)
        role = {"role": worker.role} if worker.id in flips_of([member]) else {}
        return {**self._order(name, goal), "whole": whole, "share": share, **role}
