"""ControllerRevisions: each keeps the workload of one role and revision as it was first made, and the image it got.

What runs is applied from here, not built anew, so that an operator that would build it otherwise restarts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from baton_operator.planner.context import COMPONENT, REVISION, VERSION, Context
from baton_operator.planner.objects import Object, int_at, label, map_at, merged, text_at
from baton_operator.planner.observed import PROVEN, Observed
from baton_operator.planner.revision import RoleRevision
from baton_operator.planner.rollout import Key, key_of
from baton_operator.planner.worker import WHOLE, build_workload, role_of, workload_name


class Records:
    """The records that exist, and those that the wanted revisions need besides."""

    def __init__(self, context: Context, observed: Observed, current: Sequence[RoleRevision]) -> None:
        self._context = context
        self._stored = {(label(item, COMPONENT), label(item, REVISION)): item for item in observed.records()}
        self._workloads = {(label(item, COMPONENT), label(item, REVISION)): item for item in observed.workloads()}
        self._new = {key_of(revision): revision for revision in current if key_of(revision) not in self._stored}
        self._next = 1 + max((int_at(item, "revision") for item in self._stored.values()), default=0)
        self._built = {key: self._build(revision) for key, revision in self._new.items()}

    def objects(self, keys: Mapping[Key, int], proven: set[Key]) -> Iterator[Object]:
        """The records to apply for `keys`; those that are `proven` are marked so, for good."""
        for key in keys:
            item = self._stored.get(key) or self._built.get(key)
            if item is None:
                continue
            mark = text_at(item, "metadata", "annotations", PROVEN) == "true" or key in proven
            metadata = _own_metadata(item)
            if mark:
                metadata["annotations"] = {PROVEN: "true"}
            yield {
                "apiVersion": "apps/v1",
                "kind": "ControllerRevision",
                "metadata": metadata,
                "data": item["data"],
                "revision": item["revision"],
            }

    def workloads(self, replicas: Mapping[Key, int]) -> Iterator[Object]:
        """The workloads to apply, with their numbers of workers."""
        for key, count in replicas.items():
            item = self._stored.get(key) or self._built.get(key)
            workload = map_at(item, "data", "workload") if item else self._as_found(key)
            yield _with_replicas(workload, count)

    def _build(self, revision: RoleRevision) -> Object:
        context = self._context
        image = role_of(context, revision.role).image or self._image_of(revision.version)
        workload = build_workload(context, revision, image)
        labels = {
            REVISION: revision.revision,
            VERSION: revision.version,
            WHOLE: str(revision.whole).lower(),
        }
        body = {"data": {"image": image, "workload": workload}, "revision": self._next}
        name = workload_name(context, revision)
        return context.child("apps/v1", "ControllerRevision", name, revision.role, body, labels)

    def _image_of(self, version: str) -> str:
        """Workers of one version run one image, also when the operator has learned of a newer one since."""
        stored = [item for item in self._stored.values() if label(item, VERSION) == version]
        return next((text_at(item, "data", "image") for item in stored), self._context.settings.worker_image)

    def _as_found(self, key: Key) -> Object:
        """A workload whose record somebody removed: as it is in the cluster."""
        item = self._workloads[key]
        return {name: item[name] for name in ("apiVersion", "kind", "spec")} | {"metadata": _own_metadata(item)}


def recorded_revisions(observed: Observed, wanted: Mapping[str, str]) -> list[RoleRevision]:
    """The revisions with the given hash by role, as far as there are records of them; prefill first."""
    found = {}
    for item in observed.records():
        role, revision = label(item, COMPONENT), label(item, REVISION)
        if wanted.get(role) == revision:
            whole = label(item, WHOLE) == "true"
            found[role] = RoleRevision(role, revision, label(item, VERSION), whole)
    return [found[role] for role in sorted(found, reverse=True)]


def _own_metadata(item: Object) -> dict[str, object]:
    meta = map_at(item, "metadata")
    return {key: meta[key] for key in ("name", "namespace", "labels", "ownerReferences") if key in meta}


def _with_replicas(workload: Object, count: int) -> Object:
    result = merged(workload, {"spec": {"replicas": count}})
    assert isinstance(result, dict)
    return result
