"""What the programs of a cluster see of this machine's file system and kernel settings, and what they cannot change."""

from __future__ import annotations

import subprocess
from pathlib import Path

# A kubelet writes these, for the whole machine.
_GUARDED = {"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}


def run(*command: object) -> None:
    """Raises `RuntimeError` with what the command had to say."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def own_file_system(scratch: Path) -> None:
    """Writes to /var go to `scratch`, /run is empty; for a process in a mount namespace of its own."""
    for name in ("upper", "work"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    run(
        "mount",
        "-t",
        "overlay",
        "overlay",
        "-o",
        f"lowerdir=/var,upperdir={scratch}/upper,workdir={scratch}/work",
        "/var",
    )
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/netns").mkdir()
    run("mount", "--make-rshared", "/")


def guard_settings() -> None:
    """Settings that are not of a namespace: a kubelet writes to files over them."""
    for name, value in _GUARDED.items():
        cover = Path("/run") / name.replace("/", ".")
        cover.write_text(f"{value}\n")
        run("mount", "--bind", cover, f"/proc/sys/{name}")


def set_network(name: str, value: str) -> None:
    """A setting of this network namespace; one that the kernel does not have is passed over."""
    path = Path("/proc/sys/net") / name
    if path.exists():
        path.write_text(value)
