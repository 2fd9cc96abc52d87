"""Fills a decoder's parameters from a checkpoint, reading only this rank's part."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from baton_serving.errors import ConfigError
from baton_serving.model.checkpoint import Checkpoint
from baton_serving.model.config import DecoderConfig
from baton_serving.model.decoder import Decoder
from baton_serving.model.placement import Placement


def place_weights(
    model: Decoder, plan: tuple[Placement, ...], checkpoint: Checkpoint, path: Path, device: torch.device
) -> None:
    """Give every parameter of `model` its memory on `device` and fill it as `plan` says.

    ConfigError names the tensor, and its file or the checkpoint's `path`, when one is missing, has another shape than
    config.json asks for, or has no place in the model.
    """
    names = match_names(plan, checkpoint, model.config, path)
    filled: dict[str, nn.Parameter] = {}
    for placement in plan:
        name = names[placement.source]
        found = checkpoint.header(name)[1]
        if found != placement.shape:
            raise ConfigError(
                f"{checkpoint.file(name)}: tensor {name!r} has shape {list(found)}, config.json asks for "
                f"{list(placement.shape)}"
            )
        if placement.parameter not in filled:
            filled[placement.parameter] = _materialize(model, placement.parameter, device)
        part = checkpoint.read(name, placement.dim, placement.start, placement.stop)
        filled[placement.parameter].data[placement.row : placement.row + part.shape[0]].copy_(part)


def _materialize(model: nn.Module, name: str, device: torch.device) -> nn.Parameter:
    owner, _, leaf = name.rpartition(".")
    meta = model.get_parameter(name)
    parameter = nn.Parameter(torch.zeros(meta.shape, dtype=meta.dtype, device=device), requires_grad=False)
    setattr(model.get_submodule(owner), leaf, parameter)
    return parameter


def match_names(
    plan: tuple[Placement, ...], checkpoint: Checkpoint, config: DecoderConfig, path: Path, *, partial: bool = False
) -> dict[str, str]:
    """Tensor name as planned -> name in the checkpoint, which may hold the decoder inside a multimodal model.

    ConfigError for a tensor that has no place, and unless `partial` for one that is missing.
    """
    present = checkpoint.names()
    names: dict[str, str] = {}
    for source in {placement.source: None for placement in plan}:
        candidates = (source, f"language_model.{source}", source.replace("model.", "model.language_model.", 1))
        match = next((name for name in candidates if name in present), None)
        if match is not None:
            names[source] = match
        elif not partial:
            raise ConfigError(f"{path}: tensor {source!r} is missing from the checkpoint")
    extra = sorted(name for name in present - set(names.values()) if not _ignorable(name, config))
    if extra:
        raise ConfigError(
            f"{checkpoint.file(extra[0])}: tensor {extra[0]!r} has no place in {config.architecture}; weights and "
            "config.json do not belong together"
        )
    return names


def _ignorable(name: str, config: DecoderConfig) -> bool:
    """Tensors that some checkpoints carry besides the decoder's own: derived, tied, or of a vision tower."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    if name.endswith("lm_head.weight"):
        return config.tie_embeddings
    return any(part in name for part in ("vision_tower.", "multi_modal_projector."))
