from __future__ import annotations

import itertools
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from baton_serving.gateway.policies.prefix_index import MAX_DEAD, RECENT_SECONDS, HalfLife, PrefixIndex
from baton_serving.gateway.policies.prefix_keys import CUTS, header_value, prefix_keys, seed_of
from baton_serving.runtime.cache_frames import read_names


@given(st.binary(max_size=5000), st.binary(max_size=3000), st.integers(0, 1 << 63))
def test_prompts_share_keys_exactly_as_far_as_they_begin_alike(common: bytes, rest: bytes, seed: int) -> None:
    one, other = common + rest, common + b"\0" + rest + b"\1"
    shared = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    keys, others = prefix_keys(one, seed), prefix_keys(other, seed)
    expected = sum(cut <= shared for cut in CUTS)
    assert keys[:expected] == others[:expected]
    assert not set(keys[expected:]) & set(others[expected:])
    assert len(keys) == sum(cut <= len(one) for cut in CUTS)


def test_a_megabyte_has_few_keys_and_each_tells_its_length_to_an_eighth() -> None:
    assert len(prefix_keys(bytes(1 << 20), 1)) < 80
    assert all(after - before <= max(128, before / 8) for before, after in itertools.pairwise(CUTS))


def test_keys_belong_to_model_and_weights() -> None:
    prompt = b"z" * 1000
    seeds = [seed_of("m", "w1"), seed_of("m", "w2"), seed_of("m2", "w1")]
    assert len({prefix_keys(prompt, seed)[0] for seed in seeds}) == 3


@given(st.integers(128, 100_000))
def test_the_header_names_keys_and_what_they_stand_for(size: int) -> None:
    keys = prefix_keys(bytes(size), 7)
    names = read_names(header_value(keys, size).decode())
    assert [key for key, _ in names] == keys
    for (_, fraction), cut in zip(names, CUTS, strict=False):
        assert cut / size <= fraction / 65535 <= cut / size + 2 / 65535


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sent", "stored", "removed", "replace", "leave"]),
            st.sampled_from("abcd"),
            st.integers(0, 3),
            st.integers(1, 6),
        ),
        max_size=60,
    )
)
def test_matches_are_those_of_a_plain_account(steps: list[tuple[str, str, int, int]]) -> None:
    """Four prompts whose first two keys are common to pairs; workers hold whole beginnings, as real caches do."""
    prompts = [[n // 2 * 10, n // 2 * 10 + 1, *range(100 * n + 50, 100 * n + 54)] for n in range(4)]
    index = PrefixIndex()
    held: dict[str, set[int]] = {}
    telling: set[str] = set()
    for kind, worker, prompt, count in steps:
        keys = prompts[prompt][:count]
        if kind == "sent":
            held.setdefault(worker, set()).update(keys)
            index.sent(keys, 1 << index.slot(worker), 0.0)
        elif kind == "replace":
            telling.add(worker)
            held[worker] = set(keys)
            index.replace(worker, keys)
        elif kind == "leave":
            held.pop(worker, None)
            telling.discard(worker)
            index.leave(worker)
        elif worker in telling:
            if kind == "stored":
                held[worker].update(keys)
                index.changed(worker, keys, [])
            else:  # leaves go first
                gone = prompts[prompt][count - 1 :] if count > 2 else []
                held[worker].difference_update(gone)
                index.changed(worker, [], gone)
    for keys in prompts:
        found: dict[str, int] = {}
        for count, mask in index.match(keys):
            found |= {worker: count for worker in held if mask >> index.slot(worker) & 1}
        wanted = {worker: sum(key in keys_held for key in keys) for worker, keys_held in held.items()}
        assert found == {worker: count for worker, count in wanted.items() if count}


def test_where_a_request_was_sent_is_believed_of_a_telling_worker_only_for_a_while() -> None:
    index = PrefixIndex()
    index.replace("tells", [])
    silent, tells = 1 << index.slot("silent"), 1 << index.slot("tells")
    index.sent([1, 2, 3], silent | tells, 1.0)
    assert index.match([1, 2, 3]) == [(3, silent | tells)]
    for turn in range(1, 4):
        index.sent([9], tells, 1.0 + turn * (RECENT_SECONDS + 1))
    assert index.match([1, 2, 3]) == [(3, silent)]
    index.silent("tells")
    index.sent([1, 2, 3], tells, 100.0)
    for turn in range(1, 4):
        index.sent([9], silent, 100.0 + turn * (RECENT_SECONDS + 1))
    assert index.match([1, 2, 3]) == [(3, silent | tells)]


def test_slots_of_lost_workers_come_back_clean() -> None:
    index = PrefixIndex()
    for turn in range(5 * MAX_DEAD):
        worker = f"w{turn}"
        index.sent([turn, turn + 1], 1 << index.slot(worker), 0.0)
        assert index.match([turn + 1]) == [(1, 1 << index.slot(worker))]
        index.leave(worker)
    slot = index.slot("new")
    assert slot <= 2 * MAX_DEAD
    assert all(index.match([key]) == [] for key in range(400))


def test_the_index_is_bounded_and_forgets_what_was_used_longest_ago() -> None:
    table = HalfLife(1000)
    for key in range(100_000):
        table.add([key, 7], 1)
        assert len(table) <= 2001
    assert table.new.get(7, 0) | table.old.get(7, 0)
    assert not table.new.get(90_000, 0) | table.old.get(90_000, 0)
    tracemalloc.start()
    index = PrefixIndex(capacity=10_000)
    for turn in range(30_000):
        index.sent(range(turn * 10, turn * 10 + 10), 1 << (turn % 64), float(turn))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 20_000 * 200
