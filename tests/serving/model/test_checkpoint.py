from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from baton_serving.errors import ConfigError
from baton_serving.model.checkpoint import Checkpoint, DummyCheckpoint, open_checkpoint

TENSORS = {"a.weight": torch.arange(12, dtype=torch.float32).view(3, 4), "b.bias": torch.randn(5).bfloat16()}


def save_sharded(path: Path) -> None:
    for index, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, path / f"model-{index}.safetensors")
    weight_map = {name: f"model-{index}.safetensors" for index, name in enumerate(TENSORS)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def check(checkpoint: Checkpoint) -> None:
    assert checkpoint.names() == set(TENSORS)
    assert torch.equal(checkpoint.read("a.weight", 1, 1, 3), TENSORS["a.weight"][:, 1:3])
    assert torch.equal(checkpoint.read("b.bias", 0, 2, 4), TENSORS["b.bias"][2:4])
    assert checkpoint.header("a.weight") == ("F32", (3, 4))
    assert checkpoint.header("b.bias") == ("BF16", (5,))
    assert bytes(checkpoint.raw("a.weight")) == TENSORS["a.weight"].numpy().tobytes()
    assert bytes(checkpoint.raw("b.bias")) == TENSORS["b.bias"].view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("load_format", ["auto", "safetensors"])
@pytest.mark.parametrize("use_mmap", [True, False])
def test_one_safetensors_file(load_format: str, use_mmap: bool, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    check(open_checkpoint(tmp_path, load_format, use_mmap))


@pytest.mark.parametrize("use_mmap", [True, False])
def test_a_sharded_checkpoint(use_mmap: bool, tmp_path: Path) -> None:
    save_sharded(tmp_path)
    checkpoint = open_checkpoint(tmp_path, "auto", use_mmap)
    check(checkpoint)
    assert checkpoint.file("b.bias") == tmp_path / "model-1.safetensors"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
@pytest.mark.parametrize("load_format", ["auto", "pt"])
def test_torch_files(name: str, load_format: str, tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / name)
    check(open_checkpoint(tmp_path, load_format, use_mmap=True))


def test_auto_prefers_safetensors_and_pt_does_not(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert "a.weight" in open_checkpoint(tmp_path, "auto", True).names()
    assert open_checkpoint(tmp_path, "pt", True).names() == {"other"}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_sharded(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model-1.safetensors: cannot be opened"):
        open_checkpoint(tmp_path, "auto", True)


def test_a_tensor_that_only_the_index_knows_is_named(tmp_path: Path) -> None:
    save_sharded(tmp_path)
    save_file({"c": torch.zeros(1)}, tmp_path / "model-1.safetensors")
    with pytest.raises(ConfigError, match=r"model-1.safetensors: tensor 'b.bias' is missing, the index has it"):
        open_checkpoint(tmp_path, "auto", True)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}'])
def test_a_bad_index_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ConfigError, match=r"model.safetensors.index.json: not a safetensors index"):
        open_checkpoint(tmp_path, "auto", True)


@pytest.mark.parametrize("keep", [0, 100, -50])
def test_a_cut_torch_file_is_named(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ConfigError, match=r"pytorch_model.bin: cannot be loaded, truncated or not a torch file"
    ) as error:
        open_checkpoint(tmp_path, "auto", True)
    assert "\n" not in error.value.message


def test_a_torch_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="must hold a dictionary of tensors"):
        open_checkpoint(tmp_path, "auto", True)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"a": Path}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_checkpoint(tmp_path, "auto", True)


@pytest.mark.parametrize(
    ("load_format", "message"),
    [
        ("auto", r"no weights here \(\*.safetensors or \*.bin\)"),
        ("pt", r"no weights here \(\*.bin, \*.pt or \*.pth\)"),
        ("gguf", "--load-format gguf is not one of auto, safetensors, pt, dummy"),
    ],
)
def test_no_weights_says_what_was_looked_for(load_format: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(tmp_path, load_format, True)


def test_dummy_weights_depend_on_seed_and_name_only() -> None:
    shapes = {"x.weight": (64, 256), "y.weight": (64, 256), "z_norm.weight": (8,)}

    def dummy(seed: int) -> DummyCheckpoint:
        return DummyCheckpoint(shapes, seed, 1.0, torch.device("cpu"))

    x = dummy(1).read("x.weight", 0, 0, 64)
    assert torch.equal(dummy(1).read("x.weight", 0, 16, 32), x[16:32])
    assert torch.equal(dummy(1).read("x.weight", 1, 16, 32), x[:, 16:32])
    assert not torch.equal(dummy(2).read("x.weight", 0, 0, 64), x)
    assert not torch.equal(dummy(1).read("y.weight", 0, 0, 64), x)
    assert x.std() == pytest.approx(1 / math.sqrt(256), rel=0.05)
    assert torch.equal(dummy(1).read("z_norm.weight", 0, 0, 8), torch.ones(8))
