"""Tensor parallelism: the ranks' state, and the transform that turns a built decoder into one rank's part of it.

Column-parallel layers keep some of their outputs (whole heads, parts of gate and up, parts of the vocabulary),
row-parallel ones some of their inputs, and sum over the ranks. Source of the scheme: Shoeybi et al. 2019,
"Megatron-LM", https://arxiv.org/abs/1909.08053.
"""

from __future__ import annotations

import datetime
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from baton_kernels.quantize import Rows8
from baton_kernels.reduce_add_rms_norm import ReduceAddRmsNorm
from baton_serving.errors import ConfigError
from baton_serving.kv.layout import head_range
from baton_serving.model.config import DecoderConfig
from baton_serving.model.decoder import Decoder, DecoderLayer, Embedding, Linear, RMSNorm
from baton_serving.model.peer_memory import reduce_add_rms_norm


@dataclass(frozen=True)
class ParallelState:
    """This rank's place among `tp_size` ranks; `group` is None when there is only one.

    `node_size` of them live on each node (0: all on one). With `in_order` sums over the ranks are taken in rank order,
    so that they don't depend on the size of a batch.
    """

    tp_rank: int = 0
    tp_size: int = 1
    group: dist.ProcessGroup | None = None
    in_order: bool = False
    node_size: int = 0

    @property
    def one_node(self) -> bool:
        return self.node_size in (0, self.tp_size)

    @property
    def first_of_node(self) -> bool:
        """Whether this is the rank that hashes what its node reads, in which nodes may differ."""
        return self.tp_rank % (self.node_size or self.tp_size) == 0

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.group is None:
            return x
        if not self.in_order:
            dist.all_reduce(x, group=self.group)
            return x
        parts = x.new_empty(self.tp_size, *x.shape)
        dist.all_gather_into_tensor(parts.flatten(0, 1), x.contiguous(), group=self.group)
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        return x.copy_(total)

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """All ranks' `x`, in rank order, joined along the last dimension."""
        if self.group is None:
            return x
        parts = x.new_empty(self.tp_size, *x.shape)
        dist.all_gather_into_tensor(parts.flatten(0, 1), x.contiguous(), group=self.group)
        return torch.cat(parts.unbind(), dim=-1)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's `x` on every rank, in place."""
        if self.group is not None:
            dist.broadcast(x, src=0, group=self.group)
        return x

    def least(self, value: int, device: torch.device) -> int:
        """The smallest of the ranks' values; waits for all of them."""
        if self.group is None:
            return value
        shared = torch.tensor(value, dtype=torch.int64, device=device)
        dist.all_reduce(shared, op=dist.ReduceOp.MIN, group=self.group)
        return int(shared)

    def close(self) -> None:
        """Leave the group; the state is useless afterwards."""
        if self.group is not None:
            dist.destroy_process_group()


def init_parallel(
    tp_rank: int,
    tp_size: int,
    init_method: str,
    device: torch.device,
    timeout: float = 600.0,
    listening: socket.socket | None = None,
) -> ParallelState:
    """Join `tp_size` ranks at `init_method` (`tcp://host:port` or `file:///path`); returns when all are there.

    Of rank 0 `listening`, a socket that is bound there, is taken over; else it listens on all addresses.
    Gloo on the CPU, NCCL on CUDA, where `device` becomes the current device. `timeout` in seconds bounds the meeting
    and every later collective. One rank needs no group and no meeting. ConfigError when the port cannot be had.
    """
    if tp_size == 1:
        return ParallelState()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    limit = datetime.timedelta(seconds=timeout)
    try:
        store = None
        if init_method.startswith("tcp:"):
            at, descriptor = urlsplit(init_method), None if listening is None else listening.detach()
            host, port = at.hostname or "", at.port or 0
            make = dist.TCPStore  # type: ignore[attr-defined]  # documented, but not among the declared exports
            store = make(host, port, tp_size, tp_rank == 0, limit, master_listen_fd=descriptor)
        dist.init_process_group(
            backend="nccl" if cuda else "gloo",
            init_method=init_method if store is None else None,
            store=store,
            rank=tp_rank,
            world_size=tp_size,
            timeout=limit,
            device_id=device if cuda else None,
        )
    except dist.DistNetworkError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--nccl-port: the ranks cannot meet at {init_method} ({reason}); choose another") from error
    return ParallelState(tp_rank, tp_size, dist.group.WORLD)


def check_divisible(config: DecoderConfig, tp_size: int) -> None:
    """ConfigError when the model can't be cut into `tp_size` equal parts."""
    for name, size in (("query heads", config.q_heads), ("MLP columns", config.intermediate_size)):
        if size % tp_size:
            raise ConfigError(f"--tp-size {tp_size} does not divide the model's {size} {name}; choose a divisor")
    try:
        head_range(config.kv_heads, tp_size, 0)
    except ValueError as error:
        raise ConfigError(f"--tp-size {tp_size}: {error}") from error


