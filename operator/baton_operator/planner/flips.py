"""Which workers serve the other role than the one they were started for.

Changing its role takes a worker no time: it keeps its model and its pages, and the requests that it has go on. So where
one role has more workers than it is to have and the other fewer, some take the other role instead of ending while new
ones load. A pod stays with the workload that made it, whose labels tell its first role; what a worker is now stands in
the status, and the bootstrap server tells it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from baton_operator.api.v1alpha1 import Spec
from baton_operator.planner.fleet import Member
from baton_operator.rollout import DECODE, PREFILL


def may_flip(spec: Spec) -> bool:
    """Whether workers of this service change their roles."""
    return spec.divided and spec.scaling.role_flip


def with_flips(members: Sequence[Member], desired: Mapping[str, int]) -> list[Member]:
    """The workers in the roles that they are to have, when each role is to have `desired` of them.

    Those that serve the other role go back before any worker of that one ends: Kubernetes chooses which pod of a
    workload goes, and the workload of a role keeps workers of its own in it.
    """
    surplus = Counter(member.worker.role for member in members)
    surplus.subtract(desired)
    roles = {member.worker.id: member.worker.role for member in members}
    away = [one for one in members if one.worker.role != one.key[0]]
    crossed = min(sum(one.worker.role == role for one in away) for role in (PREFILL, DECODE))
    returning = {role: crossed + max(0, surplus[role]) for role in (PREFILL, DECODE)}
    for role, count in returning.items():
        for member in [one for one in away if one.worker.role == role][:count]:
            _move(roles, surplus, member, member.key[0])
    for role, other in ((PREFILL, DECODE), (DECODE, PREFILL)):
        ready = [
            one for one in members if one.worker.ready and one.worker.role == role and roles[one.worker.id] == role
        ]
        ready.sort(key=lambda one: (one.key[0] == role, -one.worker.order))
        for member in ready[: max(0, min(surplus[role], -surplus[other], len(ready) - 1))]:
            _move(roles, surplus, member, other)
    return [_as(member, roles[member.worker.id]) for member in members]


def at_home(members: Sequence[Member]) -> list[Member]:
    """The workers in the roles that they were started for."""
    return [_as(member, member.key[0]) for member in members]


def flips_of(members: Sequence[Member]) -> dict[str, str]:
    """The roles of those that have another than they were started for, by worker."""
    own = {PREFILL, DECODE}
    return {
        one.worker.id: one.worker.role for one in members if one.worker.role in own and one.worker.role != one.key[0]
    }


def _move(roles: dict[str, str], surplus: Counter[str], member: Member, role: str) -> None:
    surplus[roles[member.worker.id]] -= 1
    surplus[role] += 1
    roles[member.worker.id] = role


def _as(member: Member, role: str) -> Member:
    """In another role it is not ready before it has said that it took it."""
    if role == member.worker.role:
        return member
    return replace(member, worker=replace(member.worker, role=role, ready=False))
