"""`InferenceService`, `baton.dev/v1alpha1`: this file is the manual of the manifest.

camelCase in YAML; unknown fields are refused; every string, list and map is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from baton_operator.api.endpoint import Gateway
from baton_operator.api.fields import AbsolutePath, Label, Labels, Metadata, ObjectName, Part, Rule, Text
from baton_operator.api.pods import ConfigMapKey, Pods, SecretKey, WorkerPods
from baton_operator.api.rollout import Rollout
from baton_operator.api.scaling import Autoscaling, Scaling
from baton_operator.api.status import Status

KIND = "InferenceService"

# Flags that the manifest itself decides, by the place that decides them.
DERIVED_FLAGS = {
    "spec.model.uri": ("--model-path", "--model"),
    "spec.model.revision": ("--revision",),
    "spec.model.servedName": ("--served-model-name",),
    "parallelism.tensor": ("--tp", "--tp-size", "--tensor-parallel-size"),
    "parallelism.pipeline": ("--pp-size", "--pipeline-parallel-size"),
    "parallelism.data": ("--dp-size", "--data-parallel-size"),
    "parallelism.expert": ("--ep", "--ep-size", "--expert-parallel-size"),
    "parallelism.nodes": ("--nnodes", "--node-rank", "--dist-init-addr", "--nccl-init-addr"),
    "prefill.replicas, which is 0 when decode workers serve whole,": ("--disaggregation-mode",),
    "spec.transfer.backend": ("--disaggregation-transfer-backend",),
    "spec.transfer.protocol": ("--disaggregation-transfer-protocol",),
    "spec.transfer.devices": ("--disaggregation-ib-device",),
    "spec.bootstrap": ("--disaggregation-bootstrap-addr", "--disaggregation-bootstrap-port"),
}
WIRED_FLAGS = ("--host", "--port")
_LEAST_HOLD = 10  # seconds; no worker comes up from nothing sooner


def _flag_rule(flags: tuple[str, ...], remedy: str) -> Rule:
    form = f"^({'|'.join(flags)})(=.*)?$"
    pattern = re.compile(form, re.DOTALL)
    return Rule(
        f"!self.extraArgs.exists(word, word.matches('{form}'))",
        lambda part: not any(pattern.match(word) for word in part.extra_args),
        f"extraArgs may not hold {' or '.join(flags)}; {remedy}",
        ".extraArgs",
    )


class ModelCache(Part):
    """Where downloaded checkpoints are kept, so that a new pod does not download again. Local runs ignore it."""

    claim: ObjectName | None = None
    """PersistentVolumeClaim that all workers share; it must allow ReadWriteMany."""
    node_path: AbsolutePath | None = None
    """Folder of the node's own disk. A pod with such a volume is outside the restricted pod security standard."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.claim) != has(self.nodePath)",
            lambda part: (part.claim is None) != (part.node_path is None),
            "write either claim or nodePath",
        ),
    )


class Bucket(Part):
    """How an S3 bucket is reached."""

    credentials: ObjectName | None = None
    """Secret with entries AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN where there is one.

    When left out, what the node itself may read, or anybody. Local runs take these variables from the environment.
    """
    endpoint: Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s]+$")] | None = None
    """URL of the service; that of AWS when left out."""
    region: Label | None = None
    """Region of the bucket; us-east-1 when left out, from where AWS leads to the right one."""


