"""The base install has no torch: gateway, bootstrap server, operator and the scheduler's rules must load without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "mooncake", "nixl_cu13", "flashinfer", "triton"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"{name} is not part of the base install", name=name)
sys.meta_path.insert(0, Block())
root = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(root, "__path__", []), root.__name__ + "."):
    importlib.import_module(module.name)
"""


LOAD_WHAT_SERVES = """
import sys
import baton_serving.api.serve, baton_serving.bench.serving, baton_serving.cli.demo, baton_serving.cli.up
import baton_serving.runtime.child, baton_serving.runtime.detokenizer, baton_serving.runtime.engine
from baton_serving.runtime.tokenizer import ChatPrompt, TokenizerSource, load_tokenizer
load_tokenizer(TokenizerSource(sys.argv[1])).encode_chat(ChatPrompt([{"role": "user", "content": "hi"}]))
assert "torch" not in sys.modules
"""
BATON_TINY = Path(__file__).parents[2] / "examples" / "models" / "baton-tiny"


def run(code: str, argument: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, argument],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "package",
    [
        "baton_bootstrap",
        "baton_operator",
        "baton_serving.gateway",
        "baton_serving.scheduling",
        "baton_serving.config",
        "baton_serving.cli.main",
        "baton_serving.cli.check_env",
        "baton_serving.errors",
        "baton_serving.logs",
    ],
)
def test_it_loads_without_torch(package: str) -> None:
    run(IMPORT_ALL, package)


def test_api_process_and_detokenizer_need_no_torch() -> None:
    """Only the ranks load it; it would cost each of the other processes seconds and half a gigabyte."""
    run(LOAD_WHAT_SERVES, str(BATON_TINY))
