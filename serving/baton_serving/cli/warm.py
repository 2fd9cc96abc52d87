"""`baton warm`: compile and keep the kernels that a worker with the same flags needs, then leave.

A worker with random weights of the model's shape is started, answers prompts of several lengths, and is stopped. What
it compiled lies in the caches of Triton and FlashInfer, where the next start on this machine, or in a container image
made from here, finds it. Only config.json of the model is read.
"""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from baton_serving.config import add_arguments as add_config_arguments
from baton_serving.config import config_from_args
from baton_serving.runtime.engine import Engine

_LENGTHS = (2000, 600, 40, 1)  # a prefill step, and short ones from graphs
_ANSWER = 4


def add_arguments(parser: ArgumentParser) -> None:
    """Every flag of `baton serve`."""
    add_config_arguments(parser)


def run(args: Namespace) -> int:
    """Start, answer, stop; prints how long it took and where the kernels are."""
    args.load_format = "dummy"
    args.skip_tokenizer_init = True
    args.disaggregation_mode = "null"
    begin = time.perf_counter()
    with Engine(config_from_args(args)) as engine:
        ready = time.perf_counter()
        longest = engine.facts.config.context_length - _ANSWER
        prompts = [[1] * min(length, longest) for length in _LENGTHS]
        engine.generate(prompts, {"temperature": 0.0, "max_new_tokens": _ANSWER, "ignore_eos": True})
        first = time.perf_counter()
    print(f"ready after {ready - begin:.1f} s, answers after {first - begin:.1f} s")
    for name, folder in cache_folders().items():
        print(f"{name}: {folder}")
    return 0


def cache_folders() -> dict[str, Path]:
    """Where the libraries keep what they compile."""
    triton = os.environ.get("TRITON_CACHE_DIR") or Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton/cache"
    flashinfer = Path(os.environ.get("FLASHINFER_WORKSPACE_BASE") or Path.home()) / ".cache/flashinfer"
    return {"Triton": Path(triton), "FlashInfer": flashinfer}
