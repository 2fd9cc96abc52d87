"""From a checkpoint directory to a model that runs: `load_model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baton_serving.errors import ConfigError
from baton_serving.kv.layout import KVLayout, group_layers
from baton_serving.model.attention import AttentionHeads
from baton_serving.model.checkpoint import Checkpoint, DummyCheckpoint, open_checkpoint
from baton_serving.model.config import DecoderConfig, decoder_config, read_config_json
from baton_serving.model.decoder import CausalModel, Decoder, Kernels
from baton_serving.model.digest import content_digest
from baton_serving.model.parallel import ParallelState, shard
from baton_serving.model.placement import Placement, placements

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DTYPE_ALIASES = {"float": "float32", "half": "float16"}
_KV_DTYPES = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
MODEL_IMPLS = ("auto", "baton", "transformers")


@dataclass(frozen=True)
class ModelOptions:
    """What to load and how.

    `dtype` "auto" is the checkpoint's own, except on the CPU, where it is float32 (half precision is slower there).
    `kv_cache_dtype` "auto" is the model's dtype. `overrides` is laid over config.json. `max_positions` is the context
    length wanted if it differs from the model's. `seed` makes dummy weights. `tokenizer_path` (default: the model's)
    and `chat_template` enter the digest only.
    """

    path: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: str = "auto"
    load_format: str = "auto"
    model_impl: str = "auto"
    overrides: Mapping[str, object] = field(default_factory=dict)
    max_positions: int | None = None
    seed: int = 0
    use_mmap: bool = True
    page_size: int = 16
    kv_cache_dtype: str = "auto"
    tokenizer_path: Path | None = None
    chat_template: str | None = None
    parallel: ParallelState = field(default_factory=ParallelState)


@dataclass(frozen=True)
class ModelInfo:
    """What the rest of a worker asks about a model, whichever implementation runs it."""

    architecture: str
    vocab_size: int
    max_positions: int
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device. `kv_layout` is of the whole model; `heads` is what an AttentionPlanner needs.

    `digest` is the content digest in hex, the same on every rank.
    """

    model: CausalModel
    info: ModelInfo
    heads: AttentionHeads
    kv_layout: KVLayout
    digest: str


