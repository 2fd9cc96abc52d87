"""Finds the programs of a Kubernetes cluster, or builds them from the Go modules pinned in tests/cluster/tools.

Definitions of other projects' kinds are taken from their modules in the same way.

    python tests/support/kube/binaries.py [NAME ...]

builds whatever is missing of those named, or of all, and prints where each program lies. They are kept outside the
clone, in `$XDG_CACHE_HOME/baton/kube`, in one folder for each set of pins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MODULES = Path(__file__).parents[2] / "cluster" / "tools"
_ENVTEST = (Path("/usr/local/kubebuilder/bin"), Path.home() / ".local/share/kubebuilder-envtest/k8s")


@dataclass(frozen=True)
class Tool:
    """A Go module below `MODULES`, and what comes of it: of each program the package, of each file the place.

    The place of a file is a module that this one requires, a colon, and the path in it.
    """

    module: str
    programs: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def folder(self) -> Path:
        """Where the programs are kept; another one whenever a pin changes."""
        names = sorted(path for path in (MODULES / self.module).iterdir() if path.name.startswith(("go.", "main.")))
        pins = b"".join(path.read_bytes() for path in names)
        return cache() / f"{self.module}-{hashlib.sha256(pins).hexdigest()[:16]}"


def cache() -> Path:
    """The folder that all of this is kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baton" / "kube"


# Enough for an API server whose pods never run.
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kubectl", "etcd", "helm")
DEFINITIONS = ("leaderworkersets.yaml", "httproutes.yaml")
# What pods need to run.
NODES = ("kube-scheduler", "kubelet", "kube-proxy", "coredns", "pause")
TOOLS = (
    Tool(
        "k8s",
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (*CONTROL_PLANE[:3], "kube-scheduler", "kubelet", "kube-proxy")
        },
    ),
    Tool("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Tool("helm", {"helm": "helm.sh/helm/v4/cmd/helm"}),
    Tool(
        "lws",
        {"leaderworkerset": "sigs.k8s.io/lws/cmd"},
        {"leaderworkerset-webhooks.yaml": "sigs.k8s.io/lws:config/webhook/manifests.yaml"},
    ),
    Tool("coredns", {"coredns": "."}),
    Tool("pause", {"pause": "."}),
    Tool(
        "definitions",
        files={
            "leaderworkersets.yaml": "sigs.k8s.io/lws:config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",
            "httproutes.yaml": "sigs.k8s.io/gateway-api:config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
        },
    ),
)


def find(names: Collection[str] = ()) -> tuple[dict[str, Path], list[str]]:
    """Of those named, or of all: the programs and files that are there, and the names of the others."""
    wanted = {name: tool for tool in TOOLS for name in (*tool.programs, *tool.files) if not names or name in names}
    found = {name: path for name, tool in wanted.items() if (path := _find(name, tool)) is not None}
    return found, [name for name in wanted if name not in found]


def build(missing: list[str]) -> None:
    """Make what is named. Raises `CalledProcessError`, or `FileNotFoundError` where there is no Go."""
    for tool in TOOLS:
        for name in missing:
            if name in tool.programs:
                _build(tool, name)
            if name in tool.files:
                _fetch(tool, name)


def _find(name: str, tool: Tool) -> Path | None:
    mode = os.X_OK if name in tool.programs else os.R_OK
    return next((folder / name for folder in _folders(tool) if os.access(folder / name, mode)), None)


def _folders(tool: Tool) -> Iterator[Path]:
    for variable in ("KUBE_BIN_DIR", "KUBEBUILDER_ASSETS"):
        if value := os.environ.get(variable):
            yield Path(value)
    yield tool.folder()
    for folder in _ENVTEST:
        yield folder
        yield from sorted(folder.glob("*"), reverse=True)


def _build(tool: Tool, name: str) -> None:
    folder = tool.folder()
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f".{name}.{os.getpid()}"
    command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", _linker_flags(tool), "-o", str(made)]
    try:
        environment = {**os.environ, "CGO_ENABLED": "0"}
        subprocess.run([*command, tool.programs[name]], cwd=MODULES / tool.module, env=environment, check=True)
        made.rename(folder / name)
    finally:
        made.unlink(missing_ok=True)


def _fetch(tool: Tool, name: str) -> None:
    module, _, path = tool.files[name].partition(":")
    command = ["go", "mod", "download", "-json", module]
    done = subprocess.run(command, cwd=MODULES / tool.module, check=True, capture_output=True)
    tool.folder().mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(json.loads(done.stdout)["Dir"]) / path, tool.folder() / name)


def _linker_flags(tool: Tool) -> str:
    """Kubernetes learns its own version from the linker."""
    pin = re.search(r"k8s\.io/kubernetes v(\d+)\.(\d+)\.\d+", (MODULES / tool.module / "go.mod").read_text())
    if tool.module != "k8s" or pin is None:
        return "-s -w"
    values = {"gitVersion": pin[0].split()[1], "gitMajor": pin[1], "gitMinor": pin[2]}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        ["-s -w", *(f"-X {package}.{key}={value}" for package in packages for key, value in values.items())]
    )


if __name__ == "__main__":
    wanted = sys.argv[1:]
    if (lacking := find(wanted)[1]) and shutil.which("go") is None:
        raise SystemExit(f"missing {', '.join(lacking)}, and no Go to build them with")
    build(lacking)
    for program, path in find(wanted)[0].items():
        print(f"{program}: {path}")
