"""Makes a node keep NetworkPolicies, which CNI's bridge plugin does not: pods and policies in, nftables rules out.

    python -m support.devcluster.policies STATE INDEX

Knows what this project's policies use; anything else is an error, not a policy that is half kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.devcluster.api import Api
from support.devcluster.layout import MACHINE_ADDRESS, Layout, Node

Item = Mapping[str, Any]
_KINDS = ("/apis/networking.k8s.io/v1/networkpolicies", "/api/v1/pods", "/api/v1/namespaces")
_PERIOD = 1.0  # seconds from one look to the next
# Where rules of a policy name their peers, which side those are of a packet, and which side the pod is.
_DIRECTIONS = {"Ingress": ("ingress", "from", "saddr", "daddr"), "Egress": ("egress", "to", "daddr", "saddr")}


def main() -> None:
    layout, node = Layout.load(Path(sys.argv[1])), Node(int(sys.argv[2]))
    api, before = Api(layout, MACHINE_ADDRESS), ""
    while True:
        bodies = [api.get(f"{path}?resourceVersion=0") for path in _KINDS]
        if all(bodies):
            policies, pods, namespaces = (json.loads(body or b"")["items"] for body in bodies)
            found = ruleset(policies, pods, namespaces, node.name)
            if found != before:
                subprocess.run(["nft", "-f", "-"], input=found, text=True, check=True)
                before = found
        time.sleep(_PERIOD)


def ruleset(policies: Sequence[Item], pods: Sequence[Item], namespaces: Sequence[Item], node: str) -> str:
    """What `nft -f` reads: a table that drops what no policy lets through to or from the node's pods.

    Connections that were let through once stay, and the node itself reaches its pods.
    """
    labels = {one["metadata"]["name"]: one["metadata"].get("labels", {}) for one in namespaces}
    alive = [pod for pod in pods if _address(pod)]
    maps: dict[str, list[str]] = {kind: [] for kind in _DIRECTIONS}
    chains = []
    for pod in alive:
        own = [policy for policy in policies if _place(policy) == _place(pod) and _picks(policy["spec"], pod)]
        for kind in _DIRECTIONS if pod["spec"].get("nodeName") == node else ():
            if kept := [policy for policy in own if kind in policy["spec"]["policyTypes"]]:
                name = f"{kind}_{_address(pod).replace('.', '_')}".lower()
                lines = [line for policy in kept for line in _lines(policy, kind, alive, labels)]
                chains.append("\n".join([f"chain {name} {{", *sorted(set(lines)), "drop", "}"]))
                maps[kind].append(f"{_address(pod)} : jump {name}")
    jumps = [
        f"ip {_DIRECTIONS[kind][3]} vmap {{ {', '.join(sorted(found))} }}" for kind, found in maps.items() if found
    ]
    head = "chain forward {\ntype filter hook forward priority 10 ;\nct state established,related accept"
    table = "\n".join(["table ip policies {", *sorted(chains), head, *jumps, "}", "}"])
    return f"table ip policies\ndelete table ip policies\n{table}\n"


def _lines(policy: Item, kind: str, pods: Sequence[Item], labels: Mapping[str, Item]) -> Iterator[str]:
    """What the policy lets through; `return` goes on to the other side's rules."""
    rules, peers, side, _ = _DIRECTIONS[kind]
    for rule in policy["spec"].get(rules) or ():
        who = ""
        if rule.get(peers):
            found = {_address(pod) for pod in pods for peer in rule[peers] if _is_peer(peer, policy, pod, labels)}
            if not found:
                continue
            who = f"ip {side} {{ {', '.join(sorted(found))} }} "
        ports: Sequence[Item] = rule.get("ports") or ({},)
        for port in ports:
            yield f"{who}{_port(port)}return"


def _port(port: Item) -> str:
    if not set(port) <= {"port", "protocol"} or not isinstance(port.get("port", 0), int):
        raise ValueError(f"a port of a NetworkPolicy that is not known here: {port}")
    return f"{port.get('protocol', 'TCP').lower()} dport {port['port']} " if port else ""


def _is_peer(peer: Item, policy: Item, pod: Item, labels: Mapping[str, Item]) -> bool:
    if not set(peer) <= {"namespaceSelector", "podSelector"}:
        raise ValueError(f"a peer of a NetworkPolicy that is not known here: {peer}")
    if "namespaceSelector" in peer:
        near = _matches(peer["namespaceSelector"], labels.get(_place(pod), {}))
    else:
        near = _place(pod) == _place(policy)
    return near and _matches(peer.get("podSelector", {}), pod["metadata"].get("labels", {}))


def _picks(spec: Item, pod: Item) -> bool:
    return _matches(spec.get("podSelector", {}), pod["metadata"].get("labels", {}))


def _matches(selector: Item, labels: Item) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_holds(one, labels) for one in selector.get("matchExpressions", ()))


def _holds(expression: Item, labels: Item) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values", ())
    answers = {"In": value in values, "NotIn": value not in values}
    return {**answers, "Exists": value is not None, "DoesNotExist": value is None}[expression["operator"]]


def _place(item: Item) -> str:
    return str(item["metadata"].get("namespace", ""))


def _address(pod: Item) -> str:
    """Of a pod that has a network of its own and still runs."""
    status = pod.get("status", {})
    ended = pod["spec"].get("hostNetwork") or status.get("phase") in ("Failed", "Succeeded")
    return "" if ended else str(status.get("podIP", ""))


if __name__ == "__main__":
    main()
