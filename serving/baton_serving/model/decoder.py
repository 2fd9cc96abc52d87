"""The decoder: every architecture that `DecoderConfig` can describe, in one place, for one device.

With `eight_bit` the projections of all blocks have 8-bit weights; embedding, norms and head stay in the model's dtype.

Tensor parallelism is applied to the built model from outside (`parallel.shard`); nothing here knows of ranks.
Parameters are created on the meta device and filled by the loader.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from baton_kernels.activation import ACTIVATION_AND_MUL
from baton_kernels.linear import LINEAR
from baton_kernels.linear8 import LINEAR8
from baton_kernels.quantize import FP8, GATE_ROWS8, NORM_ROWS8, Rows8
from baton_kernels.registry import AUTO, HALF
from baton_kernels.rms_norm import ADD_RMS_NORM, RMS_NORM
from baton_kernels.rope import rope_table
from baton_kernels.rope_kv_write import ROPE_KV_WRITE, HeadNorm, keys_and_values
from baton_serving.model.attention import StepAttention
from baton_serving.model.batch import ForwardBatch
from baton_serving.model.config import DecoderConfig
from baton_serving.model.rope import RopeConfig, frequencies

_MANY_ROWS = 1024  # products of fewer are not bound by arithmetic


class CausalModel(Protocol):
    """What the executor runs: our decoder, or a transformers model on our KV pool.

    `capturable`: a CUDA graph may hold a step of a `ForwardBatch.decode`.
    """

    @property
    def capturable(self) -> bool: ...

    def hidden_states(self, batch: ForwardBatch, attention: StepAttention) -> torch.Tensor:
        """Final hidden states `[n, hidden_size]` of `batch.logits_rows`; writes the new tokens' KV."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[n, vocab_size]`, of the model's dtype or wider, of hidden states `[n, hidden_size]`, equal on all
        ranks."""


class Kernels:
    """The implementations of the layers' ops, chosen once for a device and dtype.

    `invariant`: a token's numbers must not depend on what else is in its batch, to the bit (KernelUnavailable where
    there are no such products).
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, choice: str = AUTO, invariant: bool = False) -> None:
        self.invariant = invariant
        self._half_on_gpu = device.type == "cuda" and dtype in HALF
        product = "invariant" if invariant else choice
        self.rms_norm = RMS_NORM.select(device, dtype, choice)
        self.add_rms_norm = ADD_RMS_NORM.select(device, dtype, choice)
        self.rope_kv_write = ROPE_KV_WRITE.select(device, dtype, choice)
        self.activation_and_mul = ACTIVATION_AND_MUL.select(device, dtype, choice)
        self.linear = LINEAR.select(device, dtype, product)
        self.linear8 = LINEAR8.select(device, dtype, product)
        self.norm_rows8 = NORM_ROWS8.select(device, dtype, choice)
        self.gate_rows8 = GATE_ROWS8.select(device, dtype, choice)

    def quantises(self, rows: int) -> bool:
        """Whether that many rows are best quantised by the op that makes them. A single one is used as it is."""
        return rows > 1 or self.invariant

    def adds_products(self, rows: int) -> bool:
        """Whether that many rows' products are best added to the residual stream by the product itself: it waits for
        arithmetic, not for memory, and leaves the norm half the bytes to move."""
        return self._half_on_gpu and not self.invariant and rows >= _MANY_ROWS


class Embedding(nn.Embedding):
    """An embedding on the meta device whose rows the loader fills."""

    def __init__(self, rows: int, dim: int, dtype: torch.dtype) -> None:
        super().__init__(rows, dim, dtype=dtype, device="meta")

    def reset_parameters(self) -> None:
        """Nothing: torch's own loads torch's compiler to draw random meta tensors, which takes seconds."""


