"""Parts of the manifest that shape the endpoint: the gateway and what leads to it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from baton_operator.api.fields import Annotations, Label, Namespace, ObjectName, Part, Port, Rule, Text
from baton_operator.api.pods import Pods


class EndpointService(Part):
    """The Kubernetes Service in front of the gateway. Local runs ignore it."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Who can reach it: the cluster, whoever reaches a node, or whoever reaches the load balancer."""
    annotations: Annotations = {}
    """Annotations, which load balancers take their settings from."""


class ParentRef(Part):
    """A Gateway of the Gateway API."""

    name: ObjectName
    """Name of the Gateway."""
    namespace: Namespace | None = None
    """Its namespace; that of the service when left out."""
    section_name: ObjectName | None = None
    """One listener of it; all that fit when left out."""


class Route(Part):
    """An HTTPRoute that leads from a Gateway of the Gateway API to the endpoint. Local runs ignore it."""

    parents: Annotated[list[ParentRef], Field(min_length=1, max_length=8)]
    """Gateways that the route hangs on."""
    hostnames: Annotated[list[Label], Field(max_length=16)] = []
    """Host names that are routed here; all when left out."""


class Ingress(Part):
    """An Ingress that leads to the endpoint. Local runs ignore it."""

    host: Label
    """Host name that is routed here."""
    class_name: ObjectName | None = None
    """IngressClass; the cluster's default when left out."""
    tls_secret: ObjectName | None = None
    """Secret with the certificate of the host; plain HTTP when left out."""
    annotations: Annotations = {}
    """Annotations, which ingress controllers take their settings from."""


Policy = Literal[
    "round_robin",
    "random",
    "power_of_two",
    "least_load",
    "cache_aware",
    "least_ttft",
    "session_affinity",
    "consistent_hash",
]


class Admission(Part):
    """How many requests are let in. What does not fit waits, and is refused with 429 or 503 when it cannot."""

    max_running_requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests that run at once, of each replica; any number when left out."""
    max_queued_requests: Annotated[int, Field(ge=0, le=1_000_000)] = 1024
    """Requests that wait to be let in, at each replica. Beyond it the newest of the lowest class are refused."""
    queue_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """How long a request waits to be let in."""
    key_requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests of one API key at once, at each replica; any number when left out."""
    key_tokens_per_minute: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Tokens of prompts and answers of one API key in a minute, at each replica; any number when left out."""


class ApiKeys(Part):
    """The keys that clients must show, as `Authorization: Bearer KEY`. A change of them restarts nothing."""

    secret: ObjectName | None = None
    """Secret with an entry for each client, named as the client is called, in the namespace of the service.

    Its value is the client's key. Behind that may stand limits of its own, `requests=N` and `tokens-per-minute=N`, in
    the place of those of `admission`. An entry may have several lines, with the same limits, to renew a key without a
    gap.
    """
    file: Text | None = None
    """What local runs read instead: a file with a line `NAME KEY` for each key, or a folder that is like the Secret.

    A path that does not begin with a slash is taken from the folder of the manifest.
    """

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.secret)",
            lambda part: part.secret is not None,
            "pods take keys from a Secret alone; write secret, the name of one with an entry for each client",
            ".secret",
            cluster=True,
        ),
    )


class Gateway(Pods):
    """The one OpenAI endpoint in front of all workers."""

    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    """How many replicas share the traffic."""
    port: Port = 8000
    """Port of the endpoint."""
    policy: Policy = "power_of_two"
    """How workers are chosen; docs/gateway-policies.md describes each policy."""
    decode_policy: Policy | None = None
    """How decode workers are chosen; as prefill workers are when left out."""
    divide_from_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Prompts of fewer tokens that no decode worker holds are served by a decode worker alone; 0: none are."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Pairs of workers tried before a request fails."""
    worker_wait_seconds: Annotated[int, Field(ge=0, le=600)] = 1
    """How long a request waits when no worker is ready; raise it where workers scale to zero."""
    admission: Admission = Admission()
    """How many requests are let in, in all and of one API key."""
    api_keys: ApiKeys | None = None
    """The keys that clients must show; whoever reaches the endpoint may ask when left out."""
    service: EndpointService = EndpointService()
    """The Kubernetes Service in front of the gateway."""
    route: Route | None = None
    """HTTPRoute of the Gateway API; none when left out."""
    ingress: Ingress | None = None
    """Ingress; none when left out."""

    def flags(self) -> list[str]:
        """The part of `baton gateway`'s command line that does not depend on where it runs."""
        admission = self.admission
        given = {
            "--policy": self.policy,
            "--decode-policy": self.decode_policy,
            "--divide-from": self.divide_from_tokens or None,
            "--attempts": self.attempts,
            "--worker-wait": self.worker_wait_seconds,
            "--max-running-requests": admission.max_running_requests,
            "--max-queued-requests": admission.max_queued_requests,
            "--queue-timeout": admission.queue_seconds,
            "--key-requests": admission.key_requests,
            "--key-tokens-per-minute": admission.key_tokens_per_minute,
        }
        return [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
