"""How the number of workers follows the traffic, as the manifest says it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from baton_operator.api.fields import Part, Rule

Percent = Annotated[int, Field(ge=1, le=10_000)]


class Autoscaling(Part):
    """Lets the number of workers of this role follow the traffic. Local runs ignore it.

    Each role that has it gets a WorkerScaler, named like the service and the role, as in chat-decode, which starts at
    `replicas`. It is the operator that drives it, or with `driver: external` an HPA or KEDA, by its scale subresource.
    """

    driver: Literal["operator", "external"] = "operator"
    """Who sets the number: the operator, by the aims of `scaling`, or something else."""
    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Fewest workers, whatever the WorkerScaler says."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)]
    """Most workers, whatever the WorkerScaler says."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            lambda part: part.min_replicas <= part.max_replicas,
            "minReplicas is above maxReplicas; lower it or raise maxReplicas",
            ".minReplicas",
        ),
    )


class Scaling(Part):
    """What the operator aims at where it sets the number of workers. Local runs ignore it."""

    ttft_milliseconds: Annotated[int, Field(ge=1, le=3_600_000)] = 1_000
    """Time to the first token that 99 of 100 requests should keep; it decides on prefill workers."""
    tpot_milliseconds: Annotated[int, Field(ge=1, le=60_000)] = 50
    """Time from token to token that 99 of 100 requests should keep; it decides on decode workers."""
    page_percent: Annotated[int, Field(ge=1, le=100)] = 80
    """Part of a decode worker's KV pages that may be in use."""
    lead_seconds: Annotated[int, Field(ge=0, le=3_600)] = 60
    """How long a new worker takes to be ready: demand is foreseen so far ahead."""
    shrink_seconds: Annotated[int, Field(ge=60, le=86_400)] = 300
    """Workers are taken away when for so long fewer would have done, and none were added for ten minutes."""
    idle_seconds: Annotated[int, Field(ge=30, le=86_400)] = 600
    """After so long without any request all workers go, where every role may have none."""
    min_prefill_percent: Percent = 10
    """Fewest prefill workers, in percent of the decode workers."""
    max_prefill_percent: Percent = 1_000
    """Most prefill workers, in percent of the decode workers."""
    role_flip: bool = False
    """Lets workers change between prefill and decode while they run, where one role has too many and the other too few.

    It spares the time in which new ones load. Both roles must be alike, and new versions come with strategy: Surge.
    """

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.minPrefillPercent <= self.maxPrefillPercent",
            lambda part: part.min_prefill_percent <= part.max_prefill_percent,
            "minPrefillPercent is above maxPrefillPercent; lower it or raise maxPrefillPercent",
            ".minPrefillPercent",
        ),
    )
