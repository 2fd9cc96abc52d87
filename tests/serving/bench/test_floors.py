import pytest
import torch
from torch import nn

from baton_serving.bench.floors import Ceilings, ModelCost, measure_ceilings, model_cost
from baton_serving.kv.layout import KVGroup, KVLayout

UNIT = Ceilings(copy=1.0, matmul=1.0)


def cost(windows: tuple[int | None, ...] = (None, None)) -> ModelCost:
    return ModelCost(1000, 50.0, 20.0, 4, 10, windows)


def test_decode_reads_weights_and_kv_or_multiplies() -> None:
    assert cost().decode_seconds(3, 7, UNIT) == 1000 + 3 * 2 * 7 * 10
    assert cost((None, 4)).decode_seconds(3, 7, UNIT) == 1000 + 3 * (7 + 4) * 10
    assert cost().decode_seconds(3, 7, Ceilings(copy=1e9, matmul=1.0)) == 3 * 70


@pytest.mark.parametrize(("window", "length"), [(None, 6), (6, 6), (3, 6), (1, 5), (100, 5)])
def test_prefill_attends_to_what_each_token_sees(window: int | None, length: int) -> None:
    pairs = sum(min(position + 1, window or length) for position in range(length))
    expected = 2 * (length * 50 + 20) + 2 * 4 * 4 * pairs
    assert cost((window,)).prefill_seconds(2, length, UNIT) == expected


class Model(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 8, dtype=torch.bfloat16)
        self.proj = nn.Linear(8, 24, dtype=torch.bfloat16)
        self.lm_head = None if tied else nn.Linear(8, 100, bias=False, dtype=torch.bfloat16)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted_once(tied: bool) -> None:
    layout = KVLayout(16, 2, 4, 6, "bfloat16", (KVGroup((0,), 5), KVGroup((1,))))
    found = model_cost(Model(tied), layout, q_heads=6)
    assert found == ModelCost(
        weight_bytes=2 * (100 * 8 + 8 * 24 + 24),
        token_flops=2 * 8 * 24,
        head_flops=2 * 100 * 8,
        q_width=24,
        kv_token_bytes=2 * 10 * 2,
        layers=(5, None),
    )


def test_ceilings_are_measured() -> None:
    ceilings = measure_ceilings(torch.device("cpu"), torch.float32)
    assert ceilings.copy > 0
    assert ceilings.matmul > 0
