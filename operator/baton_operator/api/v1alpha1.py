"""`InferenceService`, `baton.dev/v1alpha1`: this file is the manual of the manifest.

camelCase in YAML; unknown fields are refused; every string, list and map is bounded.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

KIND = "InferenceService"

Text = Annotated[str, Field(min_length=1, max_length=512)]
Label = Annotated[str, Field(max_length=253)]
Name = Annotated[str, Field(max_length=50, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]


def _quantity_text(value: object) -> object:
    return str(value) if type(value) is int else value


Quantity = Annotated[
    str,
    BeforeValidator(_quantity_text),
    Field(
        max_length=32,
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
]
Quantities = Annotated[dict[Label, Quantity], Field(max_length=16)]
Labels = Annotated[dict[Label, Label], Field(max_length=64)]

# Flags that the manifest itself decides, and where.
DERIVED_FLAGS = {
    "--model-path": "spec.model.uri",
    "--model": "spec.model.uri",
    "--revision": "spec.model.revision",
    "--served-model-name": "spec.model.servedName",
    "--tp": "parallelism.tensor",
    "--tp-size": "parallelism.tensor",
    "--tensor-parallel-size": "parallelism.tensor",
    "--pp-size": "parallelism.pipeline",
    "--pipeline-parallel-size": "parallelism.pipeline",
    "--dp-size": "parallelism.data",
    "--data-parallel-size": "parallelism.data",
    "--ep-size": "parallelism.expert",
    "--expert-parallel-size": "parallelism.expert",
    "--disaggregation-mode": "the role itself",
    "--disaggregation-transfer-backend": "spec.transfer.backend",
    "--disaggregation-ib-device": "spec.transfer.devices",
    "--disaggregation-bootstrap-addr": "spec.bootstrap",
    "--host": "nothing: Baton wires the addresses",
    "--port": "nothing: Baton wires the ports",
}


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class Metadata(_Part):
    """The part of the object metadata that a manifest may set."""

    name: Name
    """Name of the service, unique in its namespace; the names of all its parts begin with it."""
    namespace: Name = "default"
    """Namespace that the service and its pods live in. Local runs ignore it."""
    labels: Labels = {}
    """Labels for your own use."""
    annotations: Annotated[dict[Label, Annotated[str, Field(max_length=4096)]], Field(max_length=64)] = {}
    """Annotations for your own use."""


class Model(_Part):
    """What is served."""

    uri: Annotated[str, Field(max_length=1024, pattern=r"^(hf|pvc|s3|oci|file)://[^\s]+$")]
    """Where the checkpoint lies: hf://owner/name, pvc://claim/path, s3://bucket/path, oci://image or file://path.

    A file path that does not begin with a slash is taken from the folder of the manifest.
    """
    revision: Text | None = None
    """Commit, tag or version of the checkpoint, where the source has such a thing."""
    served_name: Text | None = None
    """Name that clients write in the `model` field; the name of the service when left out."""


class Parallelism(_Part):
    """How one worker spreads over devices; the product of tensor, pipeline and data is the number it takes."""

    tensor: Annotated[int, Field(ge=1, le=1024)] = 1
    """Devices that share each layer."""
    pipeline: Annotated[int, Field(ge=1, le=1024)] = 1
    """Stages that the layers are cut into."""
    data: Annotated[int, Field(ge=1, le=1024)] = 1
    """Groups that compute attention for different requests."""
    expert: Annotated[int, Field(ge=1, le=1024)] = 1
    """Devices that the experts of a mixture-of-experts model are spread over."""


class Resources(_Part):
    """What a container asks for, in Kubernetes quantities. Local runs ignore it."""

    requests: Quantities = {}
    """Amounts the scheduler sets aside, by resource name."""
    limits: Quantities = {}
    """Amounts the container may not exceed, by resource name; GPUs and RDMA devices are asked for here."""


class EnvVar(_Part):
    """One environment variable."""

    name: Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=4096)]
    """Its value, taken literally."""


class WorkerRole(_Part):
    """Workers of one role, all alike."""

    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """How many workers of this role run."""
    parallelism: Parallelism = Parallelism()
    """How each of these workers spreads over devices."""
    resources: Resources = Resources()
    """What each worker's container asks for."""
    node_selector: Labels = {}
    """Labels that a node must carry for these pods. Local runs ignore it."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Further environment variables of these workers."""
    extra_args: Annotated[list[Text], Field(max_length=128)] = []
    """Further flags of `baton serve`, one word each, as in ["--page-size", "64"]."""

    @model_validator(mode="after")
    def _leaves_derived_flags_alone(self) -> Self:
        for word in self.extra_args:
            place = DERIVED_FLAGS.get(word.partition("=")[0])
            if place is not None:
                raise ValueError(f"extraArgs may not hold {word.partition('=')[0]}; set {place} instead")
        return self


