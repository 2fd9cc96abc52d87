"""What one KV page is, in numbers: pure Python, shared by pool, handoff, tiers and the bootstrap record.

A page of one KV group is one contiguous block `[kv_heads, layers, (K: page_size × k_dim, V: page_size × v_dim)]`,
so each kv-head of a page is one contiguous sub-block too. Latent attention (MLA) is one head with `v_dim == 0`.
All groups of a model have pages of equal bytes and share one pool; each group of a request has its own page list.
"""

from __future__ import annotations

import math

import msgspec

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
KV_DTYPES = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}  # what --kv-cache-dtype calls them

NULL_PAGE = 0  # never allocated: padding rows and pages that slid out of a window point here


class PageShape(msgspec.Struct, frozen=True):
    """One page of one group as one rank holds it."""

    kv_heads: int
    layers: int
    page_size: int
    k_dim: int
    v_dim: int
    dtype: str

    @property
    def cell_bytes(self) -> int:
        """Bytes of one (page, head, layer): the smallest contiguous unit that a change of TP or PP can cut out."""
        return self.page_size * (self.k_dim + self.v_dim) * DTYPE_BYTES[self.dtype]

    @property
    def head_bytes(self) -> int:
        return self.layers * self.cell_bytes

    @property
    def page_bytes(self) -> int:
        return self.kv_heads * self.head_bytes


class KVGroup(msgspec.Struct, frozen=True):
    """Layers that share one page list: `layers` are model layer indices, in slot order within the page.

    `window` is the number of most recent tokens a query may see, itself included (None: all).
    """

    layers: tuple[int, ...]
    window: int | None = None


class KVLayout(msgspec.Struct, frozen=True):
    """The KV of a whole model, before any split over ranks."""

    page_size: int
    kv_heads: int
    k_dim: int
    v_dim: int
    dtype: str
    groups: tuple[KVGroup, ...]

    @property
    def layers_per_group(self) -> int:
        return max(len(group.layers) for group in self.groups)

    def rank_shape(self, tp_size: int) -> PageShape:
        """Shape of a page on each of `tp_size` ranks; kv-heads are replicated where ranks outnumber them."""
        return PageShape(
            kv_heads=max(1, self.kv_heads // tp_size),
            layers=self.layers_per_group,
            page_size=self.page_size,
            k_dim=self.k_dim,
            v_dim=self.v_dim,
            dtype=self.dtype,
        )


def group_layers(windows: list[int | None]) -> tuple[KVGroup, ...]:
    """Group a model's layers by attention window into groups of one size, so that all pages have equal bytes.

    `windows[i]` is layer i's window or None. The group size is the smallest kind's layer count, or the one near it
    that pads least; a kind with more layers gets several groups. Source: the idea of vLLM's hybrid KV manager.
    """
    kinds: dict[int | None, list[int]] = {}
    for layer, window in enumerate(windows):
        kinds.setdefault(window, []).append(layer)
    smallest = min(len(layers) for layers in kinds.values())

    def padding(size: int) -> int:
        return sum(math.ceil(len(layers) / size) * size - len(layers) for layers in kinds.values())

    size = min(range(max(1, smallest // 2), smallest + 1), key=lambda s: (padding(s), -s))
    if len(kinds) == 1:
        size = smallest
    return tuple(
        KVGroup(tuple(layers[i : i + size]), window)
        for window, layers in kinds.items()
        for i in range(0, len(layers), size)
    )


def head_range(kv_heads: int, tp_size: int, tp_rank: int) -> range:
    """The kv-heads that `tp_rank` holds. One of `kv_heads`, `tp_size` must divide the other (ValueError)."""
    if kv_heads % tp_size == 0:
        per_rank = kv_heads // tp_size
        return range(tp_rank * per_rank, (tp_rank + 1) * per_rank)
    if tp_size % kv_heads == 0:
        head = tp_rank * kv_heads // tp_size
        return range(head, head + 1)
    raise ValueError(f"tensor parallel size {tp_size} and {kv_heads} kv-heads: neither divides the other")


def writes_head(kv_heads: int, tp_size: int, tp_rank: int) -> bool:
    """Whether `tp_rank` is the one that sends its heads to a peer: the first of the ranks that replicate a head."""
    return kv_heads % tp_size == 0 or tp_rank % (tp_size // kv_heads) == 0
