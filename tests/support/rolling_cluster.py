"""A fake cluster whose workloads have pods, and whose pods have workers that follow what they are assigned."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from support.fake_cluster import FakeCluster

from baton_operator.planner import Plan, Ref, WorkerReport
from baton_operator.rollout import Worker, serving_sets

LABELS = ("baton.dev/service", "app.kubernetes.io/component", "baton.dev/revision", "baton.dev/version")


def digest_of(model: str) -> str:
    return f"weights of {model}"


class RollingCluster(FakeCluster):
    """`broken` models are refused by who stages them, and never become ready where they are started."""

    def __init__(self, spec: str, seed: int = 0) -> None:
        super().__init__(spec)
        self.broken: set[str] = set()
        self.told: Mapping[str, Mapping[str, Any]] = {}
        self._draw = random.Random(seed)
        self._made = 0
        self._reports: dict[str, WorkerReport] = {}
        self.reachable = True
        self.events: list[str] = []

    @property
    def rollout(self) -> dict[str, Any]:
        return dict(self.service["status"]["rollout"])

    @property
    def weights(self) -> dict[str, str]:
        """By pod, of those that are up."""
        return {name: report.weights for name, report in self._reports.items()}

    def serving(self) -> dict[str, int]:
        """Serving sets by weights."""
        roles = {"both": "worker"}
        return serving_sets(
            Worker(one.id, roles.get(one.role, one.role), one.weights, one.state == "ready", whole=one.role == "both")
            for one in self._reports.values()
        )

    def round(self, steps: int | None = None) -> Plan:
        self.workers = list(self._reports.values()) if self.reachable else None
        made = super().round(steps)
        self.pass_time(1.0)
        if steps is None:
            self.events += [event.reason for event in made.events]
            if made.assignments is not None:
                self.told = made.assignments
        return made

    def live(self, chance: float = 0.6) -> None:
        """Controllers and workers take a step or none, in any order."""
        for ref in self.workloads():
            if self._draw.random() < chance:
                self.advance(ref)
        for pod in list(self.pods):
            if self._draw.random() < chance:
                self._step(pod)
        for pod in self._orphans():
            if self._draw.random() < chance:
                self._remove(pod)

    def until(self, phase: str, rounds: int = 150) -> None:
        """Rounds and life in turn, until the change of the manifest is in `phase`."""
        for _ in range(rounds):
            self.round()
            if self.rollout["phase"] == phase and self.service["status"]["observedGeneration"] == self.generation:
                return
            self.live()
        raise AssertionError(self.rollout)

    @property
    def generation(self) -> int:
        return int(self.service["metadata"]["generation"])

    def kill(self, name: str) -> None:
        """The worker's container is started again, which its pod shows."""
        self._reports.pop(name, None)
        for pod in self.pods:
            if pod["metadata"]["name"] == name:
                pod["status"] = {}

    def obey(self, *names: str) -> None:
        """These workers do as they were told."""
        for pod in self.pods:
            if pod["metadata"]["name"] in names:
                self._step(pod)

    def start(self, name: str) -> None:
        """The worker is up, though its workload may not say so yet."""
        self._start(next(pod for pod in self.pods if pod["metadata"]["name"] == name), self.told.get(name))

    def spares(self, name: str) -> bool:
        """Whether something serves without this worker, also when everybody has done what they were told by now."""
        leaving = {name} | {pod for ref in self.workloads() for pod in self._surplus(ref)}
        leaving |= {pod["metadata"]["name"] for pod in self._orphans()}
        left = []
        for pod in self.pods:
            one, told = self._reports.get(pod["metadata"]["name"]), self.told.get(pod["metadata"]["name"])
            if one is None or one.id in leaving or one.state != "ready":
                continue
            if told is not None and told["goal"] == "switch" and digest_of(told["model"]) != one.weights:
                continue
            role = str(pod["metadata"]["labels"]["app.kubernetes.io/component"])
            whole = one.role == self._role(pod, told) == "both"
            left.append(Worker(one.id, role, one.weights, ready=True, whole=whole))
        return bool(serving_sets(left))

    def _orphans(self) -> list[dict[str, Any]]:
        """Pods whose workload was deleted: they go with it."""
        templates = [item["spec"].get("template", {}) for item in self.of_kind("Deployment").values()]
        kept = {one.get("metadata", {}).get("labels", {}).get("baton.dev/revision") for one in templates}
        return [pod for pod in self.pods if pod["metadata"]["labels"]["baton.dev/revision"] not in kept]

    def _remove(self, pod: dict[str, Any]) -> None:
        self.pods.remove(pod)
        self._reports.pop(pod["metadata"]["name"], None)

    def _surplus(self, ref: Ref) -> list[str]:
        """Pods that may be taken away from a workload as it is told to be."""
        item = self.objects[ref]
        revision = item["spec"].get("template", {}).get("metadata", {}).get("labels", {}).get("baton.dev/revision")
        mine = [one["metadata"] for one in self.pods if one["metadata"]["labels"]["baton.dev/revision"] == revision]
        names = [one["name"] for one in mine if one["name"] in self._reports]
        return names[: max(0, len(mine) - int(item["spec"]["replicas"]))]

    def advance(self, ref: Ref) -> None:
        item = self.objects.get(ref)
        if item is None or ref.kind != "Deployment" or "template" not in item["spec"]:
            return
        labels = item["spec"]["template"]["metadata"]["labels"]
        if "baton.dev/revision" not in labels:
            super().advance(ref)
            return
        mine = [
            pod for pod in self.pods if pod["metadata"]["labels"]["baton.dev/revision"] == labels["baton.dev/revision"]
        ]
        for _ in range(item["spec"]["replicas"] - len(mine)):
            self._made += 1
            name = f"{ref.name}-{self._made}"
            kept = {key: labels[key] for key in LABELS}
            spec = item["spec"]["template"]["spec"]
            self.pods.append(
                {
                    "kind": "Pod",
                    "apiVersion": "v1",
                    "metadata": {"name": name, "labels": kept},
                    "spec": spec,
                    "status": {},
                }
            )
        mine.sort(key=lambda pod: pod["metadata"]["name"] in self._reports)
        for pod in mine[: max(0, len(mine) - item["spec"]["replicas"])]:
            self._remove(pod)
        mine = [
            pod for pod in self.pods if pod["metadata"]["labels"]["baton.dev/revision"] == labels["baton.dev/revision"]
        ]
        ready = sum(pod["metadata"]["name"] in self._reports for pod in mine)
        item["status"] = {
            "observedGeneration": item["metadata"]["generation"],
            "replicas": len(mine),
            "readyReplicas": ready,
        }

    def _step(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        told, report = self.told.get(name), self._reports.get(name)
        if report is None:
            if self._draw.random() < 0.4:  # loading takes longer than anything else
                self._start(pod, told)
        elif told is not None:
            self._reports[name] = self._obey(replace(report, role=self._role(pod, told)), told)

    def _start(self, pod: dict[str, Any], told: Mapping[str, Any] | None) -> None:
        name = pod["metadata"]["name"]
        args = pod["spec"]["containers"][0]["args"]
        model = args[args.index("--model-path") + 1]
        told = told or self.told.get(name.rpartition("-")[0])
        if told is not None and told["goal"] == "switch":
            model = told["model"]
        if model in self.broken:
            state = {"waiting": {"reason": "CrashLoopBackOff"}}
            last = {"terminated": {"message": "damaged"}}
            pod["status"] = {"containerStatuses": [{"state": state, "lastState": last, "restartCount": 3}]}
            return
        pod["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
        self._reports[name] = WorkerReport(
            name, self._role(pod, told), "ready", digest_of(model), f"http://{name}", "1"
        )

    def _role(self, pod: dict[str, Any], told: Mapping[str, Any] | None) -> str:
        whole = "null" in pod["spec"]["containers"][0]["args"] or (told is not None and told["whole"])
        role = (told or {}).get("role") or pod["metadata"]["labels"]["app.kubernetes.io/component"]
        return "both" if whole else str(role)

    def _obey(self, report: WorkerReport, told: Mapping[str, Any]) -> WorkerReport:
        heard = replace(report, revision=told["revision"])
        if told["goal"] == "serve" or report.weights == digest_of(told["model"]):
            return replace(heard, phase="serving", staged="", error="", state="ready")
        if report.phase == "failed" and report.revision == told["revision"]:
            return report
        if told["model"] in self.broken:
            return replace(heard, phase="failed", error="damaged")
        if report.revision != told["revision"] or report.phase not in ("staged", "switching"):
            return replace(heard, phase="staged", staged=digest_of(told["model"]))
        if told["goal"] == "stage":
            return replace(heard, phase="staged", state="ready")
        if report.phase == "staged":
            return replace(heard, phase="switching", state="draining")
        return replace(heard, phase="serving", state="ready", weights=digest_of(told["model"]), staged="")
