"""`baton check-env`: what this machine offers, what is missing, and what to do about it."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import resource
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from baton_serving import __version__

_ENGINE_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
_CUDA_PACKAGES = ("flashinfer-python", "triton")
_MOONCAKE_PACKAGES = tuple(f"mooncake-transfer-engine{build}" for build in ("", "-cuda13", "-non-cuda"))
_MOONCAKE_LIBRARIES = {"ibverbs": "libibverbs1", "numa": "libnuma1", "curl": "libcurl4"}
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy` is empty when all is well; `needed` marks what no worker can do without."""

    what: str
    found: str
    remedy: str = ""
    needed: bool = False


def add_arguments(parser: ArgumentParser) -> None:
    """No options."""


def run(args: Namespace) -> int:
    """Print the report; exit status 1 when something is missing that every worker needs."""
    table = Table(title=f"Baton {__version__}", title_justify="left")
    for heading in ("what", "found", "to do"):
        table.add_column(heading, overflow="fold")
    missing = False
    for finding in findings():
        lacking = finding.needed and bool(finding.remedy)
        table.add_row(finding.what, finding.found, finding.remedy, style="red" if lacking else None)
        missing = missing or lacking
    Console().print(table)
    return 1 if missing else 0


def findings() -> Iterator[Finding]:
    """Machine, packages, GPUs, then what the transfer back ends need."""
    yield from _machine()
    for package in _ENGINE_PACKAGES:
        yield _package(package, "pip install 'baton[engine]' to run a worker", needed=True)
    yield from _gpus()
    yield from _transfer()


def _machine() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield Finding("python", platform.python_version())
    yield Finding("cpu", f"{len(os.sched_getaffinity(0))} usable cores; {_cpu_features()}")
    yield Finding("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")
    shared = psutil.disk_usage("/dev/shm").free / 2**30
    yield Finding("shared memory", f"{shared:.1f} GiB free", "" if shared >= 1 else "ranks on one machine want 1 GiB")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Finding("open files", str(files), "" if files >= 4096 else "ulimit -n 65536 for many clients")


def _cpu_features() -> str:
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return " ".join(feature for feature in _CPU_FEATURES if feature in words) or "no wide vectors"


def _package(name: str, remedy: str, *, needed: bool = False) -> Finding:
    version = _version(name)
    return Finding(name, version or "not installed", "" if version else remedy, needed)


def _mooncake(installed: list[str]) -> Finding:
    """All variants bring the same module: with two, the one installed last runs, and removing one breaks the other."""
    found = ", ".join(f"{name} {_version(name)}" for name in installed) or "not installed"
    remedy = "" if len(installed) == 1 else "pip install 'baton[engine]'"
    if len(installed) > 1:
        remedy = f"keep one: pip uninstall -y {' '.join(installed)}, then pip install 'baton[engine]' or 'baton[cuda]'"
    return Finding("mooncake", found, remedy, needed=True)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        yield Finding("gpu", "none visible", "none needed: --device cpu works")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
        yield Finding(f"gpu {index}", f"{name}, sm_{major}{minor}, {free >> 30} of {total >> 30} GiB free")
    yield Finding("nccl", ".".join(map(str, torch.cuda.nccl.version())))
    for package in _CUDA_PACKAGES:
        yield _package(package, "pip install 'baton[cuda]'")


def _transfer() -> Iterator[Finding]:
    yield _mooncake([name for name in _MOONCAKE_PACKAGES if _version(name)])
    for library, package in _MOONCAKE_LIBRARIES.items():
        path = ctypes.util.find_library(library)
        remedy = "" if path else f"apt-get install {package} for Mooncake"
        yield Finding(f"lib{library}", path or "missing", remedy, needed=True)
    yield _package("nixl-cu13", "pip install 'baton[engine]'")
    adapters = sorted(entry.name for entry in Path("/sys/class/infiniband").glob("*"))
    yield Finding("rdma adapters", " ".join(adapters) or "none", "" if adapters else "transfers use tcp")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    unlimited = locked == resource.RLIM_INFINITY
    text = "no limit" if unlimited else f"{locked >> 20} MiB"
    yield Finding("locked memory", text, "" if unlimited or not adapters else "ulimit -l unlimited for rdma")
