"""ControllerRevisions: each keeps the workload of one role and revision as it was first made, and the image it got.

What runs is applied from here, not built anew, so that an operator that would build it otherwise restarts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from baton_operator.planner.context import COMPONENT, REVISION, VERSION, Context
from baton_operator.planner.objects import Object, int_at, label, list_at, map_at, merged, text_at
from baton_operator.planner.observed import PROVEN, WEIGHTS, Key, Observed, key_of
from baton_operator.planner.revision import RoleRevision
from baton_operator.planner.worker import GROUP_VARIABLE, WHOLE, build_workload, role_of, workload_name

_START_ONLY = ("--model-path", "--revision")  # flags that name the weights with which a worker starts


@dataclass(frozen=True)
class Version:
    """A revision of the service. `model` and `model_revision` name its checkpoint as a worker fetches it, `digest` its
    weights, "" before a worker has read them; `settings` has for each role what a running worker cannot change.
    """

    name: str
    roles: tuple[RoleRevision, ...]
    model: str
    model_revision: str
    digest: str
    settings: Mapping[str, str]
    proven: bool


class Records:
    """The records that exist, and those that the wanted revisions need besides."""

    def __init__(self, context: Context, observed: Observed, current: Sequence[RoleRevision]) -> None:
        self._context = context
        self._stored = {(label(item, COMPONENT), label(item, REVISION)): item for item in observed.records()}
        self._workloads = {(label(item, COMPONENT), label(item, REVISION)): item for item in observed.workloads()}
        self._new = {key_of(revision): revision for revision in current if key_of(revision) not in self._stored}
        self._next = 1 + max((int_at(item, "revision") for item in self._stored.values()), default=0)
        self._built = {key: self._build(revision) for key, revision in self._new.items()}

    @property
    def names(self) -> list[str]:
        """Of the revisions of the service whose roles were first recorded together."""
        together: dict[str, dict[str, str]] = {}
        for item in (*self._stored.values(), *self._built.values()):
            together.setdefault(label(item, VERSION), {})[label(item, COMPONENT)] = label(item, REVISION)
        return ["-".join(found[role] for role in ("prefill", "decode") if role in found) for found in together.values()]

    def version(self, name: str) -> Version | None:
        """The revision of the service called `name`, if all its roles are recorded or about to be."""
        parts = name.split("-")
        roles = ("decode",) if len(parts) == 1 else ("prefill", "decode")
        keys = list(zip(roles, parts, strict=False))
        items = [self._stored.get(key) or self._built.get(key) for key in keys]
        found = [item for item in items if item is not None]
        if not name or len(found) < len(roles):
            return None
        flags = _flags(map_at(found[-1], "data", "workload"))
        digests = {text_at(item, "metadata", "annotations", WEIGHTS) for item in found} - {""}
        return Version(
            name=name,
            roles=tuple(_revision_of(item) for item in found),
            model=flags.get("--model-path", ""),
            model_revision=flags.get("--revision", ""),
            digest=digests.pop() if len(digests) == 1 else "",
            settings={role: self.settings(key) for role, key in zip(roles, keys, strict=True)},
            proven=all(text_at(item, "metadata", "annotations", PROVEN) == "true" for item in found),
        )

    def settings(self, key: Key) -> str:
        """What a running worker of the workload `key` cannot change."""
        item = self._stored.get(key) or self._built.get(key)
        return settings_of(map_at(item, "data", "workload") if item else self._workloads[key])

    def objects(self, keys: Collection[Key], proven: Collection[Key], weights: Mapping[Key, str]) -> Iterator[Object]:
        """The records to apply for `keys`; those that are `proven` are marked so, for good, as are their `weights`."""
        for key in keys:
            item = self._stored.get(key) or self._built.get(key)
            if item is None:
                continue
            marks = {name: text_at(item, "metadata", "annotations", name) for name in (PROVEN, WEIGHTS)}
            marks[PROVEN] = "true" if key in proven else marks[PROVEN]
            marks[WEIGHTS] = marks[WEIGHTS] or weights.get(key, "")
            metadata = _own_metadata(item)
            if any(marks.values()):
                metadata["annotations"] = {name: mark for name, mark in marks.items() if mark}
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


def settings_of(workload: Object) -> str:
    """Equal for workloads between which a running worker can move by changing its weights: all else is the same."""
    template = _template(workload)
    labels = {**map_at(template, "metadata", "labels"), REVISION: "", VERSION: ""}
    spec = {name: value for name, value in map_at(template, "spec").items() if name != "initContainers"}
    spec["containers"] = [_without_model(item) for item in list_at(template, "spec", "containers")]
    kind, annotations = text_at(workload, "kind"), map_at(template, "metadata", "annotations")
    return json.dumps([kind, labels, annotations, spec], sort_keys=True)


def _template(workload: Object) -> Object:
    return map_at(workload, "spec", "template") or map_at(workload, "spec", "leaderWorkerTemplate", "workerTemplate")


def _without_model(container: object) -> object:
    words = list_at(container, "args")
    starts = {at for at, word in enumerate(words) if word in _START_ONLY}
    kept = [word for at, word in enumerate(words) if at not in starts and at - 1 not in starts]
    env = [entry for entry in list_at(container, "env") if text_at(entry, "name") != GROUP_VARIABLE]
    return {**container, "args": kept, "env": env} if isinstance(container, Mapping) else container


def _flags(workload: Object) -> dict[str, str]:
    """The flags that name the weights, as the worker's container has them."""
    words = [word for item in list_at(_template(workload), "spec", "containers") for word in list_at(item, "args")]
    return {str(word): str(words[at + 1]) for at, word in enumerate(words[:-1]) if word in _START_ONLY}


def _revision_of(item: Object) -> RoleRevision:
    whole = label(item, WHOLE) == "true"
    return RoleRevision(label(item, COMPONENT), label(item, REVISION), label(item, VERSION), whole)


def _own_metadata(item: Object) -> dict[str, object]:
    meta = map_at(item, "metadata")
    return {key: meta[key] for key in ("name", "namespace", "labels", "ownerReferences") if key in meta}


def _with_replicas(workload: Object, count: int) -> Object:
    result = merged(workload, {"spec": {"replicas": count}})
    assert isinstance(result, dict)
    return result
