import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baton_kernels.sample_filters import min_p_threshold, order_keys, top_k_threshold, top_p_threshold

ROWS = st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=40)


def keys_of(values: list[float]) -> torch.Tensor:
    return order_keys(torch.tensor([values], dtype=torch.float32))


def kept(keys: torch.Tensor, threshold: torch.Tensor) -> list[int]:
    return torch.nonzero((keys >= threshold.unsqueeze(1))[0]).flatten().tolist()


@given(ROWS, st.data())
def test_top_k_keeps_k_and_the_equals_of_the_last(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    kth = sorted(values, reverse=True)[k - 1]
    expected = [i for i, value in enumerate(values) if value >= kth]
    assert kept(keys_of(values), top_k_threshold(keys_of(values), torch.tensor([k]))) == expected


@given(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=40), st.floats(2**-10, 1.0, width=32))
def test_top_p_keeps_the_least_set_that_reaches_p(weights: list[int], p: float) -> None:
    values = [weight / (1 << 40) for weight in weights]
    keys = keys_of(values)
    # Weights that round to one float32 are equals: the set ends between two different keys.
    order = keys[0].tolist()
    target = min(int(np.ceil(float(sum(weights)) * p)), sum(weights))
    levels = sorted(set(order), reverse=True)
    level = next(at for at in levels if sum(w for w, k in zip(weights, order, strict=True) if k >= at) >= target)
    expected = [i for i, key in enumerate(order) if key >= level]
    threshold = top_p_threshold(keys, torch.tensor([weights]), torch.tensor([p], dtype=torch.float32))
    assert kept(keys, threshold) == expected


@given(ROWS, st.floats(0.0, 1.0, width=32))
def test_min_p_is_a_plain_comparison(values: list[float], p: float) -> None:
    expected = [i for i, value in enumerate(values) if value >= p]
    assert kept(keys_of(values), min_p_threshold(torch.tensor([p], dtype=torch.float32))) == expected


def reference_top_k_top_p(logits: NDArray[np.float64], k: int, p: float) -> NDArray[np.bool_]:
    """Which tokens stay, by a full sort in float64: top-p over what top-k left, renormalised."""
    order = np.argsort(-logits, kind="stable")
    probabilities = np.exp(logits[order] - logits.max())
    probabilities[k:] = 0.0
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities
    stays = (before < p) & (np.arange(len(logits)) < k)
    mask = np.zeros(len(logits), dtype=bool)
    mask[order[stays]] = True
    return mask


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 2000), st.floats(0.05, 0.999))
def test_a_batch_of_rows_against_a_sort(seed: int, k: int, p: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((4, 2000), generator=generator) * 3
    relative = (logits - logits.max(dim=1, keepdim=True).values).exp()
    keys = order_keys(relative)
    weights = (relative.double() * 2**40).long()
    by_k = keys >= top_k_threshold(keys, torch.full((4,), k)).unsqueeze(1)
    by_p = keys >= top_p_threshold(keys, weights * by_k, torch.full((4,), p)).unsqueeze(1)
    for row in range(4):
        expected = reference_top_k_top_p(logits[row].double().numpy(), k, p)
        # Rounding may move the border by one token, whose cumulative probability is p to seven digits.
        assert int(((by_k & by_p)[row].numpy() != expected).sum()) <= 1
        assert int((by_k[row]).sum()) == k
