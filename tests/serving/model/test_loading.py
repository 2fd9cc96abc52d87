from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.paged_runner import PagedRunner
from support.tiny_models import write_tiny_checkpoint

from baton_serving.errors import ConfigError
from baton_serving.kv.layout import KVGroup
from baton_serving.model.loading import load_model
from baton_serving.model.options import LoadedModel, ModelOptions
from baton_serving.model.parallel import ParallelState

TOKENS = [5, 9, 200, 31, 8, 77]


def logits(loaded: LoadedModel) -> torch.Tensor:
    return PagedRunner(loaded, pages=40).step({"r": TOKENS})["r"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"), seed=2)


@pytest.fixture(scope="module")
def expected(path: Path) -> torch.Tensor:
    return logits(load_model(ModelOptions(path)))


def test_what_is_known_about_a_model(path: Path) -> None:
    loaded = load_model(ModelOptions(path, page_size=32, max_positions=300))
    assert loaded.info.architecture == "LlamaForCausalLM"
    assert (loaded.info.vocab_size, loaded.info.max_positions, loaded.info.eos_token_ids) == (256, 300, (2,))
    assert loaded.kv_layout.groups == (KVGroup((0, 1, 2)),)
    assert (loaded.kv_layout.page_size, loaded.kv_layout.kv_heads, loaded.kv_layout.k_dim) == (32, 2, 16)
    assert (loaded.heads.q_heads, loaded.heads.scale) == (4, 0.25)
    assert len(bytes.fromhex(loaded.digest)) == 32


def test_loading_imports_neither_transformers_nor_torchs_compiler(path: Path) -> None:
    """Each takes longer to import than all the rest of a worker's start together."""
    code = (
        "import sys, torch; from pathlib import Path; from baton_serving.model.loading import ModelOptions, load_model;"
        "load_model(ModelOptions(Path(sys.argv[1]), torch.device('cpu')));"
        "print([name for name in ('transformers', 'torch._dynamo') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


class OfNode1(ParallelState):
    """The first rank of a second node; `node_0` is the digest that comes from there."""

    node_0 = bytes(32)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(torch.tensor(list(self.node_0)))


def test_a_node_that_reads_something_else_is_refused(path: Path) -> None:
    state = OfNode1(1, 2, node_size=1)
    with pytest.raises(ConfigError, match="holds another model or other weights here than on node 0"):
        load_model(ModelOptions(path, parallel=state))
    OfNode1.node_0 = bytes.fromhex(load_model(ModelOptions(path)).digest)
    assert load_model(ModelOptions(path, parallel=state)).digest == OfNode1.node_0.hex()
    sharing = OfNode1(1, 4, node_size=2)  # the second of its node leaves that to the first
    OfNode1.node_0 = bytes(32)
    assert load_model(ModelOptions(path, parallel=sharing)).digest == bytes(32).hex()


def test_reading_without_mmap_gives_the_same(path: Path, expected: torch.Tensor) -> None:
    assert torch.equal(logits(load_model(ModelOptions(path, use_mmap=False))), expected)


def test_sharded_and_torch_checkpoints_give_the_same_model_and_digest(
    path: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    sharded = write_tiny_checkpoint("llama", tmp_path / "sharded", seed=2, max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    pickled = write_tiny_checkpoint("llama", tmp_path / "pickled", seed=2)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    models = [load_model(ModelOptions(where)) for where in (path, sharded, pickled)]
    assert all(torch.equal(logits(loaded), expected) for loaded in models)
    assert len({loaded.digest for loaded in models}) == 1


def test_dummy_weights_come_from_the_seed_and_need_no_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    first, again, other = (load_model(ModelOptions(tmp_path, load_format="dummy", seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))
    assert first.digest == again.digest != other.digest
    assert logits(first).std() > 0.1


@pytest.mark.parametrize(
    ("dtype", "expected_dtype"),
    [("auto", torch.float32), ("half", torch.float16), ("bfloat16", torch.bfloat16), ("float", torch.float32)],
)
def test_dtype(dtype: str, expected_dtype: torch.dtype, tmp_path: Path) -> None:
    path = write_tiny_checkpoint("llama", tmp_path, dtype=torch.bfloat16)
    loaded = load_model(ModelOptions(path, dtype=dtype))
    assert loaded.info.dtype == loaded.heads.dtype == expected_dtype
    assert f"torch.{loaded.kv_layout.dtype}" == str(expected_dtype)
    assert isinstance(loaded.model, torch.nn.Module)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {expected_dtype}


@pytest.mark.parametrize("kv_dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_8_bit_kv_stays_close(kv_dtype: str, path: Path, expected: torch.Tensor) -> None:
    loaded = load_model(ModelOptions(path, kv_cache_dtype=kv_dtype))
    assert loaded.kv_layout.dtype.startswith(f"float8_{kv_dtype[4:]}")
    likeness = torch.nn.functional.cosine_similarity(logits(loaded), expected)
    assert likeness.min() > 0.9
    assert likeness.max() < 1.0 - 1e-5


def test_overrides_change_the_model_and_its_digest(path: Path, expected: torch.Tensor) -> None:
    changed = load_model(ModelOptions(path, overrides={"rms_norm_eps": 0.5}))
    assert not torch.allclose(logits(changed), expected)
    assert changed.digest != load_model(ModelOptions(path)).digest


def test_end_of_turn_tokens_of_generation_config_count(tmp_path: Path) -> None:
    path = write_tiny_checkpoint("llama", tmp_path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    assert load_model(ModelOptions(path)).info.eos_token_ids == (2, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "--dtype int8 is not one of auto, float32"),
        ({"kv_cache_dtype": "fp4"}, "--kv-cache-dtype fp4 is not one of auto, fp8_e4m3, fp8_e5m2"),
        ({"model_impl": "magic"}, "--model-impl magic is not one of auto, transformers"),
        ({"load_format": "gguf"}, "--load-format gguf is not one of"),
        ({"overrides": {"architectures": ["MambaForCausalLM"]}}, "MambaForCausalLM is not supported"),
    ],
)
def test_bad_options_name_the_flag(options: dict[str, object], message: str, path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(ModelOptions(path, **options))  # type: ignore[arg-type]


def test_a_truncated_checkpoint_is_one_line_with_file_and_tensor(tmp_path: Path) -> None:
    path = write_tiny_checkpoint("llama", tmp_path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"model.safetensors: truncated: tensor 'model.norm.weight'") as error:
        load_model(ModelOptions(path))
    assert "\n" not in error.value.message
