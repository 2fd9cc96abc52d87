"""One node: containerd, kubelet, kube-proxy and what keeps NetworkPolicies, in namespaces of their own.

unshare --mount --net --propagation private python -m support.devcluster.node STATE INDEX
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.devcluster import image_store
from support.devcluster.debian import Runtime
from support.devcluster.isolation import own_file_system, run, set_network
from support.devcluster.layout import BRIDGE, DNS_ADDRESS, MACHINE_ADDRESS, POD_RANGE, Layout, Node
from support.devcluster.supervisor import Supervisor

KUBELET = "/var/lib/kubelet"
SOCKET = "/run/containerd/containerd.sock"


def main() -> None:
    layout = Layout.load(Path(sys.argv[1]))
    node = Node(int(sys.argv[2]))
    runtime = Runtime(layout.runtime)
    os.environ.update(runtime.environment())
    layout.of(node, "x").parent.mkdir(exist_ok=True)
    own_file_system(layout.of(node, "var"))
    # A short name for it: kubelets make sockets there, whose paths may have 107 characters.
    layout.of(node, "kubelet").mkdir(exist_ok=True)
    Path(KUBELET).mkdir(exist_ok=True)
    run("mount", "--bind", layout.of(node, "kubelet"), KUBELET)
    _network(layout, node)
    _write_files(layout, node, runtime)
    image_store.link(layout.images, layout.of(node, "containerd"))
    supervisor = Supervisor(layout, runtime.environment())
    supervisor.start(f"containerd-{node.name}", "containerd", "--config", layout.of(node, "containerd.toml"))
    supervisor.wait("containerd's socket", lambda: _answers())
    kubelet = [layout.programs["kubelet"], f"--config={layout.of(node, 'kubelet.json')}"]
    kubelet += [f"--kubeconfig={layout.user(f'kubelet-{node.name}')}", f"--hostname-override={node.name}"]
    kubelet += [f"--node-ip={node.address}", f"--root-dir={KUBELET}"]
    kubelet += [f"--node-labels=topology.kubernetes.io/zone={node.name}"]
    supervisor.start(f"kubelet-{node.name}", *kubelet)
    supervisor.start(
        f"kube-proxy-{node.name}", layout.programs["kube-proxy"], f"--config={layout.of(node, 'proxy.json')}"
    )
    policies = [sys.executable, "-m", "support.devcluster.policies", layout.state, node.index]
    supervisor.start(f"policies-{node.name}", *policies)
    supervisor.run()


def _answers() -> bool:
    return subprocess.run(["ctr", "version"], capture_output=True, check=False).returncode == 0


def _network(layout: Layout, node: Node) -> None:
    """A cable to the machine's bridge; the pods of every node are reached through its address."""
    outside = ("nsenter", "--target", "1", "--net", "ip", "link")
    run(*outside, "add", node.name, "type", "veth", "peer", "name", "eth0", "netns", os.getpid())
    run(*outside, "set", node.name, "master", BRIDGE, "up")
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{node.address}/24", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    run("ip", "route", "add", "default", "via", MACHINE_ADDRESS)
    for other in layout.nodes:
        if other != node:
            run("ip", "route", "add", other.pods, "via", other.address)
    set_network("ipv4/ip_forward", "1")
    set_network("bridge/bridge-nf-call-iptables", "1")
    # What pods send to anything but pods carries the node's address.
    run("nft", "add", "table", "ip", "machine")
    run("nft", "add", "chain", "ip", "machine", "leaving", "{ type nat hook postrouting priority 100 ; }")
    rule = ("ip", "saddr", node.pods, "ip", "daddr", "!=", POD_RANGE, "oifname", "eth0", "masquerade")
    run("nft", "add", "rule", "ip", "machine", "leaving", *rule)


def _write_files(layout: Layout, node: Node, runtime: Runtime) -> None:
    layout.of(node, "containerd.toml").write_text(_containerd(layout, node, runtime))
    layout.of(node, "kubelet.json").write_text(json.dumps(_kubelet(layout, node)))
    proxy = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(layout.user("proxy"))},
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": node.name,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0},
        "nftables": {"minSyncPeriod": "100ms"},
    }
    layout.of(node, "proxy.json").write_text(json.dumps(proxy))
    # It may name no server on this machine's own loopback, which pods cannot reach.
    layout.of(node, "resolv.conf").write_text(f"nameserver {MACHINE_ADDRESS}\n")
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/addresses",
            "ranges": [[{"subnet": node.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, {"type": "loopback"}]}
    layout.of(node, "cni").mkdir(exist_ok=True)
    layout.of(node, "cni/10-pods.conflist").write_text(json.dumps(network))


def _containerd(layout: Layout, node: Node, runtime: Runtime) -> str:
    return f"""
version = 2
root = "{layout.of(node, "containerd")}"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{layout.of(node, "opt")}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image_store.PAUSE}"
  stream_server_address = "127.0.0.1"
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE a negative score is refused, and with it every pod.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{runtime.plugins}"
    conf_dir = "{layout.of(node, "cni")}"
"""


def _kubelet(layout: Layout, node: Node) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(layout.pki("ca.crt"))},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(layout.pki(f"{node.name}.crt")),
        "tlsPrivateKeyFile": str(layout.pki(f"{node.name}.key")),
        "address": node.address,
        "healthzBindAddress": "127.0.0.1",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}/{node.name}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_ADDRESS],
        "resolvConf": str(layout.of(node, "resolv.conf")),
        "podLogsDir": str(layout.of(node, "logs")),
        # The images are shared with other clusters, and this machine is not the kubelet's to tidy.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "evictionPressureTransitionPeriod": "5s",
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
    }


if __name__ == "__main__":
    main()