class Model(Part):
    """What is served."""

    uri: Annotated[str, Field(max_length=1024, pattern=r"^(hf|pvc|s3|oci|file)://[^\s]+$")]
    """Where the checkpoint lies: hf://owner/name, s3://bucket/path, pvc://claim/path, oci://image or file://path.

    A file path lies in the worker's image. One that does not begin with a slash is taken from /opt/baton/share there,
    where the demo models are, and from the folder of the manifest in local runs.
    """
    revision: Text | None = None
    """Commit, tag or branch of a checkpoint on the Hugging Face hub. A branch moves: name a commit where it matters."""
    served_name: Text | None = None
    """Name that clients write in the `model` field; the name of the service when left out."""
    token: SecretKey | None = None
    """Secret entry with the token that the Hugging Face hub asks for. Local runs take HF_TOKEN from the environment."""
    s3: Bucket | None = None
    """How the bucket of an s3:// checkpoint is reached."""
    cache: ModelCache | None = None
    """Where downloaded checkpoints are kept; in each pod, and gone with it, when left out."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.uri.startsWith('hf://') || !has(self.revision)",
            lambda part: part.uri.startswith("hf://") or part.revision is None,
            "revision is for hf:// only; leave it out and name the version in the uri",
            ".revision",
        ),
        Rule(
            "self.uri.startsWith('hf://') || !has(self.token)",
            lambda part: part.uri.startswith("hf://") or part.token is None,
            "token is for hf:// only; leave it out, and use placement.imagePullSecrets for oci://, s3.credentials for s3://",
            ".token",
        ),
        Rule(
            "self.uri.startsWith('s3://') || !has(self.s3)",
            lambda part: part.uri.startswith("s3://") or part.s3 is None,
            "s3 is for s3:// only; leave it out, or write s3://bucket/path as the uri",
            ".s3",
        ),
        Rule(
            "self.uri.startsWith('hf://') || self.uri.startsWith('s3://') || !has(self.cache)",
            lambda part: part.downloaded or part.cache is None,
            "cache is for hf:// and s3:// only; leave it out, since nothing is downloaded",
            ".cache",
        ),
    )

    @property
    def downloaded(self) -> bool:
        """Whether the checkpoint is brought from outside the cluster, or from a bucket in it."""
        return self.uri.startswith(("hf://", "s3://"))


def _not_yet(field: str, remedy: str) -> Rule:
    return Rule(
        f"self.{field} == 1",
        lambda part: getattr(part, field) == 1,
        f"workers of this release cannot have {field} above 1 yet; {remedy}",
        f".{field}",
        admission=True,
    )


class Parallelism(Part):
    """How one worker spreads over devices; the product of tensor, pipeline and data is the number it takes."""

    tensor: Annotated[int, Field(ge=1, le=1024)] = 1
    """Devices that share each layer."""
    pipeline: Annotated[int, Field(ge=1, le=1024)] = 1
    """Stages that the layers are cut into."""
    data: Annotated[int, Field(ge=1, le=1024)] = 1
    """Groups that compute attention for different requests."""
    expert: Annotated[int, Field(ge=1, le=1024)] = 1
    """Devices that the experts of a mixture-of-experts model are spread over."""
    nodes: Annotated[int, Field(ge=1, le=256)] = 1
    """Nodes, one pod on each, that one worker spans; more than 1 needs LeaderWorkerSet in the cluster.

    `resources` are those of one pod, which has its share of the worker's devices.
    """

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.tensor * self.pipeline * self.data) % self.nodes == 0",
            lambda part: part.tensor * part.pipeline * part.data % part.nodes == 0,
            "tensor times pipeline times data must be a multiple of nodes; choose nodes so that all have equally many",
            ".nodes",
        ),
        _not_yet("pipeline", "raise tensor"),
        _not_yet("data", "raise replicas"),
        _not_yet("expert", "leave it out"),
    )

    @property
    def devices(self) -> int:
        """Devices that one worker takes."""
        return self.tensor * self.pipeline * self.data


class WorkerRole(WorkerPods):
    """Workers of one role, all alike."""

    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """How many workers of this role run; where `autoscaling` is set, how many to start with."""
    parallelism: Parallelism = Parallelism()
    """How each of these workers spreads over devices."""
    extra_args: Annotated[list[Text], Field(max_length=128)] = []
    """Further flags of `baton serve`, one word each, as in ["--page-size", "64"]."""
    autoscaling: Autoscaling | None = None
    """Lets the number of workers follow the traffic; fixed when left out."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *(_flag_rule(flags, f"set {place} instead") for place, flags in DERIVED_FLAGS.items()),
        _flag_rule(WIRED_FLAGS, "Baton wires the ports and addresses"),
    )


class Bootstrap(Pods):
    """The server at which workers register and through which the gateway finds them."""

    replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """How many replicas run; workers register with each, and one is enough to go on. A change restarts the workers."""
    lease_seconds: Annotated[int, Field(ge=1, le=60)] = 3
    """A worker that is silent this long, or whose scheduler stands still this long, gets no more requests."""


