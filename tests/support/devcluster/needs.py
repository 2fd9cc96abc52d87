"""What a machine must have, so that a development cluster can be built and started on it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.devcluster import cgroups
from support.kube import binaries

_GB = 1_000_000_000
_DISK_COLD, _DISK_WARM = 25 * _GB, 5 * _GB  # before anything was built, and after
_MEMORY = 6 * _GB
# What pods and nodes are kept apart with; the folder to try in is the first argument.
_TRIAL = """
mkdir "$1/lower" "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" "$1/root"
if command -v ip > /dev/null; then
    ip link add trial0 type bridge
    ip link add trial1 type veth peer name trial2
fi
"""


def lacking() -> list[str]:
    """What is missing, a line each; nothing where a cluster can be started."""
    found = [*_tools(), *_room()]
    return found or list(_kernel())  # which takes root and some of the tools to ask


def _tools() -> Iterator[str]:
    if os.geteuid():
        yield f"root: this is user {os.geteuid()}"
    for name in ("apt-get", "dpkg", "openssl", "unshare", "nsenter"):
        if shutil.which(name) is None:
            yield f"the program {name}" + (
                ": container runtime and base image are Debian packages" if "-" in name else ""
            )
    missing = binaries.find([*binaries.CONTROL_PLANE, *binaries.NODES])[1]
    if missing and (why := binaries.go_lacks()):
        yield f"Go, to build {', '.join(missing)}: {why}; or set KUBE_BIN_DIR to a folder that has them"


def _room() -> Iterator[str]:
    place = binaries.cache()
    place.mkdir(parents=True, exist_ok=True)
    wanted = _DISK_WARM if (place / "images" / "digests.json").exists() else _DISK_COLD
    if (free := shutil.disk_usage(place).free) < wanted:
        yield f"{wanted / _GB:.0f} GB of disk at {place}: {free / _GB:.1f} are free"
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    if (memory := int(lines["MemAvailable"].split()[0]) * 1024) < _MEMORY:
        yield f"{_MEMORY / _GB:.0f} GB of memory: {memory / _GB:.1f} are available"


def _kernel() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="baton-trial-", dir=binaries.cache()) as folder:
        apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--propagation", "private"]
        done = subprocess.run(
            [*apart, "sh", "-ec", _TRIAL, "sh", folder], capture_output=True, text=True, check=False, timeout=30
        )
    if done.returncode:
        yield f"namespaces, overlayfs, bridges and cables in the kernel: {done.stderr.strip()}"
    name = f"baton-trial-{secrets.token_hex(4)}"
    try:
        cgroups.create(name)
        cgroups.remove(name)
    except OSError as error:
        yield f"control groups that can be made: {error}"
