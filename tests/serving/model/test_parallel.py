from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny_models import DECODER_KINDS, tiny_config, write_tiny_checkpoint
from support.tp_ranks import run_model, run_ranks

from baton_serving.errors import ConfigError
from baton_serving.model.config import DecoderConfig, decoder_config
from baton_serving.model.decoder import Decoder, Kernels
from baton_serving.model.parallel import ParallelState, init_parallel, shard

CPU = torch.device("cpu")


def llama() -> DecoderConfig:
    return decoder_config({**tiny_config("llama").to_dict(), "architectures": ["LlamaForCausalLM"]}, "config.json")


def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    """All architectures, kv-heads that must be replicated, a vocabulary that does not divide, biases, dummy weights."""
    kinds: dict[str, tuple[str, dict[str, object]]] = {kind: (kind, {}) for kind in DECODER_KINDS}
    kinds["replicated"] = ("qwen3", {"num_key_value_heads": 1})
    kinds["odd"] = ("llama", {"vocab_size": 251, "attention_bias": True, "mlp_bias": True})
    checkpoints = [
        (write_tiny_checkpoint(kind, tmp_path / name, seed=11, overrides=overrides), "auto")
        for name, (kind, overrides) in kinds.items()
    ]
    checkpoints.append((tmp_path / "llama", "dummy"))
    ranks = run_ranks(2, checkpoints, tmp_path)
    for index, (path, load_format) in enumerate(checkpoints):
        whole = run_model(path, ParallelState(), load_format)
        assert not whole.error
        for reports in ranks:
            assert not reports[index].error
            torch.testing.assert_close(reports[index].logits, whole.logits, rtol=0, atol=2e-4)
            assert reports[index].digest == whole.digest
        assert torch.equal(ranks[0][index].logits, ranks[1][index].logits)


def test_one_rank_needs_no_group() -> None:
    state = init_parallel(0, 1, "file:///nowhere/at/all", CPU)
    assert state == ParallelState()
    x = torch.randn(3)
    assert state.all_reduce(x) is state.all_gather_last(x) is state.broadcast(x) is x
    state.close()


@pytest.mark.parametrize(
    ("changes", "tp_size", "message"),
    [
        ({}, 3, "--tp-size 3 does not divide the model's 4 query heads"),
        ({"intermediate_size": 111}, 2, "--tp-size 2 does not divide the model's 111 MLP columns"),
        ({"q_heads": 12, "kv_heads": 3}, 2, "--tp-size 2: tensor parallel size 2 and 3 kv-heads"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(changes: dict[str, int], tp_size: int, message: str) -> None:
    config = replace(llama(), **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        shard(
            Decoder(config, Kernels(CPU, torch.float32), torch.float32, CPU),
            ParallelState(0, tp_size),
            CPU,
            torch.float32,
        )


MEET = """
import sys
import torch
from baton_serving.errors import ConfigError
from baton_serving.model.parallel import init_parallel
try:
    init_parallel(0, 2, sys.argv[1], torch.device("cpu"), 5.0)
except ConfigError as error:
    print(error)
"""


def test_a_port_in_use_cannot_be_met_at() -> None:
    """In a process of its own: after a failed start torch counts the next group as its second."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        meeting = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", MEET, meeting]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=True)
    assert done.stdout.startswith("--nccl-port: ")
