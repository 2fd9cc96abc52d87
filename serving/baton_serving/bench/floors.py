"""Floors of a step: the time that its bytes and operations take at this machine's measured ceilings.

A decode step must at least read all weights and the batch's KV; a prefill step must at least do its multiplications.
Ceilings are what a plain copy and a plain matrix product reach here, so a floor is a bound for this machine, today.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from baton_serving.kv.layout import DTYPE_BYTES, KVLayout


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a device copy (read and written bytes both count), and FLOP per second of a product."""

    copy: float
    matmul: float


@dataclass(frozen=True)
class ModelCost:
    """What a model asks of a machine.

    `weight_bytes` are read in every step; `token_flops` is per token, without attention and head; `head_flops` per
    sampled row. `layers` holds each layer's window (None: all), `q_width` is query heads times their width.
    """

    weight_bytes: int
    token_flops: float
    head_flops: float
    q_width: int
    kv_token_bytes: int
    layers: tuple[int | None, ...]

    def decode_seconds(self, batch: int, context: int, ceilings: Ceilings) -> float:
        """Floor of a decode step of `batch` rows with `context` tokens each."""
        kv = sum(min(context, window or context) * self.kv_token_bytes for window in self.layers)
        flops = batch * (self.token_flops + self.head_flops)
        return max((self.weight_bytes + batch * kv) / ceilings.copy, flops / ceilings.matmul)

    def prefill_seconds(self, batch: int, length: int, ceilings: Ceilings) -> float:
        """Floor of computing `batch` prompts of `length` tokens: each attends to those before it, within its window."""
        flops = batch * (length * self.token_flops + self.head_flops)
        for window in self.layers:
            seen = min(length, window or length)
            pairs = length * seen - seen * (seen - 1) / 2
            flops += batch * 4 * self.q_width * pairs
        return flops / ceilings.matmul


def model_cost(model: nn.Module, layout: KVLayout, q_heads: int) -> ModelCost:
    """Count the weights of `model` on one rank. An embedding that is not the head as well is only looked up."""
    matrices = {name: weight for name, weight in model.named_parameters() if weight.dim() == 2}
    head = [weight for name, weight in matrices.items() if "lm_head" in name]
    embeddings = [weight for name, weight in matrices.items() if "embed" in name]
    looked_up = embeddings if head else []
    inner = _numbers(list(matrices.values())) - _numbers(head + embeddings)
    return ModelCost(
        weight_bytes=_bytes(list(model.parameters())) - _bytes(looked_up),
        token_flops=2.0 * inner,
        head_flops=2.0 * _numbers(head or embeddings),
        q_width=q_heads * layout.k_dim,
        kv_token_bytes=layout.kv_heads * (layout.k_dim + layout.v_dim) * DTYPE_BYTES[layout.dtype],
        layers=tuple(group.window for group in layout.groups for _ in group.layers),
    )


def _numbers(weights: list[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights)


def _bytes(weights: list[nn.Parameter]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure both ceilings on `device`, best of six."""
    on_gpu = device.type == "cuda"
    source = torch.ones((1 << 30 if on_gpu else 1 << 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if on_gpu else 768
    a, b = (torch.randn((side, side), device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    product = torch.empty((side, side), device=device, dtype=dtype)
    copy_seconds = min(_timed(lambda: target.copy_(source), device) for _ in range(6))
    product_seconds = min(_timed(lambda: torch.mm(a, b, out=product), device) for _ in range(6))
    return Ceilings(copy=2 * source.numel() / copy_seconds, matmul=2 * side**3 / product_seconds)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, the device's part included."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
