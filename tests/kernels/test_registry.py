from __future__ import annotations

import pytest
import torch

from baton_kernels.registry import Implementation, KernelUnavailable, Needs, Op
from baton_kernels.rms_norm import rms_norm_torch

CPU = torch.device("cpu")
TORCH = Implementation("torch", "baton_kernels.rms_norm:rms_norm_torch")
CUDA = Implementation("fast", "nowhere.to.be.found:f", Needs(device="cuda", capability=(9, 0)))


def test_auto_takes_the_first_implementation_whose_needs_are_met() -> None:
    assert Op[object]("norm", (CUDA, TORCH)).select(CPU, torch.float32) is rms_norm_torch


def test_a_named_implementation_is_taken_even_if_another_comes_first() -> None:
    other = Implementation("other", "baton_kernels.rms_norm:add_rms_norm_torch")
    assert Op[object]("norm", (other, TORCH)).select(CPU, torch.float32, "torch") is rms_norm_torch


def test_a_named_implementation_that_cannot_run_says_what_it_lacks() -> None:
    with pytest.raises(KernelUnavailable, match="norm: fast needs a cuda device, not cpu"):
        Op[object]("norm", (CUDA, TORCH)).select(CPU, torch.float32, "fast")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KernelUnavailable, match=r"no implementation 'slow' \(known: fast, torch\)"):
        Op[object]("norm", (CUDA, TORCH)).select(CPU, torch.float32, "slow")


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (Needs(), None),
        (Needs(device="cpu", dtypes=frozenset({torch.float32}), packages=("torch",)), None),
        (Needs(dtypes=frozenset({torch.bfloat16})), "does not support torch.float32"),
        (Needs(packages=("no_such_package",)), "needs the package no_such_package"),
    ],
)
def test_needs_name_the_first_one_that_is_unmet(needs: Needs, reason: str | None) -> None:
    assert needs.unmet(CPU, torch.float32) == reason
