"""Which revision runs how many workers.

The guarantee: as long as no pod fails by itself, at each instant some version has a *serving set*, a prefill and a
decode worker of the same version, or a decode worker that serves whole.

New workers come up beside the old ones. Only when every role has all its new workers ready do the old ones go. Of the
versions that came before, one is kept meanwhile: the one that serves best among those that ever served; a version that
never did gives its devices back at once. Stateless: every round decides from what is there now.
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
    kept = set() if _complete(replicas, groups) else _kept_versions(current, old, groups)
    for group in old:
        if group.version in kept:
            replicas[key_of(group)] = group.wanted
        elif group.present > 0 or group.wanted > 0:
            replicas[key_of(group)] = 0
    return replicas


def _complete(wanted: Mapping[Key, int], groups: Sequence[Group]) -> bool:
    ready = {key_of(group): group.ready for group in groups if group.settled}
    return all(ready.get(key, 0) >= count for key, count in wanted.items())


def _kept_versions(current: Sequence[RoleRevision], old: Sequence[Group], groups: Sequence[Group]) -> set[str]:
    """The current version, of which a role's earlier revision may still serve, and the best of the others."""
    versions = {revision.version for revision in current}
    pairs = ready_pairs(groups)
    others = [group for group in old if group.version not in versions and (group.served or pairs[group.version])]
    if not others:
        return versions
    best = max(others, key=lambda group: (pairs[group.version], group.order, group.version))
    return versions | {best.version}
