"""The base install has no torch: gateway, bootstrap server, operator and the scheduler's rules must load without it."""

from __future__ import annotations

import os
import subprocess
import sys

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
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, package],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
