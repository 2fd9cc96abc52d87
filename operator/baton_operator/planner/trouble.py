"""Why a service does not come up: what pods and workloads say, as one sentence for a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from baton_operator.planner.context import COMPONENT
from baton_operator.planner.objects import Object, int_at, label, list_at, text_at
from baton_operator.planner.observed import Observed, container_statuses

_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError"}


@dataclass(frozen=True, order=True)
class Trouble:
    """`reason` is one word, `sentence` names the pod or workload and what it says."""

    reason: str
    sentence: str


def troubles(observed: Observed) -> list[Trouble]:
    """In a fixed order, the same sentence once."""
    found = {trouble for pod in observed.pods for trouble in _of_pod(pod)}
    found |= {trouble for item in observed.of_kind("Deployment") for trouble in _of_workload(item)}
    found |= {Trouble("ObjectRefused", _short(sentence)) for sentence in observed.refused}
    found |= {Trouble("TokenUnreadable", observed.token_trouble)} if observed.token_trouble else set()
    return sorted(found)


def _of_workload(item: Object) -> Iterator[Trouble]:
    for condition in list_at(item, "status", "conditions"):
        if text_at(condition, "type") == "ReplicaFailure" and text_at(condition, "status") == "True":
            message = _short(text_at(condition, "message"))
            reason = "QuotaExceeded" if "quota" in message else "PodsRefused"
            yield Trouble(reason, f"{label(item, COMPONENT)} pods cannot be made: {message}")


def _of_pod(pod: Object) -> Iterator[Trouble]:
    role = label(pod, COMPONENT)
    node = text_at(pod, "spec", "nodeName")
    for condition in list_at(pod, "status", "conditions"):
        kind, status, reason = (text_at(condition, key) for key in ("type", "status", "reason"))
        if kind == "PodScheduled" and status == "False" and reason == "Unschedulable":
            yield Trouble("Unschedulable", f"a {role} pod fits no node: {_short(text_at(condition, 'message'))}")
        if kind == "Ready" and status != "True" and _forsaken(pod):
            yield Trouble("NodeLost", f"node {node} does not answer; its {role} pod will be replaced")
        if kind == "DisruptionTarget" and status == "True":
            yield Trouble("NodeLost", f"a {role} pod leaves node {node}: {_short(text_at(condition, 'message'))}")
    for container in container_statuses(pod):
        yield from _of_container(container, role)


def _forsaken(pod: Object) -> bool:
    """Of pods on a node that falls silent the node controller takes back that they are ready, and nothing else."""
    whole = any(
        text_at(one, "type") == "ContainersReady" and text_at(one, "status") == "True"
        for one in list_at(pod, "status", "conditions")
    )
    return text_at(pod, "status", "reason") == "NodeLost" or (whole and not list_at(pod, "spec", "readinessGates"))


def _of_container(container: Object, role: str) -> Iterator[Trouble]:
    name, image = text_at(container, "name"), text_at(container, "image")
    waiting = text_at(container, "state", "waiting", "reason")
    message = _short(text_at(container, "state", "waiting", "message"))
    ended = _short(text_at(container, "lastState", "terminated", "message")) or _exit(container)
    if waiting in _PULL:
        yield Trouble("ImageMissing", f"image {image} of the {role} pods cannot be pulled: {message or waiting}")
    elif waiting in _CONFIG:
        yield Trouble("PodRefused", f"a {role} pod cannot start: {message or waiting}")
    elif waiting == "CrashLoopBackOff" and name == "fetch-model":
        yield Trouble("ModelMissing", f"the model cannot be fetched for {role} pods: {ended}")
    elif waiting == "CrashLoopBackOff":
        yield Trouble("Crashing", f"container {name} of a {role} pod keeps ending: {ended}")


def _exit(container: Object) -> str:
    reason = text_at(container, "lastState", "terminated", "reason")
    code = int_at(container, "lastState", "terminated", "exitCode")
    return f"exit status {code}" + (f" ({reason})" if reason and reason != "Error" else "")


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= 300 else f"{text[:299]}…"