def load_model(options: ModelOptions) -> LoadedModel:
    """Read, check, place and hash a checkpoint; every fault of it is a ConfigError that names the file and tensor.

    With several ranks all call this together: the digest is computed by rank 0 and broadcast.
    """
    values = read_config_json(options.path, options.overrides)
    origin = str(options.path / "config.json")
    config = decoder_config(values, origin, options.max_positions)
    dtype = _model_dtype(options, config.dtype)
    state = options.parallel
    model = Decoder(config, Kernels(options.device, dtype), dtype, options.device)
    shard(model, state)
    plan = placements(config, state.tp_size, state.tp_rank)
    if options.load_format == "dummy":
        shapes = {placement.source: placement.shape for placement in plan}
        checkpoint: Checkpoint = DummyCheckpoint(shapes, options.seed, 1.0 - config.norm_offset, options.device)
    else:
        checkpoint = open_checkpoint(options.path, options.load_format, options.use_mmap)
    place_weights(model, plan, checkpoint, config, options)
    return LoadedModel(
        model=model,
        info=ModelInfo(config.architecture, config.vocab_size, config.max_positions, config.eos_token_ids, dtype),
        heads=AttentionHeads(config.q_heads // state.tp_size, config.attention_scale, config.attention_softcap, dtype),
        kv_layout=_kv_layout(config, options, dtype),
        digest=_shared_digest(checkpoint, values, options),
    )


def _model_dtype(options: ModelOptions, own: str | None) -> torch.dtype:
    name = _DTYPE_ALIASES.get(options.dtype, options.dtype)
    if name == "auto":
        name = "float32" if options.device.type == "cpu" else own or "bfloat16"
    if name not in DTYPES:
        raise ConfigError(f"--dtype {options.dtype} is not one of auto, {', '.join([*DTYPES, *_DTYPE_ALIASES])}")
    return DTYPES[name]


def _kv_layout(config: DecoderConfig, options: ModelOptions, dtype: torch.dtype) -> KVLayout:
    name = str(dtype).removeprefix("torch.")
    if options.kv_cache_dtype != "auto":
        if options.kv_cache_dtype not in _KV_DTYPES:
            raise ConfigError(f"--kv-cache-dtype {options.kv_cache_dtype} is not one of auto, {', '.join(_KV_DTYPES)}")
        name = _KV_DTYPES[options.kv_cache_dtype]
    return KVLayout(
        page_size=options.page_size,
        kv_heads=config.kv_heads,
        k_dim=config.head_dim,
        v_dim=config.head_dim,
        dtype=name,
        groups=group_layers(list(config.windows)),
    )


def _shared_digest(checkpoint: Checkpoint, values: Mapping[str, Any], options: ModelOptions) -> str:
    state = options.parallel
    if state.tp_rank == 0:
        root = content_digest(checkpoint, values, options.tokenizer_path or options.path, options.chat_template)
    else:
        root = bytes(32)
    shared = torch.tensor(list(root), dtype=torch.uint8, device=options.device)
    return bytes(state.broadcast(shared).tolist()).hex()


def place_weights(
    model: nn.Module,
    plan: tuple[Placement, ...],
    checkpoint: Checkpoint,
    config: DecoderConfig,
    options: ModelOptions,
) -> None:
    """Give every parameter of `model` its memory and fill it; ConfigError for a missing, extra or misshapen tensor."""
    names = _match_names(plan, checkpoint, config, options.path)
    filled: dict[str, nn.Parameter] = {}
    for placement in plan:
        name = names[placement.source]
        found = checkpoint.shape(name)
        if found != placement.shape:
            raise ConfigError(
                f"{checkpoint.file(name)}: tensor {name!r} has shape {list(found)}, config.json asks for "
                f"{list(placement.shape)}"
            )
        if placement.parameter not in filled:
            filled[placement.parameter] = _materialize(model, placement.parameter, options.device)
        part = checkpoint.read(name, placement.dim, placement.start, placement.stop)
        target = filled[placement.parameter].data
        target[placement.row : placement.row + part.shape[0]].copy_(part)


def _materialize(model: nn.Module, name: str, device: torch.device) -> nn.Parameter:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    meta = model.get_parameter(name)
    parameter = nn.Parameter(torch.zeros(meta.shape, dtype=meta.dtype, device=device), requires_grad=False)
    setattr(module, leaf, parameter)
    return parameter


def _match_names(
    plan: tuple[Placement, ...], checkpoint: Checkpoint, config: DecoderConfig, path: Path
) -> dict[str, str]:
    """Canonical tensor name -> name in the checkpoint, which may hold the decoder inside a multimodal model."""
    present = checkpoint.names()
    names: dict[str, str] = {}
    for source in {placement.source: None for placement in plan}:
        candidates = (source, f"language_model.{source}", source.replace("model.", "model.language_model.", 1))
        match = next((name for name in candidates if name in present), None)
        if match is None:
            raise ConfigError(f"{path}: tensor {source!r} is missing from the checkpoint")
        names[source] = match
    extra = sorted(name for name in present - set(names.values()) if not _ignorable(name, config))
    if extra:
        raise ConfigError(
            f"{checkpoint.file(extra[0])}: tensor {extra[0]!r} has no place in {config.architecture}; config.json and "
            "weights do not belong together"
        )
    return names


def _ignorable(name: str, config: DecoderConfig) -> bool:
    """Tensors that some checkpoints carry besides the decoder's own: derived, tied, or of a vision tower."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    if name.endswith("lm_head.weight"):
        return config.tie_embeddings
    return any(part in name for part in ("vision_tower.", "multi_modal_projector."))
