"""Names, addresses and files of a development cluster. Nothing here does anything."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

SERVICE_RANGE = "10.96.0.0/16"
POD_RANGE = "10.244.0.0/16"
DNS_ADDRESS = "10.96.0.10"
MACHINE_ADDRESS = "10.99.0.1"
API = f"https://{MACHINE_ADDRESS}:6443"
BRIDGE = "baton0"


@dataclass(frozen=True)
class Node:
    """`index` counts from 1."""

    index: int

    @property
    def name(self) -> str:
        return f"node-{self.index}"

    @property
    def address(self) -> str:
        return f"10.99.0.{10 + self.index}"

    @property
    def pods(self) -> str:
        return f"10.244.{self.index}.0/24"


@dataclass(frozen=True)
class Layout:
    """`programs` by name; `runtime` holds unpacked packages, `images` a containerd's images."""

    state: Path
    node_count: int
    port: int
    programs: dict[str, Path]
    runtime: Path
    images: Path

    @property
    def nodes(self) -> list[Node]:
        return [Node(index + 1) for index in range(self.node_count)]

    @property
    def cgroup(self) -> str:
        """Of all pods, below each hierarchy's root."""
        return f"baton-{hashlib.sha256(str(self.state).encode()).hexdigest()[:8]}"

    @property
    def kubeconfig(self) -> Path:
        """For programs outside the cluster's namespaces."""
        return self.state / "kubeconfig"

    @property
    def ready(self) -> Path:
        """Is there when the cluster can be used."""
        return self.state / "ready"

    @property
    def failed(self) -> Path:
        """Says why the cluster could not start."""
        return self.state / "failed"

    @property
    def holder(self) -> Path:
        """Process id, seen from outside, of what the cluster ends with."""
        return self.state / "holder.pid"

    @property
    def machine(self) -> Path:
        """Process id, seen from outside, of the first process in the cluster's namespaces."""
        return self.state / "machine.pid"

    def held(self, program: str) -> Path:
        """While it exists the program does not run."""
        return self.state / "held" / program

    def log(self, program: str) -> Path:
        return self.state / "log" / f"{program}.log"

    def pki(self, name: str) -> Path:
        return self.state / "pki" / name

    def user(self, name: str) -> Path:
        """A kubeconfig for programs inside."""
        return self.state / "users" / name

    def of(self, node: Node, name: str) -> Path:
        """A file or folder of a node."""
        return self.state / node.name / name

    def save(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        (self.state / "layout.json").write_text(json.dumps(asdict(self), default=str))

    @staticmethod
    def load(state: Path) -> Layout:
        """Raises `FileNotFoundError` where no cluster was started."""
        read = json.loads((state / "layout.json").read_text())
        paths = {name: Path(read[name]) for name in ("state", "runtime", "images")}
        programs = {name: Path(path) for name, path in read["programs"].items()}
        return Layout(node_count=read["node_count"], port=read["port"], programs=programs, **paths)
