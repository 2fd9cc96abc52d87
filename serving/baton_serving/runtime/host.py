"""What machine this is: the rim of I/O in front of `config.resolve`.

Asking a GPU for its free memory makes a CUDA context, which takes some hundred MiB of it for as long as the process
lives. The process that serves the API needs none, so a short-lived child asks.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import subprocess
import sys

import torch

from baton_serving.config.facts import HostFacts
from baton_serving.errors import ConfigError
from baton_serving.kv.pool import memory_info

_PROBE_SECONDS = 120


def probe_host() -> HostFacts:
    """Free memory, GPUs and installed kernels as they are now; of several GPUs the one with least free memory counts.

    ConfigError when there are GPUs that don't answer.
    """
    devices = torch.cuda.device_count()
    free, major, minor = _probe_gpus() if devices else (0, 0, 0)
    return HostFacts(
        host_memory=memory_info(torch.device("cpu"))[0],
        cuda_devices=devices,
        device_memory=free,
        compute_capability=(major, minor),
        has_flashinfer=importlib.util.find_spec("flashinfer") is not None,
        entropy=secrets.randbits(31),
    )


def _probe_gpus() -> tuple[int, int, int]:
    """Least free bytes of the visible GPUs, and the first one's compute capability (ConfigError)."""
    command = [sys.executable, "-m", __name__]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True)
        free, major, minor = json.loads(child.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(f"the GPUs do not answer ({error}); use --device cpu, or check the driver") from error
    return int(free), int(major), int(minor)


def main() -> None:
    """What the child does: print `[free, major, minor]`."""
    free = min(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    print(json.dumps([free, *torch.cuda.get_device_capability(0)]))


if __name__ == "__main__":
    main()
