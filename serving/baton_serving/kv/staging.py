"""Values from the host to the device without waiting for it: through pinned memory where the device is a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`host` on `device`, in stream order; pageable memory would make the host wait for what was launched before."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def upload(
    values: Sequence[int] | Sequence[float] | Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A tensor of `values` on `device`, as `to_device` brings it there."""
    return to_device(torch.tensor(values, dtype=dtype), device)
