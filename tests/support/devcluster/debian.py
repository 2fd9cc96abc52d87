"""What comes as Debian packages: the container runtime, and the base file system of images."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from support.baton_processes import bound_to_parent
from support.kube import binaries

_RUNTIME = ("containerd", "runc", "containernetworking-plugins", "nftables", "iproute2")
_BASE = ("ca-certificates", "python3", "python3-venv")
_SUITE = "bookworm"


@dataclass(frozen=True)
class Runtime:
    """containerd, runc, CNI plugins, nft and ip: of this machine, and what it lacks from unpacked packages."""

    root: Path

    @property
    def plugins(self) -> Path:
        own = self.root / "usr/lib/cni"
        return own if own.is_dir() else Path("/usr/lib/cni")

    def environment(self) -> dict[str, str]:
        """With it the programs are found, and find their libraries."""
        folders = [f"{self.root}/usr/{name}" for name in ("sbin", "bin")] + ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        libraries = f"{self.root}/usr/lib/{os.uname().machine}-linux-gnu"
        return {**os.environ, "PATH": ":".join(folders), "LD_LIBRARY_PATH": libraries}


def runtime() -> Runtime:
    """Downloads and unpacks what is missing, once. Raises `CalledProcessError`."""
    return Runtime(_unpacked(_RUNTIME))


def base_system() -> Path:
    """A root file system with Python, which stands for the Python images that registries have; made once."""
    made = binaries.cache() / f"debian-{_SUITE}-{_digest(_BASE)}" / "changes"
    if made.is_dir():
        return made
    tools = _unpacked(("debootstrap",))
    made.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".base-", dir=made.parent))
    environment = {**os.environ, "DEBOOTSTRAP_DIR": f"{tools}/usr/share/debootstrap"}
    script = shutil.which("debootstrap") or f"{tools}/usr/sbin/debootstrap"
    command = ["sh", script, "--variant=minbase", f"--include={','.join(_BASE)}", _SUITE, str(partial)]
    try:
        # debootstrap mounts /proc inside: in a mount namespace of its own nothing of that stays.
        apart = bound_to_parent(["unshare", "--mount", "--pid", "--fork", "--kill-child", *command])
        subprocess.run(apart, env=environment, check=True, stdout=subprocess.DEVNULL)
        (partial / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        shutil.rmtree(partial / "var/cache/apt", ignore_errors=True)
        partial.chmod(0o755)
        partial.rename(made)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def _unpacked(names: tuple[str, ...]) -> Path:
    """These packages and those they need that this system has not, unpacked in one folder of the cache."""
    made = binaries.cache() / f"packages-{_digest(names)}"
    if made.is_dir():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".packages-", dir=made.parent))
    try:
        plan = _apt("install", "--simulate", "--no-install-recommends", *names, cwd=partial)
        missing = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
        if missing:
            _apt("download", *missing, cwd=partial)
        for package in sorted(partial.glob("*.deb")):
            subprocess.run(["dpkg", "-x", package, partial / "root"], check=True)
        (partial / "root").mkdir(exist_ok=True)
        (partial / "root").rename(made)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def _apt(*words: str, cwd: Path) -> str:
    command = ["apt-get", "-o", "APT::Sandbox::User=root", *words]
    return subprocess.run(command, cwd=cwd, check=True, text=True, stdout=subprocess.PIPE).stdout


def _digest(names: tuple[str, ...]) -> str:
    return hashlib.sha256(" ".join((_SUITE, *names)).encode()).hexdigest()[:16]
