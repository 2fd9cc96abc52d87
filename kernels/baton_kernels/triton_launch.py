"""Programmatic dependent launch: a kernel's programs start while the kernel before it ends, and wait where they must.

A kernel calls `wait_then_release` before it reads or writes anything that another kernel touches; only weights, which
no kernel writes, may be read earlier. It releases the next kernel after its own wait, never before, so that all but the
latest predecessor are over when a kernel starts.
"""

from __future__ import annotations

import functools

import torch
import triton
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@functools.cache
def overlaps(device: torch.device) -> bool:
    """Whether the device can start a kernel early: Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


@functools.cache
def holds_8_bit_floats(device: torch.device) -> bool:
    """Whether kernels can convert to and from 8-bit floats: Ada and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


@triton.jit
def wait_then_release():
    gdc_wait()
    gdc_launch_dependents()
