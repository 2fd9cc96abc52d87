"""The copy planner against a naive copy, element by element, over random shapes."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton_serving.handoff.layout import PeerDescriptor, RankDescriptor, is_writer, rank_slice
from baton_serving.handoff.plan import CopyPlanner, Runs, join_runs, merge, over_pages, page_runs
from baton_serving.kv.layout import KVGroup, KVLayout, group_layers

Bytes = npt.NDArray[np.uint8]


def describe(layout: KVLayout, tp: int, pp: int, pages: int) -> PeerDescriptor:
    ranks = tuple(
        msgspec.structs.replace(rank_slice(layout, tp, rank % tp, pp, rank // tp), pages=pages)
        for rank in range(tp * pp)
    )
    return PeerDescriptor(
        version=1,
        worker=f"tp{tp}pp{pp}",
        incarnation="i",
        weights="w",
        engine="e",
        layout=layout,
        tp_size=tp,
        pp_size=pp,
        backend="fake",
        epoch=1,
        ranks=ranks,
    )


@dataclass
class Case:
    source: PeerDescriptor
    target: PeerDescriptor
    group: int
    source_pages: list[int]
    target_pages: list[int]
    pages: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pages = 8
    latent = draw(st.booleans())
    kv_heads = 1 if latent else draw(st.sampled_from([1, 2, 4, 6]))
    windows = draw(st.lists(st.sampled_from([None, 4]), min_size=1, max_size=8))
    layout = KVLayout(
        page_size=draw(st.sampled_from([1, 2])),
        kv_heads=kv_heads,
        k_dim=draw(st.integers(1, 3)),
        v_dim=0 if latent else draw(st.integers(1, 3)),
        dtype=draw(st.sampled_from(["float8_e4m3fn", "bfloat16"])),
        groups=group_layers(windows),
    )

    def size(of: list[int], other: int) -> int:
        fits = [n for n in of if n % other == 0 or other % n == 0]
        return draw(st.sampled_from(fits))

    tps = [n for n in (1, 2, 3, 4, 6, 8) if kv_heads % n == 0 or n % kv_heads == 0]
    pps = [n for n in (1, 2, 3) if n <= len(windows)]
    tp, pp = draw(st.sampled_from(tps)), draw(st.sampled_from(pps))
    count = draw(st.integers(0, 4))
    order = st.permutations(range(1, pages))
    return Case(
        source=describe(layout, tp, pp, pages),
        target=describe(layout, size(tps, tp), size(pps, pp), pages),
        group=draw(st.integers(0, len(layout.groups) - 1)),
        source_pages=draw(order)[:count],
        target_pages=draw(order)[:count],
        pages=pages,
    )


def pool(rank: RankDescriptor, pages: int, seed: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 255, pages * rank.shape.page_bytes, dtype=np.uint8)


def cells(rank: RankDescriptor, memory: Bytes) -> Bytes:
    """The same bytes as `[page, head, layer slot, cell byte]`."""
    shape = rank.shape
    return memory.reshape(-1, shape.kv_heads, shape.layers, shape.cell_bytes)


def copy_naively(case: Case, memories: list[Bytes], target: RankDescriptor, memory: Bytes) -> Bytes:
    """Which bytes of `memory` were written, one cell at a time, each from the rank that is its writer."""
    layout = case.source.layout
    written = np.zeros_like(memory)
    mine, marks = cells(target, memory), cells(target, written)
    for slot, layer in enumerate(target.slots(layout, case.group)):
        for row, head in enumerate(range(*target.heads)):
            for rank, source in zip(case.source.ranks, memories, strict=True):
                slots = rank.slots(layout, case.group)
                if (
                    layer not in slots
                    or head not in range(*rank.heads)
                    or not is_writer(layout, case.source.tp_size, rank)
                ):
                    continue
                theirs = cells(rank, source)
                for a, b in zip(case.source_pages, case.target_pages, strict=True):
                    mine[b, row, slot] = theirs[a, head - rank.heads[0], slots.index(layer)]
                    marks[b, row, slot] += 1
    return written


def apply(runs: Runs, source: Bytes, target: Bytes, written: Bytes) -> None:
    for src, dst, nbytes in zip(runs.src, runs.dst, runs.nbytes, strict=True):
        target[dst : dst + nbytes] = source[src : src + nbytes]
        written[dst : dst + nbytes] += 1


@settings(deadline=None)
@given(cases())
def test_the_plan_copies_what_a_naive_copy_does(case: Case) -> None:
    memories = [pool(rank, case.pages, seed) for seed, rank in enumerate(case.source.ranks)]
    for index, rank in enumerate(case.target.ranks):
        naive = pool(rank, case.pages, 1000 + index)
        planned = naive.copy()
        expected_marks = copy_naively(case, memories, rank, naive)
        marks = np.zeros_like(planned)
        for source in range(len(case.source.ranks)):
            planner = CopyPlanner(case.source, source, case.target)
            runs = planner.runs(index, case.group, case.source_pages, case.target_pages)
            apply(runs, memories[source], planned, marks)
        assert marks.max(initial=0) <= 1, "a byte was written twice"
        assert expected_marks.max(initial=0) <= 1, "two ranks are the writer of a cell"
        # A page whose layers are fewer than its slots may be copied whole: the padding holds nothing.
        held = len(rank.slots(case.target.layout, case.group))
        np.testing.assert_array_equal(cells(rank, planned)[:, :, :held], cells(rank, naive)[:, :, :held])
        every = cells(rank, marks)[case.target_pages, :, :held]
        assert every.all(), "a cell of an announced page was not written"
        untouched = np.setdiff1d(np.arange(case.pages), case.target_pages)
        assert not cells(rank, marks)[untouched].any(), "a page that was not announced was written"


def gqa(layers: int = 4, kv_heads: int = 8) -> KVLayout:
    return KVLayout(
        page_size=16, kv_heads=kv_heads, k_dim=8, v_dim=8, dtype="bfloat16", groups=(KVGroup(tuple(range(layers))),)
    )


def test_equal_shapes_move_whole_pages_and_neighbours_in_one_run() -> None:
    a = describe(gqa(), 2, 1, 16)
    page = a.ranks[0].shape.page_bytes

    runs = CopyPlanner(a, 1, a).runs(1, 0, [3, 4, 5, 9], [7, 8, 9, 2])

    assert runs.nbytes.tolist() == [3 * page, page]
    assert runs.src.tolist() == [3 * page, 9 * page]
    assert runs.dst.tolist() == [7 * page, 2 * page]


def test_half_the_heads_are_one_run_per_page() -> None:
    whole, halves = describe(gqa(), 1, 1, 16), describe(gqa(), 2, 1, 16)
    planner = CopyPlanner(whole, 0, halves)

    assert planner.targets() == [0, 1]
    for target in (0, 1):
        runs = planner.runs(target, 0, [1, 2], [3, 5])
        assert len(runs) == 2
        assert runs.nbytes.tolist() == [halves.ranks[0].shape.page_bytes] * 2


def test_each_pipeline_stage_sends_its_own_layers() -> None:
    stages, whole = describe(gqa(layers=4), 1, 2, 16), describe(gqa(layers=4), 1, 1, 16)
    cell = whole.ranks[0].shape.cell_bytes

    first, second = (page_runs(stages, rank, whole, whole.ranks[0], 0) for rank in stages.ranks)

    assert first.dst[0] == 0
    assert second.dst[0] == 2 * cell
    assert first.nbytes.tolist() == second.nbytes.tolist() == [2 * cell] * 8


def test_replicated_heads_are_sent_by_the_first_replica_only() -> None:
    replicas, whole = describe(gqa(kv_heads=2), 4, 1, 16), describe(gqa(kv_heads=2), 1, 1, 16)

    owed = [CopyPlanner(replicas, rank, whole).targets() for rank in range(4)]

    assert owed == [[0], [], [0], []]


def test_latent_pages_go_from_one_rank_to_every_rank() -> None:
    layout = KVLayout(page_size=16, kv_heads=1, k_dim=24, v_dim=0, dtype="bfloat16", groups=(KVGroup((0, 1)),))
    source, target = describe(layout, 4, 1, 16), describe(layout, 2, 1, 16)

    assert CopyPlanner(source, 0, target).targets() == [0, 1]
    assert CopyPlanner(source, 1, target).targets() == []


def test_page_lists_of_different_length_are_a_mistake() -> None:
    a = describe(gqa(), 1, 1, 16)
    with pytest.raises(ValueError, match="2 source pages for 1 target pages"):
        CopyPlanner(a, 0, a).runs(0, 0, [1, 2], [1])


def test_merge_joins_only_what_touches_on_both_sides() -> None:
    runs = Runs(*(np.array(column, dtype=np.int64) for column in ([0, 4, 8, 20], [0, 4, 12, 16], [4, 4, 4, 4])))
    merged = merge(runs)
    assert merged.src.tolist() == [0, 8, 20]
    assert merged.dst.tolist() == [0, 12, 16]
    assert merged.nbytes.tolist() == [8, 4, 4]


def test_nothing_to_copy_is_no_run() -> None:
    a = describe(gqa(), 1, 1, 16)
    assert len(CopyPlanner(a, 0, a).runs(0, 0, [], [])) == 0
    assert len(join_runs([])) == 0
    assert over_pages(page_runs(a, a.ranks[0], a, a.ranks[0], 0), 1, [], 1, []).total == 0
