"""How changes reach the workers, as the manifest says it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from baton_operator.api.fields import Part, Rule

Few = Annotated[int, Field(ge=0, le=1_000)]


class MaxSurge(Part):
    """Workers beside the wanted number, by role."""

    prefill: Few = 1
    """Prefill workers."""
    decode: Few = 1
    """Decode workers."""


class MaxUnavailable(Part):
    """Workers below the wanted number, by role."""

    prefill: Few = 0
    """Prefill workers."""
    decode: Few = 0
    """Decode workers."""


class Probe(Part):
    """A request whose answer is known."""

    prompt: Annotated[str, Field(min_length=1, max_length=4_096)]
    """What is asked, as one user message, at temperature 0."""
    expect: Annotated[str, Field(min_length=1, max_length=4_096)]
    """Text that the answer must contain."""


class Gates(Part):
    """What new workers must live up to, or the change is rolled back."""

    max_error_percent: Annotated[int, Field(ge=0, le=100)] = 5
    """Requests to new workers, in percent, that may fail."""
    max_ttft_milliseconds: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    """Longest time to first token, at the 95th percentile of new workers; any when left out."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Requests that new workers must have had before the two bounds count."""
    probe: Probe | None = None
    """A request that a new worker must answer as expected before the change goes on."""


class Rollout(Part):
    """How changes reach the workers."""

    strategy: Literal["Surge", "InPlace"] = "Surge"
    """Surge: new workers come up beside the old ones and take their place.

    InPlace: running workers change their weights, a pair of prefill and decode at a time. With a single pair, decode
    serves whole while prefill changes, and then the other way round. It takes no further devices. A change of anything
    but model.uri and model.revision takes new workers; so does a checkpoint that running pods cannot reach, on
    another claim or in an image volume.
    """
    max_surge: MaxSurge = MaxSurge()
    """Workers that may run beside the wanted number while a change is under way."""
    max_unavailable: MaxUnavailable = MaxUnavailable()
    """Workers that may be missing from the wanted number while a change is under way."""
    canary_percent: Annotated[int, Field(ge=1, le=100)] = 100
    """Part of the workers, and of new requests, after which a change waits to be promoted; at 100 it never waits."""
    soak_seconds: Annotated[int, Field(ge=0, le=86_400)] = 0
    """How long new workers are watched before more of them follow."""
    gates: Gates = Gates()
    """What new workers must live up to."""
    progress_seconds: Annotated[int, Field(ge=30, le=86_400)] = 1800
    """A change that takes longer is rolled back; loading must fit into it."""
    drain_seconds: Annotated[int, Field(ge=5, le=3_600)] = 60
    """How long a pod that is told to stop may take to end its open requests."""
    paused: bool = False
    """Leave the workers as they are, whatever else the manifest says; replicas and everything else still follow."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.maxSurge.prefill + self.maxUnavailable.prefill > 0"
            " && self.maxSurge.decode + self.maxUnavailable.decode > 0",
            lambda part: (
                part.max_surge.prefill + part.max_unavailable.prefill > 0
                and part.max_surge.decode + part.max_unavailable.decode > 0
            ),
            "maxSurge and maxUnavailable are both 0 for a role, so that its workers could never change; raise one",
            ".maxSurge",
        ),
    )
