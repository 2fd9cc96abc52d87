"""The status of an InferenceService: what the operator saw and did last."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from baton_operator.api.fields import Part

Sentence = Annotated[str, Field(max_length=1024)]
Digest = Annotated[str, Field(max_length=128)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class Condition(Part):
    """One aspect of the state, in the form that all Kubernetes tools read."""

    type: Annotated[str, Field(max_length=64)]
    """Aspect: Available, Ready, Progressing, Degraded or Stalled."""
    status: Literal["True", "False", "Unknown"]
    """Whether the aspect holds."""
    reason: Annotated[str, Field(max_length=64)]
    """Why, in one word for programs."""
    message: Sentence
    """Why, in one sentence for people."""
    last_transition_time: Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""
    observed_generation: Annotated[int, Field(ge=0)]
    """Generation of the manifest that this was found for."""


class RoleStatus(Part):
    """Workers of one role."""

    desired: Count
    """Workers wanted now, after autoscaling."""
    ready: Count
    """Workers of the wanted revision that can serve."""
    old: Count
    """Workers of earlier revisions that still run."""
    revision: Annotated[str, Field(max_length=16)]
    """Wanted revision: what the pods of this role see, as a hash."""


class WeightVersion(Part):
    """Workers that serve the same weights."""

    digest: Digest
    """Content digest of the weights, as the workers computed it."""
    workers: Count
    """How many workers report it."""


class DownloadStatus(Part):
    """Pods that fetch the model before their worker starts."""

    pods: Count
    """How many of them fetch it now."""
    percent: Annotated[int, Field(ge=0, le=100)]
    """How much of what they need is there, by bytes."""


class LinkStatus(Part):
    """What moves KV pages from one worker to another."""

    prefill: Annotated[str, Field(max_length=253)]
    """Pod that sends."""
    decode: Annotated[str, Field(max_length=253)]
    """Pod that receives."""
    gigabytes_per_second: Annotated[float, Field(ge=0)]
    """Measured rate, while pages were on their way, of late; it is told anew once it differs by a fifth."""


class FlipStatus(Part):
    """A worker that has taken the other role than the one it was started for."""

    name: Annotated[str, Field(max_length=253)]
    """Its pod, which the workload of its first role keeps."""
    role: Annotated[str, Field(max_length=16)]
    """The role that it has now: prefill or decode."""


class WorkerStatus(Part):
    """One worker while a change is under way."""

    name: Annotated[str, Field(max_length=253)]
    """Its pod."""
    revision: Annotated[str, Field(max_length=64)]
    """Revision of the service that it serves."""
    stage: Annotated[str, Field(max_length=64)]
    """What it does: serving, staging with its progress, staged, switching, failed; and whether it takes requests."""


class RolloutStatus(Part):
    """Where the change to another revision stands, and what the operator must remember of it."""

    phase: Annotated[str, Field(max_length=16)] = "Done"
    """Done, Staging, Moving, Paused, RollingBack or Failed; after Failed the manifest must change."""
    version: Annotated[str, Field(max_length=64)] = ""
    """Wanted revision of the service: those of its roles, prefill before decode."""
    stable: Annotated[str, Field(max_length=64)] = ""
    """Revision that was last rolled out whole, to which a failed change goes back."""
    failed: Annotated[str, Field(max_length=64)] = ""
    """Revision that is not tried again."""
    reason: Sentence = ""
    """Why it failed, or why nothing moves."""
    message: Sentence = ""
    """What the operator waits for, or does next."""
    moving: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=1024)] = []
    """Workers that change their weights now."""
    moved_at: Annotated[str, Field(max_length=40)] = ""
    """When the last of them had."""
    looked_at: Annotated[str, Field(max_length=40)] = ""
    """Until when `spentSeconds` was counted."""
    spent_seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long the change has been under way, pauses aside."""
    promoted: bool = False
    """Whether the canary may become the whole."""
    workers: Annotated[list[WorkerStatus], Field(max_length=64)] = []
    """The workers, while a change is under way; the first 64."""


class Status(Part):
    """What the operator saw and did last."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """Generation of the manifest that all of this was found for."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=8,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    """Available: requests are answered. Ready: and all is as the manifest says. Progressing: it is on its way there.

    Degraded: something is in the way. Stalled: nothing more happens until a person acts.
    """
    url: Annotated[str, Field(max_length=512)] = ""
    """Base URL of the OpenAI endpoint inside the cluster."""
    version: Annotated[str, Field(max_length=16)] = ""
    """Wanted version: what prefill and decode must share to work together, as a hash."""
    ready_pairs: Count = 0
    """Ready prefill and decode workers of the wanted version that can pair up; workers, when decode serves whole."""
    prefill: RoleStatus | None = None
    """Prefill workers; absent when decode workers serve whole."""
    decode: RoleStatus | None = None
    """Decode workers."""
    weights: Annotated[list[WeightVersion], Field(max_length=16)] = []
    """Weight versions that workers report, most used first."""
    download: DownloadStatus | None = None
    """How far the model is fetched; absent while no pod fetches it."""
    links: Annotated[list[LinkStatus], Field(max_length=64)] = []
    """Links between workers over which pages have gone, by decode and prefill pod; the first 64."""
    rollout: RolloutStatus | None = None
    """How the latest change comes on."""
    flips: Annotated[list[FlipStatus], Field(max_length=10_000)] = []
    """Workers that have taken the other role than the one they were started for."""
