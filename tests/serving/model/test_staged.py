from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.paged_runner import PagedRunner
from support.tiny_models import write_tiny_checkpoint

from baton_serving.errors import ConfigError
from baton_serving.model.checkpoint import MemoryCheckpoint, open_checkpoint
from baton_serving.model.loading import load_model
from baton_serving.model.options import LoadedModel, ModelOptions
from baton_serving.model.staged import StagedWeights, put_in_place, stage_checkpoint, stage_tensors

TOKENS = [5, 9, 200, 31, 8, 77]


def logits(loaded: LoadedModel) -> torch.Tensor:
    return PagedRunner(loaded, pages=40).step({"r": TOKENS})["r"]


def stage(path: Path, loaded: LoadedModel, served: Path) -> StagedWeights:
    checkpoint = open_checkpoint(path, "auto", use_mmap=False)
    return stage_checkpoint(loaded, ModelOptions(served), checkpoint, path, lambda done, total: None)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("old"), seed=1)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("new"), seed=2)


@pytest.fixture
def copy(new: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(new, tmp_path / "copy"))


def test_staged_weights_serve_once_they_are_in_place(old: Path, new: Path) -> None:
    loaded, wanted = load_model(ModelOptions(old)), load_model(ModelOptions(new))
    before = logits(loaded)
    addresses = {name: parameter.data_ptr() for name, parameter in loaded.model.named_parameters()}  # type: ignore[attr-defined]
    seen: list[tuple[int, int]] = []
    staged = stage_checkpoint(
        loaded, ModelOptions(old), open_checkpoint(new, "auto", False), new, lambda *at: seen.append(at)
    )
    assert torch.equal(logits(loaded), before)
    assert staged.digest == wanted.digest
    assert seen[-1][0] == seen[-1][1] == sum(tensor.nbytes for tensor in staged.parameters.values())
    put_in_place(loaded, staged)
    assert torch.equal(logits(loaded), logits(wanted))
    assert addresses == {name: p.data_ptr() for name, p in loaded.model.named_parameters()}  # type: ignore[attr-defined]


def test_some_tensors_give_the_digest_of_the_whole(old: Path, new: Path, tmp_path: Path) -> None:
    loaded = load_model(ModelOptions(old))
    whole, other = load_file(old / "model.safetensors"), load_file(new / "model.safetensors")
    changed = {name: other[name] for name in ("model.layers.1.self_attn.k_proj.weight", "model.norm.weight")}
    mixed = Path(shutil.copytree(old, tmp_path / "mixed"))
    save_file({**whole, **changed}, mixed / "model.safetensors")
    wanted = load_model(ModelOptions(mixed))
    staged = stage_tensors(loaded, ModelOptions(old), MemoryCheckpoint(changed), lambda done, total: None)
    assert staged.digest == wanted.digest
    assert set(staged.parameters) == {"layers.1.attention.qkv_proj.weight", "norm.weight"}
    put_in_place(loaded, staged)
    assert torch.equal(logits(loaded), logits(wanted))


def _truncate(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors")

    return damage


def _config(**changes: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changes}))

    return damage


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(_truncate, "truncated", id="truncated"),
        pytest.param(_tensors(lambda t: t.pop(NORM)), "'model.norm.weight' is missing", id="missing"),
        pytest.param(_tensors(lambda t: t.update(extra=t[NORM].clone())), "'extra' has no place", id="extra"),
        pytest.param(_tensors(lambda t: t.update({NORM: t[NORM][:-1]})), "has shape", id="shape"),
        pytest.param(_tensors(lambda t: t.update({NORM: t[NORM].int()})), "has dtype I32", id="dtype"),
        pytest.param(_tensors(lambda t: t[NORM].fill_(torch.nan)), "not finite", id="nan"),
        pytest.param(_config(rms_norm_eps=0.5), "norm_eps is 0.5", id="architecture"),
        pytest.param(_config(eos_token_id=7), r"end tokens \[2, 7\]", id="end tokens"),
        pytest.param(lambda path: (path / "tokenizer.json").write_text("{}"), "tokenizer.json differs", id="tokenizer"),
        pytest.param(lambda path: (path / "config.json").unlink(), "config.json", id="no config"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_changes(
    old: Path, copy: Path, damage: Callable[[Path], object], message: str
) -> None:
    loaded = load_model(ModelOptions(old))
    before = logits(loaded)
    damage(copy)
    with pytest.raises(ConfigError, match=message):
        stage(copy, loaded, old)
    assert torch.equal(logits(loaded), before)


def test_a_checkpoint_that_changes_while_it_is_read_is_refused(old: Path, copy: Path) -> None:
    def touch(done: int, total: int) -> None:
        (copy / "model.safetensors").touch()

    checkpoint = open_checkpoint(copy, "auto", use_mmap=False)
    with pytest.raises(ConfigError, match="changed while"):
        stage_checkpoint(load_model(ModelOptions(old)), ModelOptions(old), checkpoint, copy, touch)


def test_an_unknown_tensor_alone_is_refused(old: Path) -> None:
    loaded = load_model(ModelOptions(old))
    with pytest.raises(ConfigError, match="has no place"):
        stage_tensors(loaded, ModelOptions(old), MemoryCheckpoint({"x": torch.ones(2)}), lambda done, total: None)
