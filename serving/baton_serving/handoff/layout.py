"""What two workers tell each other about their KV when they meet, and the one check that admits or refuses a peer.

A worker is `pp_size × tp_size` ranks. Each rank holds a contiguous range of model layers and a range of kv-heads of
every page; the layer slots of a page follow `KVGroup.layers` restricted to the rank's layers.
"""

from __future__ import annotations

import msgspec

from baton_serving.errors import Unavailable
from baton_serving.kv.layout import KVLayout, PageShape, head_range, writes_head

PROTOCOL_VERSION = 1


class PeerRefused(Unavailable):
    """A peer cannot exchange KV with this worker; the message names both sides. Concerns that peer alone."""


class RankDescriptor(msgspec.Struct, frozen=True):
    """One rank's slice of the KV and where it lives.

    `heads` and `layers` are half-open ranges `(start, stop)` of model kv-heads and model layers. `address` is the
    virtual address of page 0 in the rank's process; `endpoint` is what the transfer backend needs to reach it.
    """

    tp_rank: int
    pp_rank: int
    shape: PageShape
    heads: tuple[int, int]
    layers: tuple[int, int]
    pages: int
    address: int
    endpoint: bytes = b""

    def slots(self, layout: KVLayout, group: int) -> tuple[int, ...]:
        """Model layers that this rank holds of `group`, in slot order within its pages."""
        start, stop = self.layers
        return tuple(layer for layer in layout.groups[group].layers if start <= layer < stop)


class PeerDescriptor(msgspec.Struct, frozen=True):
    """A worker as its peers see it. `ranks` are in order `pp_rank × tp_size + tp_rank`.

    `incarnation` is new on every start; `epoch` numbers the generation of transfer engines that `ranks` point to.
    """

    version: int
    worker: str
    incarnation: str
    weights: str
    engine: str
    layout: KVLayout
    tp_size: int
    pp_size: int
    backend: str
    epoch: int
    ranks: tuple[RankDescriptor, ...]

    @property
    def label(self) -> str:
        return f"{self.worker} (incarnation {self.incarnation[:8]})"


def rank_slice(layout: KVLayout, tp_size: int, tp_rank: int, pp_size: int = 1, pp_rank: int = 0) -> RankDescriptor:
    """The slice of `layout` held by one rank, with no memory behind it yet (`pages` and `address` are 0).

    Layers are split over pipeline ranks as evenly as possible, the first ranks taking one more.
    """
    count = sum(len(group.layers) for group in layout.groups)
    base, extra = divmod(count, pp_size)
    start = pp_rank * base + min(pp_rank, extra)
    stop = start + base + (1 if pp_rank < extra else 0)
    held = max(sum(start <= layer < stop for layer in group.layers) for group in layout.groups)
    shape = layout.rank_shape(tp_size)
    heads = head_range(layout.kv_heads, tp_size, tp_rank)
    return RankDescriptor(
        tp_rank=tp_rank,
        pp_rank=pp_rank,
        shape=msgspec.structs.replace(shape, layers=held),
        heads=(heads.start, heads.stop),
        layers=(start, stop),
        pages=0,
        address=0,
    )


def is_writer(layout: KVLayout, tp_size: int, rank: RankDescriptor) -> bool:
    """Whether `rank` is the one that sends its heads, among the ranks that replicate them."""
    return writes_head(layout.kv_heads, tp_size, rank.tp_rank)


def check_compatible(mine: PeerDescriptor, theirs: PeerDescriptor) -> None:
    """Raise `PeerRefused` unless pages of one side can be copied into the other's. Order of the sides is free."""
    _check_equal(mine, theirs, "handoff protocol version", mine.version, theirs.version, "run the same Baton release")
    _check_equal(mine, theirs, "weight digest", mine.weights, theirs.weights, "serve the same weights on both")
    _check_layout(mine, theirs)
    _check_equal(mine, theirs, "engine digest", mine.engine, theirs.engine, "run the same image and arguments on both")
    _check_equal(
        mine, theirs, "transfer backend", mine.backend, theirs.backend, "set one --disaggregation-transfer-backend"
    )
    for side in (mine, theirs):
        _check_ranks(side)
    for what, a, b in (("tp", mine.tp_size, theirs.tp_size), ("pp", mine.pp_size, theirs.pp_size)):
        if a % b and b % a:
            raise PeerRefused(f"{mine.label} has {what} size {a}, {theirs.label} has {b}: one must divide the other")


def check_receiver(mine: PeerDescriptor, theirs: PeerDescriptor, tp_size: int) -> None:
    """Raise `PeerRefused` unless the peer, which asks for pages, has the tensor parallel size that was prescribed."""
    if theirs.tp_size != tp_size:
        raise PeerRefused(
            f"{mine.label} sends to workers of tp size {tp_size} (--disaggregation-decode-tp), "
            f"{theirs.label} has {theirs.tp_size}: make them agree"
        )


def _check_layout(mine: PeerDescriptor, theirs: PeerDescriptor) -> None:
    a, b = mine.layout, theirs.layout
    for field, remedy in (
        ("page_size", "start both with the same --page-size"),
        ("dtype", "start both with the same --kv-cache-dtype"),
        ("kv_heads", "serve the same model on both"),
        ("k_dim", "serve the same model on both"),
        ("v_dim", "serve the same model on both"),
        ("groups", "serve the same model on both"),
    ):
        _check_equal(mine, theirs, f"KV {field}", getattr(a, field), getattr(b, field), remedy)


def _check_equal(mine: PeerDescriptor, theirs: PeerDescriptor, what: str, a: object, b: object, remedy: str) -> None:
    if a != b:
        raise PeerRefused(f"{mine.label} has {what} {a!r}, {theirs.label} has {b!r}: {remedy}")


def _check_ranks(side: PeerDescriptor) -> None:
    """Refuse a descriptor that contradicts itself: its slices must be exactly those its sizes imply."""
    if side.tp_size < 1 or side.pp_size < 1 or len(side.ranks) != side.tp_size * side.pp_size:
        raise PeerRefused(f"{side.label} lists {len(side.ranks)} ranks for tp {side.tp_size} × pp {side.pp_size}")
    for index, rank in enumerate(side.ranks):
        try:
            want = rank_slice(side.layout, side.tp_size, index % side.tp_size, side.pp_size, index // side.tp_size)
        except ValueError as error:
            raise PeerRefused(f"{side.label}: {error}") from error
        have = msgspec.structs.replace(rank, pages=0, address=0, endpoint=b"")
        if have != want or rank.pages < 1:
            raise PeerRefused(f"{side.label} describes rank {index} as {have}, its sizes imply {want}")
