"""A cluster as far as the planner can tell: objects under server-side apply, Deployments that follow their spec."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from baton_operator.api import parse_manifest
from baton_operator.planner import Observed, Plan, Ref, Service, Settings, WorkerReport, plan
from baton_operator.planner.objects import ref_of

START = datetime(2030, 1, 1, tzinfo=UTC)
APIS = frozenset({"leaderworkerset.x-k8s.io/v1", "gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1"})
HEAD = "apiVersion: baton.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: chat, namespace: prod}\n"


def service_of(spec: str) -> Service:
    """A service whose spec is `spec`, in YAML's flow style."""
    return Service(parse_manifest(f"{HEAD}spec: {spec}\n".encode()), uid="u1")


class FakeCluster:
    """One service and its children. `advance` lets one Deployment come one step nearer to its spec."""

    def __init__(self, spec: str, settings: Settings | None = None) -> None:
        self.settings = settings or Settings(apis=APIS)
        self.service: dict[str, Any] = {}
        self.edit(spec)
        self.objects: dict[Ref, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.workers: list[WorkerReport] | None = None
        self.gateways: list[frozenset[str]] = []
        self.scaled: dict[str, int] = {}
        self.now = START
        self.writes = 0

    def edit(self, spec: str) -> None:
        """The user applies another spec."""
        meta = self.service.get("metadata", {"name": "chat", "namespace": "prod", "uid": "u1", "generation": 0})
        manifest = service_of(spec).manifest
        body = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
        status = self.service.get("status")
        changed = body["spec"] != self.service.get("spec")
        self.service = {**body, "metadata": {**meta, "generation": meta["generation"] + changed}}
        if status:
            self.service["status"] = status

    def plan(self) -> Plan:
        service = Service.from_object(self.service)
        items = [copy.deepcopy(item) for item in [*self.objects.values(), *self.pods]]
        observed = Observed.of(service, items, self.workers)
        observed = replace(observed, gateways=self.gateways, scaled=self.scaled)
        return plan(service, observed, self.now, self.settings)

    def round(self, steps: int | None = None) -> Plan:
        """Plan and carry out; with `steps` the operator is killed after so many."""
        made = self.plan()
        for index, step in enumerate(self._steps(made)):
            if steps is not None and index >= steps:
                break
            step()
        return made

    def settle(self, rounds: int = 60) -> None:
        """Rounds and controllers in turn, until nothing changes any more."""
        for _ in range(rounds):
            before = copy.deepcopy((self.service, self.objects))
            self.round()
            for ref in self.workloads():
                self.advance(ref)
            if before == (self.service, self.objects):
                return
        raise AssertionError("the planner does not come to rest")

    def advance(self, ref: Ref) -> None:
        item = self.objects.get(ref)
        if item is None or ref.kind not in ("Deployment", "LeaderWorkerSet"):
            return
        status, wanted = item.setdefault("status", {}), item["spec"]["replicas"]
        status["observedGeneration"] = item["metadata"]["generation"]
        present, ready = status.get("replicas", 0), status.get("readyReplicas", 0)
        if present != wanted:
            present = wanted
        elif ready < present:
            ready += 1
        status |= {"replicas": present, "readyReplicas": min(ready, present)}

    def workloads(self) -> list[Ref]:
        return [ref for ref in sorted(self.objects) if ref.kind in ("Deployment", "LeaderWorkerSet")]

    def of_kind(self, kind: str) -> dict[str, dict[str, Any]]:
        return {ref.name: item for ref, item in sorted(self.objects.items()) if ref.kind == kind}

    def replicas(self) -> dict[str, int]:
        """Workers told to run, by workload."""
        found = {**self.of_kind("Deployment"), **self.of_kind("LeaderWorkerSet")}
        roles = ("-prefill-", "-decode-")
        return {name: item["spec"]["replicas"] for name, item in found.items() if any(role in name for role in roles)}

    def condition(self, kind: str) -> dict[str, Any]:
        (found,) = [item for item in self.service["status"]["conditions"] if item["type"] == kind]
        return dict(found)

    def delete(self) -> None:
        self.service["metadata"]["deletionTimestamp"] = self.now.isoformat()

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def _steps(self, made: Plan) -> Sequence[Any]:
        steps: list[Any] = []
        if made.finalizers is not None:
            steps.append(lambda: self.service["metadata"].update(finalizers=list(made.finalizers or ())))
        steps += [lambda item=item: self._apply(item) for item in (*made.apply, *made.create)]
        steps += [lambda ref=ref: self.objects.pop(ref, None) for ref in made.delete]
        if made.status is not None:
            steps.append(lambda: self.service.update(status=made.status.to_object() if made.status else None))
        for ref, status in made.scaler_statuses.items():
            steps.append(lambda ref=ref, status=status: self.objects[ref].update(status=dict(status)))
        return steps

    def _apply(self, item: Mapping[str, Any]) -> None:
        ref, new = ref_of(item), copy.deepcopy(dict(item))
        old = self.objects.get(ref)
        meta = new["metadata"]
        if old is None:
            meta |= {"generation": 1, "creationTimestamp": self.now.isoformat()}
        else:
            same = old.get("spec") == new.get("spec")
            meta["generation"] = old["metadata"]["generation"] + (not same)
            meta["creationTimestamp"] = old["metadata"]["creationTimestamp"]
            if "status" in old:
                new["status"] = old["status"]
        if new != old:
            self.writes += 1
        self.objects[ref] = new
