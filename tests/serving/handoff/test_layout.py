"""Descriptors: slices of the KV and who may talk to whom."""

from __future__ import annotations

import msgspec
import pytest

from baton_serving.errors import Unavailable
from baton_serving.handoff.layout import PeerDescriptor, PeerRefused, check_compatible, rank_slice
from baton_serving.kv.layout import KVGroup, KVLayout

LAYOUT = KVLayout(
    page_size=16, kv_heads=4, k_dim=8, v_dim=8, dtype="bfloat16", groups=(KVGroup((0, 2, 4)), KVGroup((1, 3), 128))
)


def peer(worker: str, tp: int = 1, pp: int = 1, layout: KVLayout = LAYOUT) -> PeerDescriptor:
    ranks = tuple(
        msgspec.structs.replace(rank_slice(layout, tp, rank % tp, pp, rank // tp), pages=8, address=4096)
        for rank in range(tp * pp)
    )
    return PeerDescriptor(
        version=1,
        worker=worker,
        incarnation=f"incarnation-of-{worker}",
        weights="w",
        engine="e",
        layout=layout,
        tp_size=tp,
        pp_size=pp,
        backend="mooncake",
        epoch=1,
        ranks=ranks,
    )


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (1, 5)])
def test_peers_of_any_dividing_size_fit(tp: int, pp: int) -> None:
    check_compatible(peer("a"), peer("b", tp, pp))
    check_compatible(peer("b", tp, pp), peer("a"))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("version", 2, "protocol version"),
        ("weights", "other", "weight digest"),
        ("engine", "other", "engine digest"),
        ("backend", "nixl", "--disaggregation-transfer-backend"),
    ],
)
def test_a_different_worker_is_refused_naming_both_sides(field: str, value: object, said: str) -> None:
    theirs = msgspec.structs.replace(peer("decode-7"), **{field: value})
    with pytest.raises(PeerRefused) as refusal:
        check_compatible(peer("prefill-3"), theirs)
    assert said in refusal.value.message
    assert "prefill-3" in refusal.value.message
    assert "decode-7" in refusal.value.message
    assert isinstance(refusal.value, Unavailable)


@pytest.mark.parametrize(
    ("field", "value"), [("page_size", 64), ("dtype", "float16"), ("kv_heads", 8), ("k_dim", 16), ("v_dim", 0)]
)
def test_a_different_layout_is_refused(field: str, value: object) -> None:
    layout = msgspec.structs.replace(LAYOUT, **{field: value})
    with pytest.raises(PeerRefused, match=f"KV {field}.*{value}"):
        check_compatible(peer("a"), peer("b", layout=layout))


def test_sizes_that_do_not_divide_each_other_are_refused() -> None:
    layout = msgspec.structs.replace(LAYOUT, kv_heads=6)
    with pytest.raises(PeerRefused, match=r"tp size 2.*3: one must divide"):
        check_compatible(peer("a", tp=2, layout=layout), peer("b", tp=3, layout=layout))


def test_a_descriptor_that_contradicts_itself_is_refused() -> None:
    honest = peer("b", tp=2)
    fewer = msgspec.structs.replace(honest, ranks=honest.ranks[:1])
    shifted = msgspec.structs.replace(
        honest, ranks=(honest.ranks[0], msgspec.structs.replace(honest.ranks[1], heads=(0, 2)))
    )
    empty = msgspec.structs.replace(
        honest, ranks=tuple(msgspec.structs.replace(rank, pages=0) for rank in honest.ranks)
    )
    impossible = msgspec.structs.replace(honest, tp_size=3, ranks=(*honest.ranks, honest.ranks[0]))
    for liar in (fewer, shifted, empty, impossible):
        with pytest.raises(PeerRefused, match="b "):
            check_compatible(peer("a"), liar)


def test_a_pipeline_stage_holds_its_layers_of_every_group() -> None:
    first, second = rank_slice(LAYOUT, 1, 0, 2, 0), rank_slice(LAYOUT, 1, 0, 2, 1)
    assert first.layers == (0, 3)
    assert second.layers == (3, 5)
    assert first.slots(LAYOUT, 0) == (0, 2)
    assert second.slots(LAYOUT, 0) == (4,)
    assert second.slots(LAYOUT, 1) == (3,)
    assert first.shape.layers == 2
    assert second.shape.layers == 1