class Transfer(Part):
    """How the KV cache travels from prefill to decode."""

    backend: Literal["mooncake", "nixl"] = "mooncake"
    """Transfer engine, the same on both sides."""
    protocol: Literal["tcp", "rdma", "nvlink"] = "tcp"
    """What the bytes travel over. nvlink needs prefill and decode on one machine and works in local runs only."""
    devices: Annotated[list[Text], Field(max_length=16)] = []
    """RDMA devices to use, such as mlx5_0; found automatically when left out."""
    resource: Label | None = None
    """Resource of which each worker pod asks for one, as the cluster's RDMA device plugin names it: rdma/hca or alike.

    Local runs ignore it.
    """

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.protocol == 'rdma' || size(self.devices) == 0",
            lambda part: part.protocol == "rdma" or not part.devices,
            "devices are RDMA devices, but protocol is not rdma; write protocol: rdma or leave devices out",
            ".devices",
        ),
        Rule(
            "self.protocol == 'rdma' || !has(self.resource)",
            lambda part: part.protocol == "rdma" or part.resource is None,
            "resource is an RDMA device, but protocol is not rdma; write protocol: rdma or leave resource out",
            ".resource",
        ),
        Rule(
            "self.protocol != 'nvlink'",
            lambda part: part.protocol != "nvlink",
            "NVLink does not reach from pod to pod; write protocol: rdma or protocol: tcp",
            ".protocol",
            cluster=True,
        ),
    )


class Metrics(Part):
    """Who may read /metrics of workers, gateway and bootstrap server. Local runs ignore it."""

    namespaces: Labels = {}
    """Labels of the namespaces from which metrics may be read; only the service's own namespace when empty."""
    pod_monitor: bool = False
    """Make a PodMonitor for the Prometheus operator."""
    pod_monitor_labels: Labels = {}
    """Labels of the PodMonitor, by which a Prometheus selects it."""
    interval_seconds: Annotated[int, Field(ge=1, le=3_600)] = 30
    """How often the PodMonitor has metrics read."""


class Proxy(Part):
    """The HTTP proxy through which downloads go."""

    url: Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s]+$")]
    """URL of the proxy."""
    exceptions: Annotated[list[Label], Field(max_length=64)] = []
    """Hosts and domains that are reached directly; the cluster's own names always are."""


class Security(Part):
    """Who may talk to whom, and what proves it. Local runs ignore it."""

    network_policies: bool = True
    """Let pods talk only to those they must; RDMA traffic is out of reach of network policies."""
    mutual_tls: bool = False
    """Let workers, gateway and bootstrap server prove themselves to each other with certificates, and encrypt.

    The operator makes them and renews them without a restart; it may where its chart has `secrets: true`. Clients'
    connections and KV pages stay as they are.
    """
    token: SecretKey | None = None
    """Secret entry with a token that workers and gateway must show at the bootstrap server.

    So must the operator, which may read it where its chart has `secrets: true`.
    """
    ca: ConfigMapKey | None = None
    """ConfigMap entry with the certificates, in PEM, that downloads trust; it takes the place of the public ones."""
    proxy: Proxy | None = None
    """The HTTP proxy through which downloads go."""

    fixed: ClassVar[Mapping[str, str]] = {
        "mutualTls": "pods with and without certificates cannot talk to each other; make a service of another name",
    }


def _rdma_rule(role: str) -> Rule:
    return Rule(
        "self.transfer.protocol != 'rdma' || has(self.transfer.resource)"
        f" || size(self.{role}.placement.resourceClaims) > 0",
        lambda spec: (
            spec.transfer.protocol != "rdma"
            or spec.transfer.resource is not None
            or bool(getattr(spec, role).placement.resource_claims)
        ),
        f"transfer.protocol is rdma, but {role} pods ask for no RDMA device; write transfer.resource, the name of your "
        f"device plugin's resource, such as rdma/hca, or {role}.placement.resourceClaims, or transfer.protocol: tcp",
        ".transfer",
        cluster=True,
    )


def _secret_rule(role: str) -> Rule:
    return Rule(
        f"self.{role}.parallelism.nodes == 1 || self.security.mutualTls || has(self.security.token)",
        lambda spec: (
            getattr(spec, role).parallelism.nodes == 1 or spec.security.mutual_tls or spec.security.token is not None
        ),
        f"{role} workers span nodes, which know each other by a secret of the service; write security.mutualTls: true "
        "or security.token",
        ".security",
        cluster=True,
    )


def _tensor_sizes_fit(spec: Spec) -> bool:
    prefill, decode = spec.prefill.parallelism.tensor, spec.decode.parallelism.tensor
    return not spec.divided or not prefill % decode or not decode % prefill


def _holds_requests(spec: Spec) -> bool:
    scaling = spec.decode.autoscaling
    to_zero = scaling is not None and scaling.driver == "operator" and scaling.min_replicas == 0
    return not to_zero or spec.gateway.worker_wait_seconds >= _LEAST_HOLD


def _scale_to_zero_as_a_pair(spec: Spec) -> bool:
    decode, prefill = spec.decode.autoscaling, spec.prefill.autoscaling
    if decode is None or decode.min_replicas > 0 or not spec.divided:
        return True
    return prefill is not None and prefill.min_replicas == 0


