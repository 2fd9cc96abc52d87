"""Which part of which checkpoint tensor goes where in a rank's decoder: pure arithmetic on names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from baton_serving.kv.layout import head_range
from baton_serving.model.config import DecoderConfig
from baton_serving.model.parallel import vocab_rows


@dataclass(frozen=True)
class Placement:
    """Copy `source[start:stop]` along `dim` (of a tensor of `shape`) to rows `row` and following of `parameter`.

    `source` is the tensor's name in a Hugging Face checkpoint, `parameter` ours in the decoder.
    """

    parameter: str
    row: int
    source: str
    shape: tuple[int, ...]
    dim: int
    start: int
    stop: int


def placements(config: DecoderConfig, tp_size: int = 1, tp_rank: int = 0) -> tuple[Placement, ...]:
    """Everything that `tp_rank` of `tp_size` reads, in checkpoint order; covers each of its parameters exactly."""
    planner = _Planner(config, tp_size, tp_rank)
    return (
        *planner.vocabulary("embed.weight", "model.embed_tokens.weight"),
        *(placement for layer in range(config.layers) for placement in planner.layer(layer)),
        *planner.whole("norm.weight", "model.norm.weight", (config.hidden_size,)),
        *(() if config.tie_embeddings else planner.vocabulary("lm_head.weight", "lm_head.weight")),
    )


class _Planner:
    def __init__(self, config: DecoderConfig, tp_size: int, tp_rank: int) -> None:
        self.config = config
        self.tp_size = tp_size
        self.tp_rank = tp_rank
        self.kv_heads = head_range(config.kv_heads, tp_size, tp_rank)

    def share(self, size: int) -> range:
        part = size // self.tp_size
        return range(self.tp_rank * part, (self.tp_rank + 1) * part)

    def vocabulary(self, parameter: str, source: str) -> Iterator[Placement]:
        rows, vocab = vocab_rows(self.config.vocab_size, self.tp_size), self.config.vocab_size
        start, stop = min(self.tp_rank * rows, vocab), min((self.tp_rank + 1) * rows, vocab)
        yield Placement(parameter, 0, source, (vocab, self.config.hidden_size), 0, start, stop)

    def whole(self, parameter: str, source: str, shape: tuple[int, ...]) -> Iterator[Placement]:
        yield Placement(parameter, 0, source, shape, 0, 0, shape[0])

    def stacked(
        self, parameter: str, parts: Iterable[tuple[str, int, range]], inputs: int, bias: bool
    ) -> Iterator[Placement]:
        """Column-parallel: the wanted rows of several tensors `(source, rows in it, rows of this rank)`, stacked."""
        row = 0
        for source, size, rows in parts:
            yield Placement(f"{parameter}.weight", row, f"{source}.weight", (size, inputs), 0, rows.start, rows.stop)
            if bias:
                yield Placement(f"{parameter}.bias", row, f"{source}.bias", (size,), 0, rows.start, rows.stop)
            row += len(rows)

    def row_parallel(self, parameter: str, source: str, inputs: int, bias: bool) -> Iterator[Placement]:
        columns, outputs = self.share(inputs), self.config.hidden_size
        shape = (outputs, inputs)
        yield Placement(f"{parameter}.weight", 0, f"{source}.weight", shape, 1, columns.start, columns.stop)
        if bias:
            yield from self.whole(f"{parameter}.bias", f"{source}.bias", (outputs,))

    def layer(self, index: int) -> Iterator[Placement]:
        config, ours, theirs = self.config, f"layers.{index}", f"model.layers.{index}"
        yield from self.attention(f"{ours}.attention", f"{theirs}.self_attn")
        inner = config.intermediate_size
        mlp = [(f"{theirs}.mlp.{name}", inner, self.share(inner)) for name in ("gate_proj", "up_proj")]
        yield from self.stacked(f"{ours}.mlp.gate_up_proj", mlp, config.hidden_size, config.mlp_bias)
        yield from self.row_parallel(f"{ours}.mlp.down_proj", f"{theirs}.mlp.down_proj", inner, config.mlp_bias)
        for our_norm, their_norm in _SANDWICH_NORMS if config.sandwich_norms else _NORMS:
            yield from self.whole(f"{ours}.{our_norm}.weight", f"{theirs}.{their_norm}.weight", (config.hidden_size,))

    def attention(self, ours: str, theirs: str) -> Iterator[Placement]:
        config, dim = self.config, self.config.head_dim
        heads = (
            ("q_proj", config.q_heads, self.share(config.q_heads)),
            ("k_proj", config.kv_heads, self.kv_heads),
            ("v_proj", config.kv_heads, self.kv_heads),
        )
        qkv = [
            (f"{theirs}.{name}", count * dim, range(mine.start * dim, mine.stop * dim)) for name, count, mine in heads
        ]
        yield from self.stacked(f"{ours}.qkv_proj", qkv, config.hidden_size, config.qkv_bias)
        yield from self.row_parallel(f"{ours}.o_proj", f"{theirs}.o_proj", config.q_heads * dim, config.output_bias)
        if config.qk_norm:
            yield from self.whole(f"{ours}.q_norm.weight", f"{theirs}.q_norm.weight", (dim,))
            yield from self.whole(f"{ours}.k_norm.weight", f"{theirs}.k_norm.weight", (dim,))


# What Llama calls the norm after attention is the one before the MLP; with sandwich norms the names mean what they say.
_NORMS = (("input_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm"))
_SANDWICH_NORMS = (
    ("input_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("mlp_norm", "pre_feedforward_layernorm"),
    ("post_mlp_norm", "post_feedforward_layernorm"),
)
