"""Fills a decoder's parameters from a checkpoint, reading only this rank's part."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from baton_kernels.quantize import FP8
from baton_serving.errors import ConfigError
from baton_serving.model.checkpoint import Checkpoint
from baton_serving.model.config import DecoderConfig
from baton_serving.model.decoder import Decoder
from baton_serving.model.placement import Placement
from baton_serving.model.quantized import fill, is_scale, read_part


def place_weights(
    model: Decoder, plan: tuple[Placement, ...], checkpoint: Checkpoint, path: Path, device: torch.device
) -> dict[str, str]:
    """Give every parameter of `model` its memory on `device` and fill it as `plan` says; returns `match_names`.

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
        scale_name = scale_of(model, placement.parameter)
        for parameter in (placement.parameter, scale_name):
            if parameter is not None and parameter not in filled:
                filled[parameter] = _materialize(model, parameter, device)
        part, scale = read_part(checkpoint, name, placement)
        check_precision(model.config, checkpoint, name, placement, scale is not None, scale_name is not None)
        target_scale = None if scale_name is None else filled[scale_name].data
        fill(filled[placement.parameter].data, target_scale, placement.row, part, scale)
    return names


def scale_of(model: nn.Module, parameter: str) -> str | None:
    """The parameter that holds the scales of `parameter`'s rows; None when it is not one of 8-bit floats."""
    return f"{parameter}_scale" if model.get_parameter(parameter).dtype == FP8 else None


def check_precision(
    config: DecoderConfig, checkpoint: Checkpoint, name: str, placement: Placement, narrow: bool, eight_bit: bool
) -> None:
    """ConfigError when a checkpoint quantised some of the layers' weights and left others, such as this one, plain."""
    if config.quantization is not None and eight_bit and not narrow:
        raise ConfigError(
            f"{checkpoint.file(name)}: tensor {name!r} is not quantised as config.json says that the layers' weights "
            "are; checkpoints that leave some layers plain are not supported"
        )
    if narrow and len(placement.shape) != 2:
        raise ConfigError(f"{checkpoint.file(name)}: tensor {name!r} holds 8-bit floats, which only matrices may")


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
    if name.endswith("rotary_emb.inv_freq") or is_scale(name):
        return True
    if name.endswith("lm_head.weight"):
        return config.tie_embeddings
    return any(part in name for part in ("vision_tower.", "multi_modal_projector."))
