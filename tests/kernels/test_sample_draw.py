import itertools
from typing import cast

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton_kernels.sample_draw import BLOCK, draw, to_weights

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


def drawn_exactly(weights: list[int], bits: int) -> int:
    """Inverse transform in Python's unbounded integers."""
    uniform = (bits % (1 << 64)) >> 2
    target = uniform * sum(weights) >> 62
    return next(i for i, upto in enumerate(itertools.accumulate(weights)) if upto > target)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_draw_is_exact_inverse_transform(data: st.DataObject) -> None:
    vocab = data.draw(st.sampled_from([1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]))
    rows = data.draw(st.integers(1, 4))
    few = st.dictionaries(st.integers(0, vocab - 1), st.integers(1, 1 << 40), min_size=1, max_size=12)
    width = -(-vocab // BLOCK) * BLOCK
    weights = torch.zeros((rows, width), dtype=torch.int64)
    for row in range(rows):
        for token, weight in data.draw(few).items():
            weights[row, token] = weight
    bits = data.draw(st.lists(INT64, min_size=rows, max_size=rows))
    expected = [drawn_exactly(weights[row].tolist(), bits[row]) for row in range(rows)]
    assert draw(weights, torch.tensor(bits)).tolist() == expected


def test_the_largest_sums_do_not_overflow() -> None:
    weights = torch.full((2, 512 * BLOCK), 1 << 40)  # 2**58 in all, a vocabulary of 256k equal logits
    bits = torch.tensor([-1, 0])  # the largest and the smallest uniform
    assert draw(weights, bits).tolist() == [512 * BLOCK - 1, 0]


def test_whatever_the_weights_the_column_is_in_range() -> None:
    weights = torch.tensor([[0] * BLOCK, [-(1 << 63)] * BLOCK, [(1 << 63) - 1] * BLOCK])
    for bits in (0, -1, 1 << 62):
        assert all(0 <= token < BLOCK for token in draw(weights, torch.full((3,), bits)).tolist())


def test_weights_are_whole_blocks_of_integers() -> None:
    relative = torch.tensor([[1.0, 0.5, 2.0**-40, 2.0**-42, 0.0]])
    weights = to_weights(relative)
    assert weights.shape == (1, BLOCK)
    assert weights[0, :5].tolist() == [1 << 40, 1 << 39, 1, 0, 0]
    assert cast(int, weights[0, 5:].abs().sum().item()) == 0
