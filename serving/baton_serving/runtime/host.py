"""What machine this is: the rim of I/O in front of `config.resolve`."""

from __future__ import annotations

import importlib.util
import secrets

import torch

from baton_serving.config.facts import HostFacts
from baton_serving.kv.pool import memory_info


def probe_host() -> HostFacts:
    """Free memory, GPUs and installed kernels as they are now; of several GPUs the one with least free memory counts.

    Asking a GPU for its memory makes a CUDA context in this process: call it where the model will run.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return HostFacts(
        host_memory=memory_info(torch.device("cpu"))[0],
        cuda_devices=devices,
        device_memory=min((torch.cuda.mem_get_info(i)[0] for i in range(devices)), default=0),
        compute_capability=torch.cuda.get_device_capability(0) if devices else (0, 0),
        has_flashinfer=importlib.util.find_spec("flashinfer") is not None,
        entropy=secrets.randbits(31),
    )
