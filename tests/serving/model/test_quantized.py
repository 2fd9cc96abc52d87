from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.paged_runner import PagedRunner
from support.tiny_models import write_tiny_checkpoint

from baton_kernels.kv_scale import KVScale
from baton_kernels.quantize import FP8, quantize_rows_torch
from baton_serving.errors import ConfigError
from baton_serving.model.checkpoint import open_checkpoint
from baton_serving.model.loading import load_model
from baton_serving.model.options import LoadedModel, ModelOptions
from baton_serving.model.quantization_config import checkpoint_quantization
from baton_serving.model.staged import put_in_place, stage_checkpoint

TOKENS = [(11 * n) % 240 + 3 for n in range(40)]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
}


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    runner = PagedRunner(loaded)
    edges = (0, 25, *range(26, 41))
    return torch.cat([runner.step({"r": TOKENS[a:b]})["r"] for a, b in pairwise(edges)])


def error_of(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out - exact).norm() / exact.norm())


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_tiny_checkpoint("qwen3", tmp_path / "plain", seed=5)


def quantised_copy(plain: Path, path: Path, config: dict[str, Any], per_tensor: bool = False) -> Path:
    """The checkpoint as tools store it in 8 bits, with scales of the KV cache besides."""
    path.mkdir()
    values = json.loads((plain / "config.json").read_text()) | {"quantization_config": config}
    (path / "config.json").write_text(json.dumps(values))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not any(f"{projection}.weight" in name for projection in PROJECTIONS):
            tensors[name] = tensor
        elif per_tensor:
            scale = tensor.abs().max() / 448
            tensors[name], tensors[f"{name}_scale"] = (tensor / scale).to(FP8), scale
        else:
            tensors[name], scales = quantize_rows_torch(tensor)
            tensors[f"{name}_scale"] = scales.unsqueeze(1)
        if "q_proj" in name:
            prefix = name.removesuffix("q_proj.weight")
            tensors |= {f"{prefix}k_scale": torch.tensor([0.5]), f"{prefix}v_scale": torch.tensor(0.25)}
    save_file(tensors, path / "model.safetensors")
    return path


def test_weights_quantised_as_they_are_read_are_those_of_a_quantised_checkpoint(plain: Path, tmp_path: Path) -> None:
    exact = logits_of(load_model(ModelOptions(plain)))
    read = logits_of(load_model(ModelOptions(plain, quantization="fp8")))
    stored = load_model(ModelOptions(quantised_copy(plain, tmp_path / "stored", COMPRESSED)))
    assert torch.equal(logits_of(stored), read)
    assert 1e-3 < error_of(read, exact) < 0.2
    coarse = quantised_copy(plain, tmp_path / "coarse", {"quant_method": "fp8"}, per_tensor=True)
    assert 1e-3 < error_of(logits_of(load_model(ModelOptions(coarse))), exact) < 0.2


def test_scales_of_the_kv_cache_come_from_the_checkpoint(plain: Path, tmp_path: Path) -> None:
    stored = quantised_copy(plain, tmp_path / "stored", COMPRESSED)
    wide = logits_of(load_model(ModelOptions(stored)))
    narrow = load_model(ModelOptions(stored, kv_cache_dtype="fp8_e4m3"))
    assert set(narrow.heads.kv_scales.values()) == {KVScale(0.5, 0.25)}
    assert error_of(logits_of(narrow), wide) < 0.3  # it is above 1 with a wrong scale
    assert load_model(ModelOptions(stored)).heads.kv_scales == {}


def test_new_weights_are_quantised_as_the_first_ones_were(plain: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint("qwen3", tmp_path / "other", seed=6)
    options = ModelOptions(plain, quantization="fp8")
    loaded = load_model(options)
    staged = stage_checkpoint(loaded, options, open_checkpoint(other, "auto", False), other, lambda *_: None)
    put_in_place(loaded, staged)
    assert torch.equal(logits_of(loaded), logits_of(load_model(ModelOptions(other, quantization="fp8"))))


def test_a_weight_without_its_scale_is_refused(plain: Path, tmp_path: Path) -> None:
    stored = quantised_copy(plain, tmp_path / "stored", COMPRESSED)
    tensors = load_file(stored / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]
    save_file(tensors, stored / "model.safetensors")
    with pytest.raises(ConfigError, match=r"up_proj\.weight' holds 8-bit floats, but there is no"):
        load_model(ModelOptions(stored))


def test_a_layer_left_plain_is_refused(plain: Path, tmp_path: Path) -> None:
    stored = quantised_copy(plain, tmp_path / "stored", COMPRESSED)
    tensors = load_file(stored / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].float()
    save_file(tensors, stored / "model.safetensors")
    with pytest.raises(ConfigError, match="leave some layers plain"):
        load_model(ModelOptions(stored))


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "compressed-tensors", "config_groups": {}},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        "awq",
    ],
)
def test_other_kinds_of_quantised_weights_are_refused(config: object) -> None:
    with pytest.raises(ConfigError, match="not supported like this"):
        checkpoint_quantization({"quantization_config": config}, "config.json")


@pytest.mark.parametrize(
    "config", [None, {"quant_method": "fbgemm_fp8"}, {"quant_method": "modelopt", "quant_algo": "FP8"}, COMPRESSED]
)
def test_what_is_stored_in_8_bits_is_seen(config: object) -> None:
    assert checkpoint_quantization({"quantization_config": config}, "config.json") == (config and "fp8")
