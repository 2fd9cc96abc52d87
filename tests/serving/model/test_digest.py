from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from baton_serving.model.checkpoint import open_checkpoint
from baton_serving.model.digest import merkle_root, root_of, setting_leaves, tensor_leaves

TENSORS = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.randn(2)}
CONFIG = {"model_type": "llama", "rope_theta": 1e4, "transformers_version": "5.1"}


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def digest(path: Path, config: dict[str, object] | None = None, chat_template: str | None = None) -> bytes:
    checkpoint = open_checkpoint(path, "auto", True)
    return root_of({**tensor_leaves(checkpoint), **setting_leaves(config or CONFIG, path, chat_template)})


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole"
    path.mkdir()
    save_file(TENSORS, path / "model.safetensors")
    return path


def test_the_tree_is_that_of_rfc_6962_with_odd_nodes_moving_up() -> None:
    a, b, c = sha(b"a"), sha(b"b"), sha(b"c")
    left = sha(b"\x01" + a + b)
    assert merkle_root([a]) == a
    assert merkle_root([a, b]) == left
    assert merkle_root([a, b, c]) == sha(b"\x01" + left + c)
    assert merkle_root([]) == sha(b"")


def test_files_and_formats_do_not_matter(whole: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, sharded / f"{name}.safetensors")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(TENSORS, pickled / "pytorch_model.bin")
    assert digest(whole) == digest(sharded) == digest(pickled)


@pytest.mark.parametrize(
    "changed",
    [
        {**TENSORS, "a": TENSORS["a"] + 1e-6},
        {**TENSORS, "a": TENSORS["a"].view(4, 3)},
        {**TENSORS, "b": TENSORS["b"].view(torch.float16)},
        {"a": TENSORS["a"], "b": TENSORS["b"], "d": TENSORS["c"]},
        {"a": TENSORS["a"], "b": TENSORS["b"]},
    ],
    ids=["value", "shape", "dtype", "name", "missing"],
)
def test_any_change_of_a_tensor_changes_the_root(changed: dict[str, torch.Tensor], whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_file(changed, other / "model.safetensors")
    assert digest(other) != digest(whole)


def test_tokenizer_and_chat_template_count_and_other_files_do_not(whole: Path) -> None:
    seen = {digest(whole)}
    (whole / "README.md").write_text("hello")
    assert digest(whole) in seen
    (whole / "tokenizer.json").write_text("{}")
    seen.add(digest(whole))
    (whole / "chat_template.jinja").write_text("{{ messages }}")
    seen.add(digest(whole))
    seen.add(digest(whole, chat_template="{{ other }}"))
    assert len(seen) == 4


def test_configuration_counts_but_not_who_wrote_it(whole: Path) -> None:
    assert digest(whole, {**CONFIG, "transformers_version": "5.9"}) == digest(whole)
    assert digest(whole, json.loads(json.dumps(dict(reversed(CONFIG.items()))))) == digest(whole)
    assert digest(whole, {**CONFIG, "rope_theta": 1e6}) != digest(whole)
