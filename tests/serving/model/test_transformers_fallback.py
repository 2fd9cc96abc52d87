"""Other decoders on our pages against transformers on its own cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.paged_runner import PagedRunner
from support.tiny_models import FALLBACK_KINDS, write_tiny_checkpoint
from transformers import AutoModelForCausalLM

from baton_serving.errors import ConfigError
from baton_serving.model.loading import load_model
from baton_serving.model.options import LoadedModel, ModelOptions
from baton_serving.model.parallel import ParallelState

TOKENS = torch.randint(3, 256, (60,), generator=torch.Generator().manual_seed(0)).tolist()


def load(path: Path, **options: Any) -> LoadedModel:
    return load_model(ModelOptions(path, model_impl="transformers", page_size=8, **options))


def expected_logits(path: Path) -> torch.Tensor:
    factory: Any = AutoModelForCausalLM
    with torch.inference_mode():
        logits: torch.Tensor = factory.from_pretrained(path)(torch.tensor([TOKENS])).logits[0]
    return logits


@pytest.mark.parametrize("kind", [*FALLBACK_KINDS, "gemma3", "mistral"])
def test_chunks_decode_and_company_match_transformers(kind: str, tmp_path: Path) -> None:
    path = write_tiny_checkpoint(kind, tmp_path, seed=5)
    runner = PagedRunner(load(path))
    parts = [runner.step({"r": TOKENS[:30]})["r"]]
    parts += [runner.step({"other": TOKENS[:17], "r": TOKENS[30:41]})["r"]]
    parts += [runner.step({"r": TOKENS[at : at + 1], "other": TOKENS[17:18]})["r"] for at in range(41, 60)]
    torch.testing.assert_close(torch.cat(parts), expected_logits(path), rtol=0, atol=2e-4)


def test_what_the_probe_found(tmp_path: Path) -> None:
    loaded = load(write_tiny_checkpoint("gemma3", tmp_path))
    native = load_model(ModelOptions(tmp_path, page_size=8))
    assert loaded.kv_layout == native.kv_layout
    assert loaded.heads == native.heads
    assert loaded.info == native.info
    assert loaded.digest == native.digest


def test_torch_files_and_dummy_weights(tmp_path: Path) -> None:
    path = write_tiny_checkpoint("olmo2", tmp_path)
    expected = PagedRunner(load(path)).step({"r": TOKENS})["r"]
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert torch.equal(PagedRunner(load(path, load_format="pt")).step({"r": TOKENS})["r"], expected)
    first, again = (load(path, load_format="dummy", seed=1) for _ in range(2))
    assert torch.equal(PagedRunner(first).step({"r": TOKENS})["r"], PagedRunner(again).step({"r": TOKENS})["r"])


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("stablelm", {}, "StableLmForCausalLM: transformers runs it without its attention interface"),
        ("llama", {"model_type": "diffllama", "rope_parameters": None}, "DiffLlamaForCausalLM attends more than once"),
        ("llama", {"model_type": "nemotron", "rope_parameters": None}, "NemotronForCausalLM does not pass keyword"),
        ("llama", {"model_type": "gpt_oss", "rope_parameters": None, "head_dim": 16}, "GptOssForCausalLM needs s_aux"),
        ("llama", {"model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv"]}, "layers of type 'conv'"),
    ],
)
def test_a_model_that_the_interface_cannot_serve_is_refused_by_name(
    kind: str, overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = write_tiny_checkpoint(kind, tmp_path, overrides=overrides)
    with pytest.raises(ConfigError, match=message) as error:
        load(path)
    assert "\n" not in error.value.message


def test_several_ranks_are_refused(tmp_path: Path) -> None:
    path = write_tiny_checkpoint("olmo2", tmp_path)
    with pytest.raises(ConfigError, match="--model-impl transformers runs on one rank"):
        load(path, parallel=ParallelState(0, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, "tensor 'model.norm.weight' is missing"),
        ({"model.extra": torch.zeros(1)}, "tensor 'model.extra' has no place in the model"),
        ({"model.norm.weight": torch.zeros(3)}, r"'model.norm.weight' has shape \[3\], config.json asks for \[64\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    path = write_tiny_checkpoint("olmo2", tmp_path)
    merged = {**load_file(path / "model.safetensors"), **change}
    save_file(
        {name: tensor for name, tensor in merged.items() if tensor is not None},
        path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ConfigError, match=message) as error:
        load(path)
    assert "\n" not in error.value.message
