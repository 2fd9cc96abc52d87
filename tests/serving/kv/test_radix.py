from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.errors import InternalError
from baton_serving.kv.allocator import PageOwner, PagePool
from baton_serving.kv.layout import NULL_PAGE, KVGroup, KVLayout
from baton_serving.kv.radix import Hit, RadixCache, block_hashes, common_tokens, pack

TOKENS = st.lists(st.integers(0, 2), max_size=14)
OWNER = PageOwner("somebody")


def make(
    page_size: int = 2, windows: tuple[int | None, ...] = (None,), pages: int = 100
) -> tuple[RadixCache, PagePool]:
    pool = PagePool(pages)
    groups = tuple(KVGroup((i,), window) for i, window in enumerate(windows))
    return RadixCache(KVLayout(page_size, 1, 4, 4, "float32", groups), pool), pool


def insert(tree: RadixCache, pool: PagePool, tokens: list[int], namespace: str = "", hollow_below: int = 0) -> None:
    """Put the whole pages of `tokens` into the tree, window pages only from page index `hollow_below` on."""
    key, size = pack(tokens), tree._page_bytes
    node = tree.root(namespace)
    tree.lock(node)
    deepest = node
    for i in range(len(key) // size):
        pages = pool.allocate(len(tree._full) + len(tree._windowed), OWNER)
        assert pages is not None
        for g in tree._windowed:
            if i < hollow_below:
                pool.release([pages[g]], OWNER)
                pages[g] = NULL_PAGE
        deepest, _ = tree.descend(deepest, key[i * size : (i + 1) * size], pages, OWNER)
        kept = [page for page in pages if page != NULL_PAGE and pool.owner(page) is OWNER]
        pool.release(kept, OWNER)
    tree.unlock(node)


def prefix_length(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def match(tree: RadixCache, tokens: list[int], namespace: str = "", limit: int | None = None) -> Hit:
    return tree.match(namespace, pack(tokens), len(tokens) if limit is None else limit)


def hit_tokens(tree: RadixCache, hit: Hit) -> int:
    return hit.page_count * tree._page_size + hit.tail_tokens


@given(TOKENS, TOKENS)
def test_common_tokens(a: list[int], b: list[int]) -> None:
    assert common_tokens(pack(a), pack(b)) == prefix_length(a, b)


@given(st.lists(TOKENS, max_size=6), TOKENS, st.integers(0, 14), st.integers(1, 4))
def test_finds_the_longest_prefix_to_the_token(
    inserted: list[list[int]], wanted: list[int], limit: int, page_size: int
) -> None:
    tree, pool = make(page_size)
    for tokens in inserted:
        insert(tree, pool, tokens)
    whole = [tokens[: len(tokens) // page_size * page_size] for tokens in inserted]
    longest = max((prefix_length(tokens, wanted) for tokens in whole), default=0)
    assert hit_tokens(tree, match(tree, wanted, limit=limit)) == min(limit, longest)


def test_namespaces_share_nothing() -> None:
    tree, pool = make()
    insert(tree, pool, [1, 2, 3, 4], "v1")
    assert match(tree, [1, 2, 3, 4], "v1").page_count == 2
    assert match(tree, [1, 2, 3, 4], "v2").page_count == 0


def test_a_hit_that_ends_inside_a_page_names_the_page_to_copy() -> None:
    tree, pool = make(page_size=4)
    insert(tree, pool, [1, 2, 3, 4, 5, 6, 7, 8])
    hit = match(tree, [1, 2, 3, 4, 5, 6, 9])
    assert (hit.page_count, hit.tail_tokens) == (1, 2)
    assert hit.tail is not None
    assert hit.tail.key == pack([5, 6, 7, 8])


def test_a_limit_inside_a_known_page_makes_a_tail_of_it() -> None:
    tree, pool = make(page_size=4)
    insert(tree, pool, [1, 2, 3, 4, 5, 6, 7, 8])
    hit = match(tree, [1, 2, 3, 4, 5, 6, 7, 8], limit=7)
    assert (hit.page_count, hit.tail_tokens) == (1, 3)


def test_evicts_the_least_recently_used_leaf_first() -> None:
    tree, pool = make()
    insert(tree, pool, [1, 1, 2, 2])
    insert(tree, pool, [1, 1, 3, 3])
    match(tree, [1, 1, 2, 2])
    assert tree.evict(1) == 1
    assert match(tree, [1, 1, 2, 2]).page_count == 2
    assert match(tree, [1, 1, 3, 3]).page_count == 1


def test_a_locked_path_is_not_evicted() -> None:
    tree, pool = make()
    insert(tree, pool, [1, 1, 2, 2, 3, 3])
    node = match(tree, [1, 1, 2, 2]).node
    assert node is not None
    tree.lock(node)
    assert tree.evictable == 1
    assert tree.evict(10) == 1
    tree.unlock(node)
    assert tree.evict(10) == 2
    assert pool.free == pool.total


def test_unlocking_once_too_often_is_an_error() -> None:
    tree, pool = make()
    insert(tree, pool, [1, 1])
    node = match(tree, [1, 1]).node
    assert node is not None
    with pytest.raises(InternalError, match="once too often"):
        tree.unlock(node)


def test_an_empty_namespace_leaves_nothing_behind() -> None:
    tree, pool = make()
    insert(tree, pool, [1, 1], "salted")
    tree.evict(1)
    assert tree._roots == {}


@pytest.mark.parametrize(
    ("window", "hollow_below", "expected"),
    [
        (4, 0, 8),  # all there
        (4, 2, 8),  # a query at 8 sees 5 … 8: pages 2 and 3
        (4, 3, 0),  # page 2 is missing, and every shorter hit lacks its window too
        (3, 3, 8),  # a query at 8 sees 6 … 8: page 3 alone
        (1, 4, 8),  # a query sees itself alone
    ],
)
def test_a_hit_counts_only_as_far_as_its_window_is_whole(window: int, hollow_below: int, expected: int) -> None:
    tree, pool = make(page_size=2, windows=(None, window))
    insert(tree, pool, [1, 2, 3, 4, 5, 6, 7, 8], hollow_below=hollow_below)
    assert hit_tokens(tree, match(tree, [1, 2, 3, 4, 5, 6, 7, 8])) == expected


def test_inserting_again_fills_hollow_pages() -> None:
    tree, pool = make(page_size=2, windows=(None, 4))
    insert(tree, pool, [1, 2, 3, 4, 5, 6], hollow_below=3)
    assert match(tree, [1, 2, 3, 4, 5, 6]).page_count == 0
    insert(tree, pool, [1, 2, 3, 4, 5, 6])
    assert match(tree, [1, 2, 3, 4, 5, 6]).page_count == 3
    assert pool.cached == 6


def test_unused_window_pages_go_before_any_leaf() -> None:
    tree, pool = make(page_size=2, windows=(None, 3))
    insert(tree, pool, [1, 2, 3, 4, 5, 6])
    assert tree.evict(2) == 2
    assert len(tree.walk()) == 3
    assert [node.whole for node in tree.walk()] == [False, False, True]


def test_a_window_that_served_a_hit_outlives_those_that_did_not() -> None:
    tree, pool = make(page_size=2, windows=(None, 3))
    insert(tree, pool, [1, 1, 2, 2, 0, 0])
    insert(tree, pool, [2, 2, 1, 1, 0, 0])
    match(tree, [1, 1, 2, 2, 0, 0])
    tree.evict(5)
    assert match(tree, [1, 1, 2, 2, 0, 0]).page_count == 3
    assert match(tree, [2, 2, 1, 1, 0, 0]).page_count == 0


def test_a_window_in_use_stays() -> None:
    tree, pool = make(page_size=2, windows=(None, 3))
    insert(tree, pool, [1, 2, 3, 4])
    hit = match(tree, [1, 2, 3, 4])
    assert hit.node is not None
    tree.lock(hit.node)
    for node in hit.window:
        tree.lock_window(node)
    assert tree.evict(10) == 1  # the window page of the first node: a query at 4 sees 2 … 4
    assert hit.node.whole
    assert pool.cached == 3


@given(st.lists(TOKENS, min_size=1, max_size=6), st.integers(0, 30), st.sampled_from([(None,), (None, 3), (5, 2)]))
def test_evictable_is_what_eviction_can_free(
    inserted: list[list[int]], count: int, windows: tuple[int | None, ...]
) -> None:
    tree, pool = make(windows=windows)
    for tokens in inserted:
        insert(tree, pool, tokens)
    assert tree.evictable == pool.cached == len(tree.pages())
    freed = tree.evict(count)
    assert freed >= min(count, freed + tree.evictable)
    assert tree.evictable == pool.cached == len(tree.pages())
    tree.evict(tree.evictable)
    assert (pool.cached, tree.walk(), tree._roots) == (0, [], {})


class Recorder:
    def __init__(self) -> None:
        self.blocks: set[int] = set()

    def stored(self, block: int) -> None:
        assert block not in self.blocks
        self.blocks.add(block)

    def removed(self, block: int) -> None:
        self.blocks.remove(block)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), TOKENS), max_size=6))
def test_an_observer_knows_every_block(inserted: list[tuple[str, list[int]]]) -> None:
    recorder = Recorder()
    pool = PagePool(100)
    tree = RadixCache(KVLayout(2, 1, 4, 4, "float32", (KVGroup((0,)),)), pool, recorder)
    for namespace, tokens in inserted:
        insert(tree, pool, tokens, namespace)
    assert sorted(recorder.blocks) == sorted(node.block for node in tree.walk())
    names = {block for namespace, tokens in inserted for block in block_hashes(namespace, pack(tokens), 2)}
    assert recorder.blocks == names
    tree.evict(tree.evictable)
    assert recorder.blocks == set()
