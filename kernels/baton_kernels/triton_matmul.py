"""Matrix products in Triton whose rows don't depend on each other: the same row gives the same bits in any batch.

Every output is one sum over the inputs in rising order, a tensor core's step at a time, whatever the shape of the tile
that it falls into; nothing is split and added up afterwards. Few rows stand on the narrow side of a tile, with the
weights on the other, so that both sides of the choice run on the same instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from baton_kernels.quantize import Rows8
from baton_kernels.triton_launch import overlaps, wait_then_release
from baton_kernels.triton_quantize import quantize_rows_triton


@triton.jit
def _matmul_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    x_scale_ptr,
    weight_scale_ptr,
    out_ptr,
    rows,
    outputs,
    inputs,
    x_stride,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    FLIPPED: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        wait_then_release()
    row_tiles = tl.cdiv(rows, ROWS)
    out_tiles = tl.cdiv(outputs, OUTPUTS)
    # Tiles near each other run at about the same time and share their operands in the L2.
    program = tl.program_id(0)
    in_group = GROUP * out_tiles
    first = program // in_group * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    row_tile = first + program % in_group % height
    out_tile = program % in_group // height
    lines = row_tile * ROWS + tl.arange(0, ROWS)
    columns = out_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    x_lines = tl.where(lines < rows, lines, 0)
    weight_lines = tl.where(columns < outputs, columns, 0)
    steps = tl.arange(0, INPUTS)
    x_place = x_ptr + x_lines.to(tl.int64)[:, None] * x_stride + steps[None, :]
    weight_place = weight_ptr + weight_lines.to(tl.int64)[:, None] * inputs + steps[None, :]
    total = tl.zeros((OUTPUTS if FLIPPED else ROWS, ROWS if FLIPPED else OUTPUTS), tl.float32)
    for begin in tl.range(0, inputs, INPUTS, num_stages=STAGES):
        inside = (begin + steps < inputs)[None, :]
        x = tl.load(x_place, mask=inside, other=0.0)
        weight = tl.load(weight_place, mask=inside, other=0.0)
        if FLIPPED:
            total = tl.dot(weight, tl.trans(x), total, input_precision=PRECISION)
        else:
            total = tl.dot(x, tl.trans(weight), total, input_precision=PRECISION)
        x_place += INPUTS
        weight_place += INPUTS
    if FLIPPED:
        total = tl.trans(total)
    if SCALED:
        total = total * tl.load(x_scale_ptr + x_lines)[:, None]
        total = total * tl.load(weight_scale_ptr + weight_lines)[None, :]
    if BIAS:
        total = total + tl.load(bias_ptr + weight_lines).to(tl.float32)[None, :]
    place = out_ptr + lines.to(tl.int64)[:, None] * outputs + columns[None, :]
    inside = (lines < rows)[:, None] & (columns < outputs)[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Tile:
    """One program's share: `rows` x `outputs`, `inputs` bytes at a time."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int
    flipped: bool = False


FEW = tuple(Tile(rows, 64, 256, 4, 6, flipped=True) for rows in (16, 32, 64))
SEVERAL = Tile(128, 64, 256, 4, 4, flipped=True)
WIDE = Tile(64, 64, 128, 4, 4, flipped=True)  # of 8-bit floats, where there are tiles enough for three at a time
MANY = Tile(128, 128, 128, 8, 4)
MANY_NARROW = Tile(128, 256, 128, 8, 3)


def tile_for(rows: int, itemsize: int) -> Tile:
    """The fastest tile for that many rows of numbers of `itemsize` bytes."""
    for tile in FEW:
        if rows <= tile.rows:
            return tile
    return MANY if itemsize > 1 else SEVERAL if rows <= SEVERAL.rows else MANY_NARROW


def matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
    tile: Tile,
) -> torch.Tensor:
    """`x @ weight.T` by tiles of one kind; `scales` are of the rows and of the outputs."""
    rows, inputs = x.shape
    outputs = weight.shape[0]
    out = torch.empty((rows, outputs), dtype=dtype, device=x.device)
    if rows == 0:
        return out
    overlap = overlaps(x.device)
    x_scale, weight_scale = scales or (x, x)
    _matmul_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)](
        x,
        weight,
        x if bias is None else bias,
        x_scale,
        weight_scale,
        out,
        rows,
        outputs,
        inputs,
        x.stride(0),
        SCALED=scales is not None,
        BIAS=bias is not None,
        FLIPPED=tile.flipped,
        ROWS=tile.rows,
        OUTPUTS=tile.outputs,
        INPUTS=tile.inputs // x.element_size(),
        GROUP=8,
        STAGES=tile.stages,
        PRECISION="ieee",
        OVERLAP=overlap,
        num_warps=tile.warps,
        launch_pdl=overlap,
    )
    return out


def linear_invariant(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return matmul(x, weight, bias, x.dtype, None, tile_for(x.shape[0], x.element_size()))


def linear8_invariant(
    x: torch.Tensor | Rows8, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    rows = x if isinstance(x, Rows8) else quantize_rows_triton(x)
    return matmul(rows.values, weight, bias, dtype, (rows.scales, scale), tile_for(rows.values.shape[0], 1))
