"""Parts of the manifest that shape the endpoint: the gateway and what leads to it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from baton_operator.api.fields import Annotations, Label, Namespace, ObjectName, Part, Port
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


class Gateway(Pods):
    """The one OpenAI endpoint in front of all workers."""

    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    """How many replicas share the traffic."""
    port: Port = 8000
    """Port of the endpoint."""
    policy: Literal["round_robin", "power_of_two"] = "power_of_two"
    """How workers are chosen: in turn, or the less loaded of two drawn at random."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """Pairs of workers tried before a request fails."""
    worker_wait_seconds: Annotated[int, Field(ge=0, le=600)] = 1
    """How long a request waits when no worker is ready; raise it where workers scale to zero."""
    service: EndpointService = EndpointService()
    """The Kubernetes Service in front of the gateway."""
    route: Route | None = None
    """HTTPRoute of the Gateway API; none when left out."""
    ingress: Ingress | None = None
    """Ingress; none when left out."""
