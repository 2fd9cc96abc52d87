from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from support.tiny_models import DECODER_KINDS, tiny_model

from baton_serving.model.config import DecoderConfig, decoder_config
from baton_serving.model.decoder import Decoder, Kernels
from baton_serving.model.parallel import ParallelState, shard
from baton_serving.model.placement import Placement, placements

CPU = torch.device("cpu")


def describe(kind: str) -> DecoderConfig:
    model = tiny_model(kind)
    return decoder_config({**model.config.to_dict(), "architectures": [type(model).__name__]}, "config.json")


def rank_model(config: DecoderConfig, tp_size: int, tp_rank: int) -> Decoder:
    model = Decoder(config, Kernels(CPU, torch.float32), torch.float32, CPU)
    shard(model, ParallelState(tp_rank, tp_size), CPU, torch.float32)
    return model


def values_written(placement: Placement) -> int:
    return math.prod(placement.shape) // placement.shape[placement.dim] * (placement.stop - placement.start)


@pytest.mark.parametrize("kind", DECODER_KINDS)
@pytest.mark.parametrize("tp_size", [1, 2])
def test_every_parameter_of_every_rank_is_covered_exactly(kind: str, tp_size: int) -> None:
    config = describe(kind)
    for rank in range(tp_size):
        written: Counter[str] = Counter()
        for placement in placements(config, tp_size, rank):
            written[placement.parameter] += values_written(placement)
        sizes = {name: parameter.numel() for name, parameter in rank_model(config, tp_size, rank).named_parameters()}
        assert written == sizes


@pytest.mark.parametrize("kind", DECODER_KINDS)
def test_sources_are_the_tensors_that_transformers_saves(kind: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in tiny_model(kind).state_dict().items()}
    config = describe(kind)
    if config.tie_embeddings:
        expected.pop("lm_head.weight", None)
    assert {placement.source: placement.shape for placement in placements(config)} == expected


def test_ranks_split_a_fused_projection_by_whole_heads() -> None:
    config = describe("qwen3")  # 6 query heads, 2 kv-heads of 32
    for rank in range(2):
        parts = [p for p in placements(config, 2, rank) if p.parameter == "layers.1.attention.qkv_proj.weight"]
        ranges = [(p.source.split(".")[-2], p.row, p.start, p.stop) for p in parts]
        assert ranges == [
            ("q_proj", 0, 96 * rank, 96 * rank + 96),
            ("k_proj", 96, 32 * rank, 32 * rank + 32),
            ("v_proj", 128, 32 * rank, 32 * rank + 32),
        ]


def test_ranks_that_outnumber_the_kv_heads_share_them() -> None:
    config = replace(describe("llama"), q_heads=4, kv_heads=2)
    starts = {
        rank: [p.start for p in placements(config, 4, rank) if p.source == "model.layers.0.self_attn.k_proj.weight"]
        for rank in range(4)
    }
    assert starts == {0: [0], 1: [0], 2: [16], 3: [16]}


def test_the_last_ranks_rows_past_the_vocabulary_are_left_zero() -> None:
    config = replace(describe("llama"), vocab_size=7)
    embeds = [next(p for p in placements(config, 4, rank) if p.parameter == "embed.weight") for rank in range(4)]
    assert [(p.start, p.stop) for p in embeds] == [(0, 2), (2, 4), (4, 6), (6, 7)]
