"""`WorkerScaler`, `baton.dev/v1alpha1`: what an autoscaler drives in the place of the user's manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from baton_operator.api.fields import Metadata, Part


class WorkerScalerSpec(Part):
    """What an autoscaler asks for."""

    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Workers asked for."""


class WorkerScalerStatus(Part):
    """What the autoscaler reads."""

    replicas: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Workers of the role that exist now, of all revisions."""
    selector: Annotated[str, Field(max_length=512)] = ""
    """Label selector of the role's pods, of all revisions."""


class WorkerScalerMetadata(Metadata):
    """Object metadata; the name is that of service and role."""

    name: Annotated[str, Field(max_length=63, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
    """Name of the scaler, as in chat-decode."""


class WorkerScaler(Part):
    """The number of workers of one role, for an HPA or KEDA to set; made by the operator, stable over revisions."""

    api_version: Literal["baton.dev/v1alpha1"]
    """Version of this schema."""
    kind: Literal["WorkerScaler"]
    """Kind of this object."""
    metadata: WorkerScalerMetadata
    """Name and labels."""
    spec: WorkerScalerSpec = WorkerScalerSpec()
    """What an autoscaler asks for."""
    status: WorkerScalerStatus | None = None
    """What the autoscaler reads."""