class Bootstrap(_Part):
    """The server at which workers register and through which the gateway finds them."""

    replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """How many replicas run; workers register with each, and one is enough to go on."""
    lease_seconds: Annotated[int, Field(ge=1, le=60)] = 3
    """A worker that is silent this long, or whose scheduler stands still this long, gets no more requests."""
    resources: Resources = Resources()
    """What each replica's container asks for."""


class Gateway(_Part):
    """The one OpenAI endpoint in front of all workers."""

    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    """How many replicas share the traffic."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the endpoint."""
    policy: Literal["round_robin", "power_of_two"] = "power_of_two"
    """How workers are chosen: in turn, or the less loaded of two drawn at random."""
    resources: Resources = Resources()
    """What each replica's container asks for."""


class Transfer(_Part):
    """How the KV cache travels from prefill to decode."""

    backend: Literal["mooncake", "nixl"] = "mooncake"
    """Transfer engine, the same on both sides."""
    protocol: Literal["tcp", "rdma", "nvlink"] = "tcp"
    """What the bytes travel over; nvlink needs prefill and decode in one host's address space."""
    devices: Annotated[list[Text], Field(max_length=16)] = []
    """RDMA devices to use, such as mlx5_0; found automatically when left out."""

    @model_validator(mode="after")
    def _devices_need_rdma(self) -> Self:
        if self.devices and self.protocol != "rdma":
            raise ValueError(f"devices are RDMA devices, but protocol is {self.protocol}; write protocol: rdma")
        return self


class Spec(_Part):
    """The service as it is wanted."""

    model: Model
    """The checkpoint, and its name towards clients."""
    prefill: WorkerRole = WorkerRole()
    """Workers that compute the prompt. With 0 replicas decode workers run every request whole."""
    decode: WorkerRole = WorkerRole()
    """Workers that generate the answer."""
    bootstrap: Bootstrap = Bootstrap()
    """The server at which workers register."""
    gateway: Gateway = Gateway()
    """The endpoint that clients talk to."""
    transfer: Transfer = Transfer()
    """Transfer engine and network of the handoff."""

    @model_validator(mode="after")
    def _roles_fit_together(self) -> Self:
        if self.decode.replicas == 0 and self.prefill.replicas > 0:
            raise ValueError("decode.replicas is 0 while prefill.replicas is not; nothing would answer: raise decode")
        prefill, decode = self.prefill.parallelism.tensor, self.decode.parallelism.tensor
        if self.prefill.replicas and prefill % decode and decode % prefill:
            raise ValueError(
                f"prefill.parallelism.tensor is {prefill} and decode.parallelism.tensor is {decode}; "
                "choose them so that one divides the other"
            )
        return self


class InferenceService(_Part):
    """A large language model served with prefill and decode on separate workers, behind one OpenAI endpoint."""

    api_version: Literal["baton.dev/v1alpha1"]
    """Version of this schema."""
    kind: Literal["InferenceService"]
    """Kind of this object."""
    metadata: Metadata
    """Name and labels."""
    spec: Spec
    """What you want; everything else follows from it."""

    @property
    def served_name(self) -> str:
        """Name that clients write in the `model` field."""
        return self.spec.model.served_name or self.metadata.name
