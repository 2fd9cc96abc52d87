"""Which revision runs how many workers.

The guarantee: as long as no pod fails by itself, at each instant some version has a *serving set*, a prefill and a
decode worker of the same version, or a decode worker that serves whole.

New workers come up beside the old ones. Only when every role has all its new workers ready do the old ones go. Of what
came before, one revision per role is kept meanwhile, of the version that serves best. A revision of which no worker was
ever ready ("proven") is not kept: it gives its devices back at once. Every round decides from what is there now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from baton_operator.planner.observed import Group
from baton_operator.planner.revision import RoleRevision

Key = tuple[str, str]  # role, revision


def key_of(group: Group | RoleRevision) -> Key:
    return group.role, group.revision


def serving_versions(groups: Iterable[Group]) -> set[str]:
    """Versions that can answer a request from prompt to answer now."""
    return {version for version, pairs in ready_pairs(groups).items() if pairs > 0}


def ready_pairs(groups: Iterable[Group]) -> dict[str, int]:
    """For each version how many prefill and decode workers can pair up; workers, where they serve whole."""
    prefill: dict[str, int] = {}
    decode: dict[str, int] = {}
    whole: dict[str, int] = {}
    for group in groups:
        counts = whole if group.whole else prefill if group.role == "prefill" else decode
        counts[group.version] = counts.get(group.version, 0) + group.ready
    versions = {*prefill, *decode, *whole}
    return {v: whole.get(v, 0) + min(prefill.get(v, 0), decode.get(v, 0)) for v in versions}


def assign(current: Sequence[RoleRevision], desired: Mapping[str, int], groups: Sequence[Group]) -> dict[Key, int]:
    """Workers for every (role, revision) that is to exist; one that is missing from the answer is to be deleted.

    `desired` holds the number of workers by role. An old revision is deleted once its last pod is gone.
    """
    replicas = {key_of(revision): desired[revision.role] for revision in current}
    old = [group for group in groups if key_of(group) not in replicas]
    kept = set() if _complete(replicas, groups) else _kept(current[-1].version, old)
    for group in old:
        if key_of(group) in kept:
            replicas[key_of(group)] = group.wanted
        elif group.present > 0 or group.wanted > 0:
            replicas[key_of(group)] = 0
    return replicas


def _complete(wanted: Mapping[Key, int], groups: Sequence[Group]) -> bool:
    ready = {key_of(group): group.ready for group in groups if group.settled}
    return all(ready.get(key, 0) >= count for key, count in wanted.items())


def _kept(version: str, old: Sequence[Group]) -> set[Key]:
    """Per role the best group of the wanted version, and the best of the one other version that serves best."""
    proven = [group for group in old if group.proven]
    versions = {version}
    pairs = ready_pairs(proven)
    others = [group for group in proven if group.version != version and _can_serve(group.version, proven)]
    if others:
        versions.add(max(others, key=lambda group: (pairs[group.version], group.order, group.version)).version)
    best: dict[tuple[str, str], Group] = {}
    for group in sorted(proven, key=lambda group: (group.ready, group.order, group.revision)):
        if group.version in versions:
            best[group.version, group.role] = group
    return {key_of(group) for group in best.values()}


def _can_serve(version: str, proven: Sequence[Group]) -> bool:
    groups = [group for group in proven if group.version == version]
    return any(group.whole for group in groups) or {group.role for group in groups} == {"prefill", "decode"}
