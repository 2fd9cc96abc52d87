"""Parts of the manifest that shape pods: resources, environment, placement."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from baton_operator.api.fields import (
    Annotations,
    Freeform,
    Label,
    Labels,
    ObjectName,
    Part,
    Quantities,
    Quantity,
    Rule,
    Text,
)


class Resources(Part):
    """What a container asks for, in Kubernetes quantities. Local runs ignore it."""

    requests: Quantities = {}
    """Amounts the scheduler sets aside, by resource name."""
    limits: Quantities = {}
    """Amounts the container may not exceed, by resource name; GPUs are asked for here."""


class SecretKey(Part):
    """One entry of a Secret in the namespace of the service."""

    name: ObjectName
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key of the entry."""


class ConfigMapKey(Part):
    """One entry of a ConfigMap in the namespace of the service."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key of the entry."""


class EnvVar(Part):
    """One environment variable."""

    name: Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Its value, taken literally."""
    secret: SecretKey | None = None
    """Secret entry that holds its value. Local runs take the variable from your own environment instead."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.value) != has(self.secret)",
            lambda part: (part.value is None) != (part.secret is None),
            "write either value or secret",
        ),
    )


class Toleration(Part):
    """A node taint that these pods put up with."""

    key: Label | None = None
    """Key of the taint; all taints when left out, with operator Exists."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists: any value of the key; Equal: the value below."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; all effects when left out."""
    toleration_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """How long a NoExecute taint is put up with; for ever when left out."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.operator == 'Equal' || !has(self.value)",
            lambda part: part.operator == "Equal" or part.value is None,
            "operator Exists takes no value; leave value out or write operator: Equal",
            ".value",
        ),
        Rule(
            "self.operator == 'Exists' || has(self.key)",
            lambda part: part.operator == "Exists" or part.key is not None,
            "operator Equal needs a key; name the taint's key or write operator: Exists",
            ".key",
        ),
    )


class ResourceClaim(Part):
    """Devices from dynamic resource allocation (DRA), claimed for each pod."""

    name: Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """Name of the claim within the pod."""
    template: ObjectName
    """ResourceClaimTemplate that each pod's claim is made from."""


class Placement(Part):
    """Where pods run, and what the cluster's own machinery wants to know of them. Local runs ignore it."""

    node_selector: Labels = {}
    """Labels that a node must carry."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Node taints that the pods put up with."""
    affinity: Freeform | None = None
    """Node and pod affinity as in a pod; takes the place of the one that Baton would set."""
    runtime_class: ObjectName | None = None
    """RuntimeClass of the pods, such as nvidia."""
    priority_class: ObjectName | None = None
    """PriorityClass of the pods."""
    scheduler: ObjectName | None = None
    """Scheduler that places the pods; the cluster's default when left out."""
    image_pull_secrets: Annotated[list[ObjectName], Field(max_length=8)] = []
    """Secrets with which the images are pulled."""
    resource_claims: Annotated[list[ResourceClaim], Field(max_length=8)] = []
    """Devices that are claimed for each pod through dynamic resource allocation."""
    labels: Labels = {}
    """Further labels of the pods, such as kueue.x-k8s.io/queue-name."""
    annotations: Annotations = {}
    """Further annotations of the pods."""


class Pods(Part):
    """Pods of one kind."""

    image: Text | None = None
    """Container image; the one that the operator came with when left out. A running service keeps the one it has."""
    resources: Resources = Resources()
    """What each pod's container asks for."""
    placement: Placement = Placement()
    """Where the pods run."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Further environment variables."""
    overrides: Freeform | None = None
    """A piece of pod template, `metadata` and `spec`, laid over the one that Baton makes; lists match by name.

    For what has no field of its own. Nothing here is checked before the pod is made.
    """


class WorkerPods(Pods):
    """Pods that hold a model."""

    shm_size: Quantity = "8Gi"
    """Upper bound of /dev/shm, which the processes of one worker share memory through. Local runs ignore it."""