def vocab_rows(vocab_size: int, tp_size: int) -> int:
    """Vocabulary rows per rank; the last ranks' rows past the vocabulary are zero."""
    return -(-vocab_size // tp_size)


def shard(model: Decoder, state: ParallelState, device: torch.device, dtype: torch.dtype) -> None:
    """Turn a model whose parameters are still on the meta device into this rank's part, in place (ConfigError).

    Where the next thing that happens to a row-parallel layer's output is to be added to the residual stream and
    normed, the sum over the ranks is left to that norm.
    """
    if state.tp_size == 1:
        return
    config = model.config
    check_divisible(config, state.tp_size)
    # The fused op takes few rows alone, rounds otherwise than what must do for more, and maps memory of one host.
    fused = (
        None
        if state.in_order or not state.one_node
        else reduce_add_rms_norm(state.group, device, dtype, config.hidden_size)
    )
    deferred = not (config.sandwich_norms or config.output_bias or config.mlp_bias)
    for index, layer in enumerate(model.layers):
        if not isinstance(layer, DecoderLayer):
            raise TypeError(f"layer {index} is no layer of a decoder")
        _shard_layer(layer, config, state, deferred)
        if deferred:
            layer.mlp_norm = SummingNorm(layer.mlp_norm, state, fused, 0)
            layer.input_norm = SummingNorm(layer.input_norm, state, fused, 1)
    if deferred:
        model.norm = SummingNorm(model.norm, state, fused, 1)
    rows = vocab_rows(config.vocab_size, state.tp_size)
    model.embed = VocabParallelEmbedding(model.embed, rows, state)
    if model.lm_head is not None:
        model.lm_head = _column_parallel(model.lm_head, rows)
    model.gather_vocab = VocabGather(config.vocab_size, state)


def _shard_layer(layer: DecoderLayer, config: DecoderConfig, state: ParallelState, deferred: bool) -> None:
    q_heads = config.q_heads // state.tp_size
    kv_heads = len(head_range(config.kv_heads, state.tp_size, state.tp_rank))
    attention, mlp = layer.attention, layer.mlp
    attention.qkv_proj = _column_parallel(attention.qkv_proj, (q_heads + 2 * kv_heads) * config.head_dim)
    attention.o_proj = RowParallelLinear(attention.o_proj, state, deferred)
    mlp.gate_up_proj = _column_parallel(mlp.gate_up_proj, mlp.gate_up_proj.out_features // state.tp_size)
    mlp.down_proj = RowParallelLinear(mlp.down_proj, state, deferred)


def _column_parallel(whole: Linear, outputs: int) -> Linear:
    return Linear(whole.in_features, outputs, whole.bias is not None, whole.kernels, whole.dtype, whole.eight_bit)


class RowParallelLinear(Linear):
    """A rank's input columns of `whole`. The outputs are summed over the ranks, then the bias is added once; with
    `deferred`, and no bias, they are left to a `SummingNorm`."""

    def __init__(self, whole: Linear, state: ParallelState, deferred: bool = False) -> None:
        inputs = whole.in_features // state.tp_size
        bias = whole.bias is not None
        super().__init__(inputs, whole.out_features, bias, whole.kernels, whole.dtype, whole.eight_bit)
        self.state = state
        self.deferred = deferred

    def forward(self, x: torch.Tensor | Rows8) -> torch.Tensor:
        part = self.product(x, None)
        if self.deferred:
            return part
        total = self.state.all_reduce(part)
        return total if self.bias is None else total.add_(self.bias)

    def add_to(self, residual: torch.Tensor | None, x: torch.Tensor | Rows8) -> torch.Tensor:
        """Nothing is added here: the sum over the ranks comes first."""
        return self.forward(x)


class SummingNorm(RMSNorm):
    """Like `whole`, but what it adds is first summed over the ranks: `fused` does all in one for up to its `max_rows`.

    A model's norms take turns 0 and 1 in the order in which they are called.
    """

    def __init__(self, whole: RMSNorm, state: ParallelState, fused: ReduceAddRmsNorm | None, turn: int) -> None:
        nn.Module.__init__(self)
        self.weight, self.eps, self.offset, self.kernels = whole.weight, whole.eps, whole.offset, whole.kernels
        self.feeds_eight_bit = whole.feeds_eight_bit
        self.state = state
        self.fused = fused
        self.turn = turn

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor | Rows8:
        if x is None:
            return self.forward(residual)
        if self.fused is not None and x.shape[0] <= self.fused.max_rows:
            return self.fused(x, residual, self.weight, self.eps, self.offset, self.turn)
        return super().add(self.state.all_reduce(x), residual)


class VocabParallelEmbedding(Embedding):
    """A rank's `rows` rows of `whole`; tokens of other ranks' rows contribute zero to the sum."""

    def __init__(self, whole: Embedding, rows: int, state: ParallelState) -> None:
        super().__init__(rows, whole.embedding_dim, whole.weight.dtype)
        self.state = state

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        local = ids - self.state.tp_rank * self.num_embeddings
        elsewhere = (local < 0) | (local >= self.num_embeddings)
        found = functional.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return self.state.all_reduce(found.masked_fill_(elsewhere.unsqueeze(-1), 0.0))


class VocabGather(nn.Module):
    """Joins the ranks' logits and drops the rows that only pad the vocabulary."""

    def __init__(self, vocab_size: int, state: ParallelState) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.state = state

    def forward(self, local: torch.Tensor) -> torch.Tensor:
        return self.state.all_gather_last(local)[..., : self.vocab_size]
