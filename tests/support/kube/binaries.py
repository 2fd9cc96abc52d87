"""Finds the programs of a Kubernetes cluster, or builds them from the Go modules pinned in tests/cluster/tools.

Definitions of other projects' kinds are taken from their modules in the same way.

    python -m support.kube.binaries [NAME ...]

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
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.baton_processes import bound_to_parent

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
        module = MODULES / self.module
        names = sorted([*module.glob("go.*"), *module.rglob("*.go")])
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
    Tool("coredns", {"coredns": "."}),
    Tool("pause", {"pause": "."}),
    Tool(
        "lws",
        {"leaderworkerset": "sigs.k8s.io/lws/cmd"},
        {"leaderworkerset-webhooks.yaml": "sigs.k8s.io/lws:config/webhook/manifests.yaml"},
    ),
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


def build(missing: Collection[str]) -> None:
    """Make what is named. Raises `CalledProcessError`, or `FileNotFoundError` where there is no Go."""
    for tool in TOOLS:
        if names := [name for name in tool.programs if name in missing]:
            _build(tool, names)
        for name in tool.files:
            if name in missing:
                _fetch(tool, name)


def go_lacks() -> str:
    """Why the modules cannot be built with the Go of this machine; empty when they can."""
    if shutil.which("go") is None:
        return "there is none"
    # Go reads the version that a module asks for before it does anything.
    done = subprocess.run(
        ["go", "list", "-m"], cwd=MODULES / TOOLS[0].module, capture_output=True, text=True, check=False
    )
    return done.stderr.strip() if done.returncode else ""


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


def _build(tool: Tool, names: Collection[str]) -> None:
    """All in one call, so that no core waits for one of them to be linked."""
    folder = tool.folder()
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".", dir=folder))
    command = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", _linker_flags(tool), "-o", f"{partial}/"]
    # Compilers that collect less garbage are done sooner; each has a few hundred megabytes then.
    environment = {"GOGC": "400", **os.environ, "CGO_ENABLED": "0"}
    try:
        packages = [tool.programs[name] for name in names]
        command = bound_to_parent([*command, *packages])
        subprocess.run(command, cwd=MODULES / tool.module, env=environment, check=True)
        for name in names:
            (partial / _named_by_go(tool, tool.programs[name])).rename(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _named_by_go(tool: Tool, package: str) -> str:
    """The last part of the path that is not a version."""
    return tool.module if package == "." else re.sub(r"/v\d+$", "", package).rpartition("/")[2]


def _fetch(tool: Tool, name: str) -> None:
    module, _, path = tool.files[name].partition(":")
    command = ["go", "mod", "download", "-json", module]
    done = subprocess.run(command, cwd=MODULES / tool.module, check=True, capture_output=True)
    tool.folder().mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(json.loads(done.stdout)["Dir"]) / path, tool.folder() / name)


def _linker_flags(tool: Tool) -> str:
    """Kubernetes learns its own version from the linker."""
    pin = re.search(r"k8s\.io/kubernetes v(\d+)\.(\d+)\.\d+", (MODULES / tool.module / "go.mod").read_text())
    if pin is None:
        return "-s -w"
    values = {"gitVersion": pin[0].split()[1], "gitMajor": pin[1], "gitMinor": pin[2]}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        ["-s -w", *(f"-X {package}.{key}={value}" for package in packages for key, value in values.items())]
    )


if __name__ == "__main__":
    wanted = sys.argv[1:]
    if (lacking := find(wanted)[1]) and (why := go_lacks()):
        raise SystemExit(f"missing {', '.join(lacking)}, and no Go to build them with: {why}")
    build(lacking)
    for program, path in find(wanted)[0].items():
        print(f"{program}: {path}")
