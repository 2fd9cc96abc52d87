"""From a checkpoint directory to a model that runs: `load_model`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from baton_kernels.kv_scale import KVScale
from baton_kernels.registry import KernelUnavailable
from baton_serving.errors import ConfigError
from baton_serving.kv.layout import group_layers
from baton_serving.model.attention import AttentionHeads
from baton_serving.model.checkpoint import Checkpoint, DummyCheckpoint, open_checkpoint
from baton_serving.model.config import decoder_config, read_config_json
from baton_serving.model.decoder import Decoder, Kernels
from baton_serving.model.digest import root_of, tensor_leaves
from baton_serving.model.options import MODEL_IMPLS, LoadedModel, ModelInfo, ModelOptions
from baton_serving.model.parallel import shard
from baton_serving.model.placement import placements
from baton_serving.model.quantized import read_kv_scales
from baton_serving.model.weights import place_weights

__all__ = ["LoadedModel", "ModelInfo", "ModelOptions", "load_model"]


def load_model(options: ModelOptions) -> LoadedModel:
    """Read, check, place and hash a checkpoint; every fault of it is a ConfigError that names the file and tensor.

    With several ranks all call this together: the digest is computed by rank 0 and broadcast, and compared with that of
    what each other node has.
    """
    if options.model_impl not in MODEL_IMPLS:
        raise ConfigError(f"--model-impl {options.model_impl} is not one of {', '.join(MODEL_IMPLS)}")
    values = read_config_json(options.path, options.overrides)
    origin = str(options.path / "config.json")
    if options.model_impl == "transformers":
        from baton_serving.model.transformers_fallback import load_fallback  # pulls in half of transformers: seconds

        loaded, checkpoint = load_fallback(options, values, origin)
    else:
        loaded, checkpoint = _load_decoder(options, values, origin)
    leaves: dict[str, bytes] = {}
    if options.parallel.first_of_node:
        leaves = {**tensor_leaves(checkpoint), **options.setting_leaves(values)}
    return replace(
        loaded,
        info=replace(loaded.info, eos_token_ids=end_tokens(loaded.info.eos_token_ids, options.path)),
        digest=_shared_digest(leaves, options),
        leaves=leaves,
    )


def _load_decoder(options: ModelOptions, values: Mapping[str, Any], origin: str) -> tuple[LoadedModel, Checkpoint]:
    config = decoder_config(values, origin, options.max_positions)
    dtype = options.resolve_dtype(config.dtype)
    state, device = options.parallel, options.device
    quantization = options.quantization or config.quantization
    model = Decoder(config, _kernels(options, dtype), dtype, device, eight_bit=quantization == "fp8")
    shard(model, state, device, dtype)
    plan = placements(config, state.tp_size, state.tp_rank)
    checkpoint: Checkpoint
    if options.load_format == "dummy":
        shapes = {placement.source: placement.shape for placement in plan}
        checkpoint = DummyCheckpoint(shapes, options.seed, 1.0 - config.norm_offset, device)
    else:
        checkpoint = open_checkpoint(options.path, options.load_format, options.use_mmap)
    names = place_weights(model, plan, checkpoint, options.path, device)
    kv_scales = _kv_scales(options, checkpoint, names)
    q_heads = config.q_heads // state.tp_size
    groups = group_layers(list(config.windows))
    loaded = LoadedModel(
        model=model,
        info=ModelInfo(config.architecture, config.vocab_size, config.max_positions, config.eos_token_ids, dtype),
        heads=AttentionHeads(q_heads, config.attention_scale, config.attention_softcap, dtype, kv_scales),
        kv_layout=options.kv_layout(config.kv_heads, config.head_dim, config.head_dim, groups, dtype),
        digest="",
    )
    return loaded, checkpoint


def _kernels(options: ModelOptions, dtype: torch.dtype) -> Kernels:
    try:
        return Kernels(options.device, dtype, invariant=options.deterministic)
    except KernelUnavailable as error:
        raise ConfigError(f"--enable-deterministic-inference: {error}; leave it out") from error


def _kv_scales(options: ModelOptions, checkpoint: Checkpoint, names: Mapping[str, str]) -> dict[int, KVScale]:
    """Those that the checkpoint brings for a KV cache of 8-bit floats."""
    if options.kv_cache_dtype == "auto" or options.load_format == "dummy":
        return {}
    suffix = ".self_attn.q_proj.weight"
    found = {source: name for source, name in names.items() if source.endswith(suffix)}
    prefixes = {
        int(source.removesuffix(suffix).rpartition(".")[2]): name.removesuffix("q_proj.weight")
        for source, name in found.items()
    }
    return read_kv_scales(checkpoint, prefixes)


def end_tokens(own: Sequence[int], path: Path) -> tuple[int, ...]:
    """`own` end-of-sequence ids, and those of generation_config.json, where instruct models name their end of turn."""
    file = path / "generation_config.json"
    if not file.is_file():
        return tuple(own)
    try:
        eos = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file}: cannot be read as a JSON object: {error}") from error
    found = [] if eos is None else [int(token) for token in (eos if isinstance(eos, list) else [eos])]
    return tuple(dict.fromkeys([*own, *found]))


def _shared_digest(leaves: Mapping[str, bytes], options: ModelOptions) -> str:
    state = options.parallel
    root = root_of(leaves) if state.first_of_node else bytes(32)
    shared = bytes(state.broadcast(torch.tensor(list(root), dtype=torch.uint8, device=options.device)).tolist())
    if state.first_of_node and root != shared:
        raise ConfigError(f"--model-path: {options.path} holds another model or other weights here than on node 0")
    return shared.hex()
