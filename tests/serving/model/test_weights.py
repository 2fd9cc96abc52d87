from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import write_tiny_checkpoint

from baton_serving.errors import ConfigError
from baton_serving.model.loading import load_model
from baton_serving.model.options import LoadedModel, ModelOptions


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tiny_checkpoint("llama", tmp_path, seed=1)


def rewrite(path: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace, add or (None) remove tensors of a checkpoint."""
    tensors = load_file(path / "model.safetensors")
    merged = {**tensors, **change}
    save_file({name: t for name, t in merged.items() if t is not None}, path / "model.safetensors")


def load(path: Path) -> LoadedModel:
    return load_model(ModelOptions(path))


def test_a_missing_tensor_is_named(path: Path) -> None:
    rewrite(path, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(ConfigError, match=r"tensor 'model.layers.1.mlp.up_proj.weight' is missing from the checkpoint"):
        load(path)


def test_a_tensor_without_a_place_is_named_with_its_file(path: Path) -> None:
    rewrite(path, {"model.layers.7.mlp.up_proj.weight": torch.zeros(3)})
    message = "model.safetensors: tensor 'model.layers.7.mlp.up_proj.weight' has no place in LlamaForCausalLM"
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_a_misshapen_tensor_is_named_with_both_shapes(path: Path) -> None:
    rewrite(path, {"model.layers.0.self_attn.k_proj.weight": torch.zeros(16, 64)})
    message = (
        r"model.safetensors: tensor 'model.layers.0.self_attn.k_proj.weight' has shape \[16, 64\], "
        r"config.json asks for \[32, 64\]"
    )
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_derived_tensors_of_old_checkpoints_are_ignored(path: Path) -> None:
    rewrite(path, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    load(path)


def test_a_tied_head_may_be_in_the_file_as_well(tmp_path: Path) -> None:
    path = write_tiny_checkpoint("qwen2", tmp_path)
    rewrite(path, {"lm_head.weight": load_file(path / "model.safetensors")["model.embed_tokens.weight"].clone()})
    load(path)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_decoder_inside_a_multimodal_checkpoint(prefix: str, tmp_path: Path) -> None:
    path = write_tiny_checkpoint("gemma3", tmp_path)
    tensors = load_file(path / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    save_file({**renamed, "vision_tower.patch.weight": torch.zeros(2)}, path / "model.safetensors")
    load(path)


def test_no_parameter_stays_without_memory(path: Path) -> None:
    model = load(path).model
    assert isinstance(model, torch.nn.Module)
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in model.parameters())
