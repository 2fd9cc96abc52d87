"""Programmatic dependent launch: a kernel's programs start while the kernel before it ends, and wait where they must.

A kernel calls `wait_then_release` before it reads or writes anything that another kernel touches; only weights, which
no kernel writes, may be read earlier. It releases the next kernel after its own wait, never before, so that all but the
latest predecessor are over when a kernel starts.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@functools.cache
def overlaps(device: torch.device) -> bool:
    """Whether the device can start a kernel early: Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


@functools.cache
def holds_8_bit_floats(device: torch.device) -> bool:
    """Whether kernels can convert to and from 8-bit floats: Ada and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def dot_type(q: torch.Tensor, pages: torch.Tensor) -> tl.dtype:
    """What queries and keys are multiplied in: q's type, but float16 for pages of 8-bit floats, which the hardware
    converts to that type two at a time."""
    if pages.element_size() == 1 and q.element_size() == 2:
        return tl.float16
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[q.dtype]


@triton.jit
def wait_then_release():
    gdc_wait()
    gdc_launch_dependents()


@triton.jit
def fetch_ahead(places, COUNT: tl.constexpr):
    """Begin to bring COUNT numbers at each of `places` into the L2, a multiple of 16 bytes that lie together. What is
    there may still be written: the L2 holds the newest."""
    size = COUNT * places.dtype.element_ty.primitive_bitwidth // 8
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [places.to(tl.int64), tl.full(places.shape, size, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
