"""Command lines of the control plane."""

from __future__ import annotations

from collections.abc import Iterator

from support.devcluster.layout import DNS_ADDRESS, MACHINE_ADDRESS, POD_RANGE, SERVICE_RANGE, Layout

Command = tuple[str, list[object]]
_ETCD, _PEERS = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
_ISSUER = "https://kubernetes.default.svc.cluster.local"
_UNREACHABLE_SECONDS = 30  # until pods of a lost node are replaced; five minutes is what clusters usually have


def etcd(layout: Layout) -> Command:
    flags = [
        f"--data-dir={layout.state}/etcd",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={_PEERS}",
        f"--initial-advertise-peer-urls={_PEERS}",
        f"--initial-cluster=default={_PEERS}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    return "etcd", [layout.programs["etcd"], *flags]


def api_server(layout: Layout) -> Command:
    pki = layout.pki("x").parent
    flags = [
        f"--etcd-servers={_ETCD}",
        "--secure-port=6443",
        "--bind-address=0.0.0.0",
        f"--advertise-address={MACHINE_ADDRESS}",
        f"--tls-cert-file={pki}/api.crt",
        f"--tls-private-key-file={pki}/api.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/kubelets.crt",
        f"--kubelet-client-key={pki}/kubelets.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer={_ISSUER}",
        f"--service-account-signing-key-file={pki}/accounts.key",
        f"--service-account-key-file={pki}/accounts.key",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--anonymous-auth=false",
        f"--default-not-ready-toleration-seconds={_UNREACHABLE_SECONDS}",
        f"--default-unreachable-toleration-seconds={_UNREACHABLE_SECONDS}",
    ]
    return "kube-apiserver", [layout.programs["kube-apiserver"], *flags]


def controllers(layout: Layout) -> Iterator[Command]:
    """What works through the API server, and DNS."""
    pki = layout.pki("x").parent
    more = [
        f"--service-account-private-key-file={pki}/accounts.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        "--use-service-account-credentials",
        f"--cluster-cidr={POD_RANGE}",
        "--allocate-node-cidrs=false",
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=16s",
    ]
    yield "kube-controller-manager", [layout.programs["kube-controller-manager"], *_as(layout, "controllers"), *more]
    yield "kube-scheduler", [layout.programs["kube-scheduler"], *_as(layout, "scheduler")]
    yield "coredns", [layout.programs["coredns"], "-conf", layout.state / "Corefile"]


def _as(layout: Layout, user: str) -> list[object]:
    path = layout.user(user)
    kinds = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    return [*(f"--{kind}={path}" for kind in kinds), "--leader-elect=false", "--bind-address=127.0.0.1"]


def corefile(layout: Layout) -> str:
    return f"""
.:53 {{
    bind {MACHINE_ADDRESS}
    errors
    health 127.0.0.1:8091
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {layout.user("dns")} baton-dev
        pods insecure
        ttl 5
    }}
    cache 5
}}
"""


def dns_objects() -> Iterator[tuple[str, dict[str, object]]]:
    """A Service for CoreDNS, which is no pod here, with the paths to post to."""
    ports: list[object] = [
        {"name": f"dns-{protocol.lower()}", "port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")
    ]
    place = {"name": "kube-dns", "namespace": "kube-system"}
    service: dict[str, object] = {"metadata": place, "spec": {"clusterIP": DNS_ADDRESS, "ports": ports}}
    yield "/api/v1/namespaces/kube-system/services", service
    meta = {**place, "name": "kube-dns-machine", "labels": {"kubernetes.io/service-name": "kube-dns"}}
    endpoints = [{"addresses": [MACHINE_ADDRESS], "conditions": {"ready": True}}]
    found: dict[str, object] = {"metadata": meta, "addressType": "IPv4", "endpoints": endpoints, "ports": ports}
    yield "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", found
