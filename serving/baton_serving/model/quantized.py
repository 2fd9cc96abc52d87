"""Weights as 8-bit floats: how a rank's rows of them come from a checkpoint, whatever it holds.

Checkpoints store a layer's weights with one scale, or one per output, under the weight's name and `_scale`.
Activations are always scaled as they come, row by row; a checkpoint's own scales of activations are left unread.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from baton_kernels.kv_scale import KVScale
from baton_kernels.quantize import FP8, quantize_rows_torch
from baton_serving.errors import ConfigError
from baton_serving.model.checkpoint import Checkpoint
from baton_serving.model.placement import Placement

_SCALES = ("weight_scale", "input_scale", "output_scale", "k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale")


def is_scale(name: str) -> bool:
    """Whether a checkpoint's tensor is a scale, which belongs to another tensor."""
    return name.rpartition(".")[2] in _SCALES


def read_part(checkpoint: Checkpoint, name: str, placement: Placement) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The placement's part of tensor `name`, and where it is FP8 each row's scale, float32 (ConfigError)."""
    part = checkpoint.read(name, placement.dim, placement.start, placement.stop)
    if part.dtype != FP8:
        return part, None
    scale_name, outputs = f"{name}_scale", placement.shape[0]
    if scale_name not in checkpoint.names():
        raise ConfigError(
            f"{checkpoint.file(name)}: tensor {name!r} holds 8-bit floats, but there is no {scale_name!r}"
        )
    shape = checkpoint.header(scale_name)[1]
    whole = checkpoint.read(scale_name, 0, 0, shape[0]) if shape else checkpoint.read(scale_name, 0, 0, 1)
    scales = whole.float().flatten()
    if scales.numel() not in (1, outputs):
        raise ConfigError(
            f"{checkpoint.file(scale_name)}: tensor {scale_name!r} has shape {list(shape)}; one scale, or one for each "
            f"of the {outputs} outputs, is supported"
        )
    rows = scales.expand(outputs)
    return part, rows[placement.start : placement.stop] if placement.dim == 0 else rows


def fill(
    target: torch.Tensor,
    target_scale: torch.Tensor | None,
    row: int,
    part: torch.Tensor,
    scale: torch.Tensor | None,
) -> None:
    """Write `part` (FP8 with `scale` per row, or plain numbers) to rows `row` and following of a parameter.

    A parameter with `target_scale` holds FP8: plain numbers are quantised row by row; any other gets plain numbers.
    """
    rows = slice(row, row + part.shape[0])
    if target_scale is None:
        plain = part if scale is None else part.to(target.device).float() * scale.to(target.device).unsqueeze(1)
        target[rows].copy_(plain)
        return
    if scale is None:
        part, scale = quantize_rows_torch(part.to(target.device))
    target[rows].view(torch.uint8).copy_(part.contiguous().view(torch.uint8))
    target_scale[rows].copy_(scale)


def read_kv_scales(checkpoint: Checkpoint, attention_prefixes: Mapping[int, str]) -> dict[int, KVScale]:
    """Scales of keys and values by layer, of layers that have them; `attention_prefixes` end before `q_proj`.

    ConfigError for a scale that is not above 0.
    """
    names, found = checkpoint.names(), {}
    for layer, prefix in attention_prefixes.items():
        pair = [next((name for name in _kv_names(prefix, side) if name in names), None) for side in ("k", "v")]
        if pair[0] is not None and pair[1] is not None:
            found[layer] = KVScale(_number(checkpoint, pair[0]), _number(checkpoint, pair[1]))
    return found


def _kv_names(prefix: str, side: str) -> tuple[str, ...]:
    """How tools call it: as part of attention, of the projection, or one for both sides."""
    return (
        f"{prefix}{side}_scale",
        f"{prefix}attn.{side}_scale",
        f"{prefix}{side}_proj.{side}_scale",
        f"{prefix}{side}_proj.output_scale",
        f"{prefix}kv_scale",
    )


def _number(checkpoint: Checkpoint, name: str) -> float:
    shape = checkpoint.header(name)[1]
    value = float(checkpoint.read(name, 0, 0, shape[0] if shape else 1).float().flatten()[0])
    if not value > 0.0 or value == float("inf"):
        raise ConfigError(f"{checkpoint.file(name)}: scale {name!r} is {value}; it must be a number above 0")
    return value