class Linear(nn.Linear):
    """With `eight_bit` the weight is FP8 and `weight_scale` float32 `[outputs]`; `dtype` is that of the results."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool, kernels: Kernels, dtype: torch.dtype, eight_bit: bool = False
    ) -> None:
        super().__init__(inputs, outputs, bias=bias, dtype=dtype, device="meta")
        self.kernels = kernels
        self.dtype = dtype
        self.weight_scale: nn.Parameter | None = None
        if eight_bit:
            self.weight = nn.Parameter(torch.empty_like(self.weight, dtype=FP8), requires_grad=False)
            self.weight_scale = nn.Parameter(torch.empty(outputs, device="meta"), requires_grad=False)

    @property
    def eight_bit(self) -> bool:
        return self.weight_scale is not None

    def product(self, x: torch.Tensor | Rows8, bias: torch.Tensor | None) -> torch.Tensor:
        """`x` times the weights, plus `bias`."""
        if self.weight_scale is not None:
            return self.kernels.linear8(x, self.weight, self.weight_scale, bias, self.dtype)
        if isinstance(x, Rows8):
            raise TypeError("rows of 8-bit floats need weights of 8-bit floats")
        return self.kernels.linear(x, self.weight, bias)

    def forward(self, x: torch.Tensor | Rows8) -> torch.Tensor:
        return self.product(x, self.bias)

    def add_to(self, residual: torch.Tensor | None, x: torch.Tensor | Rows8) -> torch.Tensor | None:
        """Add what `forward` gives to `residual` in place and return None, or return it where that is better."""
        plain = self.bias is None and not self.eight_bit
        if residual is None or not plain or not self.kernels.adds_products(residual.shape[0]):
            return self.forward(x)
        if isinstance(x, Rows8):
            raise TypeError("rows of 8-bit floats need weights of 8-bit floats")
        residual.addmm_(x, self.weight.t())
        return None


class RMSNorm(nn.Module):
    """With `feeds_eight_bit` what comes out goes into layers with 8-bit weights, and may be quantised for them."""

    def __init__(
        self, dim: int, config: DecoderConfig, kernels: Kernels, dtype: torch.dtype, feeds_eight_bit: bool = False
    ) -> None:
        super().__init__()
        self.feeds_eight_bit = feeds_eight_bit
        self.weight = nn.Parameter(torch.empty(dim, dtype=dtype, device="meta"), requires_grad=False)
        self.eps = config.norm_eps
        self.offset = config.norm_offset
        self.kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor | Rows8:
        if self.feeds_eight_bit and self.kernels.quantises(x.shape[0]):
            return self.kernels.norm_rows8(x, None, self.weight, self.eps, self.offset)
        return self.kernels.rms_norm(x, self.weight, self.eps, self.offset)

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor | Rows8:
        """Add `x`, if there is any, to `residual` in place and return the norm of the sum."""
        if x is None:
            return self.forward(residual)
        if self.feeds_eight_bit and self.kernels.quantises(x.shape[0]):
            return self.kernels.norm_rows8(x, residual, self.weight, self.eps, self.offset)
        return self.kernels.add_rms_norm(x, residual, self.weight, self.eps, self.offset)


class Attention(nn.Module):
    """Grouped-query attention; `qkv_proj` holds q, k and v one below the other."""

    def __init__(
        self, layer: int, config: DecoderConfig, kernels: Kernels, dtype: torch.dtype, eight_bit: bool
    ) -> None:
        super().__init__()
        self.layer = layer
        self.kernels = kernels
        q_width, kv_width = config.q_heads * config.head_dim, config.kv_heads * config.head_dim
        self.qkv_proj = Linear(config.hidden_size, q_width + 2 * kv_width, config.qkv_bias, kernels, dtype, eight_bit)
        self.o_proj = Linear(q_width, config.hidden_size, config.output_bias, kernels, dtype, eight_bit)
        self.q_norm = RMSNorm(config.head_dim, config, kernels, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config, kernels, dtype) if config.qk_norm else None

    def forward(
        self,
        x: torch.Tensor | Rows8,
        positions: torch.Tensor,
        table: torch.Tensor,
        attention: StepAttention,
        residual: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """`residual` and the result as in `Linear.add_to`."""
        norm = None
        if self.q_norm is not None and self.k_norm is not None:
            norm = HeadNorm(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps, self.q_norm.offset)
        qkv, pages = self.qkv_proj(x), attention.pages(self.layer)
        reads_new = attention.reads_new(self.layer)
        q = self.kernels.rope_kv_write(
            qkv,
            norm,
            positions,
            table,
            *pages,
            *attention.write_places(self.layer),
            attention.scale(self.layer),
            keep_keys=reads_new,
        )
        new = keys_and_values(qkv, *pages) if reads_new else None
        return self.o_proj.add_to(residual, attention.attend(self.layer, q, new).flatten(1))


class MLP(nn.Module):
    """Gated MLP; `gate_up_proj` holds gate and up one below the other."""

    def __init__(self, config: DecoderConfig, kernels: Kernels, dtype: torch.dtype, eight_bit: bool) -> None:
        super().__init__()
        self.activation = config.activation
        self.kernels = kernels
        width, bias = config.intermediate_size, config.mlp_bias
        self.gate_up_proj = Linear(config.hidden_size, 2 * width, bias, kernels, dtype, eight_bit)
        self.down_proj = Linear(width, config.hidden_size, bias, kernels, dtype, eight_bit)

    def forward(self, x: torch.Tensor | Rows8, residual: torch.Tensor | None) -> torch.Tensor | None:
        """`residual` and the result as in `Linear.add_to`."""
        gate_up: torch.Tensor = self.gate_up_proj(x)
        fused = self.down_proj.eight_bit and self.kernels.quantises(gate_up.shape[0])
        gate = self.kernels.gate_rows8 if fused else self.kernels.activation_and_mul
        return self.down_proj.add_to(residual, gate(gate_up, self.activation))


class DecoderLayer(nn.Module):
    """One block. The residual stream is updated in place; `x` is what the last block has yet to add to it, if any."""

    def __init__(
        self, layer: int, config: DecoderConfig, kernels: Kernels, dtype: torch.dtype, eight_bit: bool
    ) -> None:
        super().__init__()

        def norm(feeds_eight_bit: bool = False) -> RMSNorm:
            return RMSNorm(config.hidden_size, config, kernels, dtype, feeds_eight_bit)

        self.input_norm = norm(eight_bit)
        self.attention = Attention(layer, config, kernels, dtype, eight_bit)
        self.post_attention_norm = norm() if config.sandwich_norms else None
        self.mlp_norm = norm(eight_bit)
        self.mlp = MLP(config, kernels, dtype, eight_bit)
        self.post_mlp_norm = norm() if config.sandwich_norms else None

    def forward(
        self,
        x: torch.Tensor | None,
        residual: torch.Tensor,
        positions: torch.Tensor,
        table: torch.Tensor,
        attention: StepAttention,
    ) -> torch.Tensor | None:
        into = residual if self.post_attention_norm is None else None
        x = self.attention(self.input_norm.add(x, residual), positions, table, attention, into)
        if self.post_attention_norm is not None:
            x = self.post_attention_norm(x)
        x = self.mlp(self.mlp_norm.add(x, residual), into)
        if self.post_mlp_norm is not None:
            x = self.post_mlp_norm(x)
        return x


class Decoder(nn.Module):
    """Embedding, blocks, norm and head. See `CausalModel` for the contract of `forward`."""

    capturable = True

    def __init__(
        self,
        config: DecoderConfig,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
        eight_bit: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.kernels = kernels
        self.embed = Embedding(config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.ModuleList(DecoderLayer(i, config, kernels, dtype, eight_bit) for i in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config, kernels, dtype)
        self.lm_head: Linear | None = None
        if not config.tie_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, False, kernels, dtype)
        self.gather_vocab: nn.Module = nn.Identity()
        # Rounded to the model's dtype as the models were trained: 62.0 rather than 61.97 in bfloat16.
        self.embed_scale = float(torch.tensor(config.embed_scale, dtype=dtype))
        tables = {rope: _rope_table(rope, device) for rope in set(config.ropes)}
        self.rope_tables = [tables[rope] for rope in config.ropes]

    def hidden_states(self, batch: ForwardBatch, attention: StepAttention) -> torch.Tensor:
        """Final hidden states, normed; see `CausalModel`."""
        residual = self.embed(batch.input_ids)
        if self.embed_scale != 1.0:
            residual = residual * self.embed_scale
        x = None
        for layer, table in zip(self.layers, self.rope_tables, strict=True):
            x = layer(x, residual, batch.positions, table, attention)
        if batch.logits_rows is not None:
            residual = residual.index_select(0, batch.logits_rows)
            x = x if x is None else x.index_select(0, batch.logits_rows)
        final = self.norm.add(x, residual)
        if isinstance(final, Rows8):
            raise TypeError("the last norm feeds no 8-bit layer")
        return final

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `CausalModel`."""
        weight = self.embed.weight if self.lm_head is None else self.lm_head.weight
        logits: torch.Tensor = self.gather_vocab(self.kernels.linear(hidden, weight, None))
        cap = self.config.logits_softcap
        return logits if cap is None else torch.tanh(logits.float() / cap) * cap

    def forward(self, batch: ForwardBatch, attention: StepAttention) -> torch.Tensor:
        """Logits of `batch.logits_rows`; see `CausalModel`."""
        return self.logits(self.hidden_states(batch, attention))


def _rope_table(rope: RopeConfig, device: torch.device) -> torch.Tensor:
    inv_freq, amplitude = frequencies(rope)
    return rope_table(inv_freq.to(device), rope.max_positions, amplitude)