# Field by field: to the API server the two objects are of different types, which it does not compare.
_ALIKE = " && ".join(
    f"self.prefill.parallelism.{name} == self.decode.parallelism.{name}" for name in Parallelism.model_fields
)


def _alike(spec: Spec) -> bool:
    prefill, decode = spec.prefill, spec.decode
    return (prefill.parallelism, prefill.extra_args) == (decode.parallelism, decode.extra_args)


class Spec(Part):
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
    scaling: Scaling = Scaling()
    """What the operator aims at where it sets the number of workers."""
    rollout: Rollout = Rollout()
    """How new weights, images and arguments reach the workers."""
    metrics: Metrics = Metrics()
    """Who may read the metrics."""
    security: Security = Security()
    """Who may talk to whom."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.decode.replicas > 0 || self.prefill.replicas == 0",
            lambda spec: spec.decode.replicas > 0 or spec.prefill.replicas == 0,
            "decode.replicas is 0 while prefill.replicas is not; nothing would answer: raise decode.replicas",
            ".decode.replicas",
        ),
        Rule(
            "(self.prefill.replicas == 0 && !has(self.prefill.autoscaling))"
            " || self.prefill.parallelism.tensor % self.decode.parallelism.tensor == 0"
            " || self.decode.parallelism.tensor % self.prefill.parallelism.tensor == 0",
            _tensor_sizes_fit,
            "prefill.parallelism.tensor and decode.parallelism.tensor do not fit; choose them so that "
            "one divides the other",
            ".prefill.parallelism.tensor",
        ),
        Rule(
            "!has(self.decode.autoscaling) || self.decode.autoscaling.minReplicas > 0"
            " || (self.prefill.replicas == 0 && !has(self.prefill.autoscaling))"
            " || (has(self.prefill.autoscaling) && self.prefill.autoscaling.minReplicas == 0)",
            _scale_to_zero_as_a_pair,
            "decode may scale to zero only together with prefill; write prefill.autoscaling.minReplicas: 0, or raise "
            "decode.autoscaling.minReplicas",
            ".decode.autoscaling",
        ),
        Rule(
            "!has(self.decode.autoscaling) || self.decode.autoscaling.driver != 'operator'"
            f" || self.decode.autoscaling.minReplicas > 0 || self.gateway.workerWaitSeconds >= {_LEAST_HOLD}",
            _holds_requests,
            "decode.autoscaling.minReplicas is 0, so requests must be held while workers start; write "
            "gateway.workerWaitSeconds, as many seconds as that takes, or decode.autoscaling.minReplicas: 1",
            ".gateway.workerWaitSeconds",
            cluster=True,
        ),
        Rule(
            f"!self.scaling.roleFlip || ({_ALIKE} && self.prefill.extraArgs == self.decode.extraArgs)",
            lambda spec: not spec.scaling.role_flip or _alike(spec),
            "scaling.roleFlip is set, but workers of the two roles differ; write the same parallelism and extraArgs "
            "for prefill and decode, or leave roleFlip out",
            ".scaling.roleFlip",
        ),
        Rule(
            "!self.scaling.roleFlip || self.rollout.strategy == 'Surge'",
            lambda spec: not spec.scaling.role_flip or spec.rollout.strategy == "Surge",
            "scaling.roleFlip is set, but workers that change their weights in place keep their roles; write "
            "rollout.strategy: Surge, or leave roleFlip out",
            ".rollout.strategy",
        ),
        _rdma_rule("prefill"),
        _rdma_rule("decode"),
        _secret_rule("prefill"),
        _secret_rule("decode"),
    )

    @property
    def divided(self) -> bool:
        """Whether prefill and decode run on separate workers; otherwise decode workers serve whole."""
        return self.prefill.replicas > 0 or self.prefill.autoscaling is not None


class InferenceService(Part):
    """A large language model served with prefill and decode on separate workers, behind one OpenAI endpoint."""

    api_version: Literal["baton.dev/v1alpha1"]
    """Version of this schema."""
    kind: Literal["InferenceService"]
    """Kind of this object."""
    metadata: Metadata
    """Name and labels."""
    spec: Spec
    """What you want; everything else follows from it."""
    status: Status | None = None
    """What the operator saw and did last; nothing that you write."""

    @property
    def served_name(self) -> str:
        """Name that clients write in the `model` field."""
        return self.spec.model.served_name or self.metadata.name
