from __future__ import annotations

import pytest

from baton_serving.errors import InternalError
from baton_serving.kv.allocator import RADIX
from baton_serving.kv.layout import NULL_PAGE, KVGroup, KVLayout
from baton_serving.kv.manager import KVManager, RequestPages
from baton_serving.kv.radix import pack


def make(
    page_size: int = 2, windows: tuple[int | None, ...] = (None,), pages: int = 20, radix: bool = True
) -> KVManager:
    groups = tuple(KVGroup((i,), window) for i, window in enumerate(windows))
    return KVManager(KVLayout(page_size, 1, 4, 4, "float32", groups), pages, radix)


def start(kv: KVManager, tokens: list[int], limit: int | None = None) -> RequestPages:
    return kv.open("request", "", kv.match("", pack(tokens), len(tokens) if limit is None else limit))


def finish(kv: KVManager, held: RequestPages, tokens: list[int]) -> None:
    kv.publish(held, pack(tokens), len(tokens), leaving=True)
    kv.release(held)
    kv.check()


def test_grows_by_whole_pages_in_every_group() -> None:
    kv = make(windows=(None, 8))
    held = start(kv, [])
    assert kv.pages_for(held, 3) == 4
    assert kv.grow(held, 3)
    assert [len(pages) for pages in held.pages] == [2, 2]
    assert held.capacity == 4
    assert kv.grow(held, 4)
    assert kv.pool.in_use == 4
    kv.check()


def test_grows_all_or_nothing_and_evicts_only_if_that_is_enough() -> None:
    kv = make(pages=4)
    first = start(kv, [])
    kv.grow(first, 4)
    finish(kv, first, [1, 2, 3, 4])
    held = start(kv, [])
    assert not kv.grow(held, 10)
    assert kv.pool.cached == 2
    assert kv.grow(held, 8)
    assert kv.pool.cached == 0
    kv.check()


def test_a_finished_request_is_found_again_and_its_partial_page_is_free() -> None:
    kv = make()
    held = start(kv, [])
    kv.grow(held, 5)
    finish(kv, held, [1, 2, 3, 4, 5])
    assert (kv.pool.cached, kv.pool.in_use) == (2, 0)
    again = start(kv, [1, 2, 3, 4, 5])
    assert again.shared == 2
    assert all(kv.pool.owner(page) is RADIX for page in again.pages[0])


def test_a_request_keeps_its_own_page_where_the_tree_has_one_and_stops_publishing() -> None:
    kv = make()
    first, second = start(kv, []), start(kv, [])
    for held in (first, second):
        kv.grow(held, 4)
    assert kv.publish(first, pack([1, 2, 3, 4]), 4)
    own = list(second.pages[0])
    assert not kv.publish(second, pack([1, 2, 3, 4]), 4)
    assert second.pages[0] == own
    assert second.shared == 0
    assert kv.tree.evictable == 0
    finish(kv, second, [1, 2, 3, 4])
    assert (kv.pool.cached, kv.pool.in_use) == (2, 0)
    kv.release(first)
    kv.check()


def test_a_leaving_request_adds_what_the_tree_lacks() -> None:
    kv = make()
    first, second = start(kv, []), start(kv, [])
    kv.grow(first, 2)
    kv.grow(second, 4)
    finish(kv, first, [1, 2])
    finish(kv, second, [1, 2, 3, 4])
    assert start(kv, [1, 2, 3, 4]).shared == 2


def test_pages_that_slide_out_of_the_window_are_freed_and_nulled() -> None:
    kv = make(windows=(None, 3))
    held = start(kv, [])
    kv.grow(held, 8)
    assert held.slide_at == 4  # a query at 4 sees 2 … 4
    assert kv.slide(held, 3) == (0, 0)
    assert kv.slide(held, 4) == (0, 1)
    assert held.pages[1][0] == NULL_PAGE
    assert NULL_PAGE not in held.pages[0]
    assert kv.pool.in_use == 7
    kv.check()


def test_a_published_window_page_stays_cached_when_its_request_slides_on() -> None:
    kv = make(windows=(None, 3))
    held = start(kv, [])
    kv.grow(held, 8)
    kv.publish(held, pack([1, 2, 3, 4]), 4)
    assert kv.tree.evictable == 0
    kv.slide(held, 6)
    assert kv.tree.evictable == 2  # both window pages; the full ones are on the locked path
    kv.check()
    kv.release(held)
    kv.check()


def test_window_pages_below_the_start_are_never_allocated() -> None:
    kv = make(windows=(None, 3))
    held = start(kv, [])
    assert kv.pages_for(held, 8, window_from=3) == 5
    assert kv.grow(held, 8, window_from=3)
    assert held.pages[1][:3] == [NULL_PAGE] * 3
    assert held.window_start == 3
    kv.check()


def test_quarantine_keeps_private_pages_and_unlocks_shared_ones() -> None:
    kv = make()
    first = start(kv, [])
    kv.grow(first, 2)
    finish(kv, first, [1, 2])
    held = start(kv, [1, 2])
    kv.grow(held, 4)
    quarantine = kv.quarantine(held, "a write may land")
    assert (kv.pool.quarantined, kv.tree.evictable) == (1, 1)
    kv.check()
    kv.pool.lift(quarantine)
    kv.check()


def test_without_radix_nothing_is_kept() -> None:
    kv = make(radix=False)
    held = start(kv, [])
    kv.grow(held, 4)
    finish(kv, held, [1, 2, 3, 4])
    assert kv.pool.free == kv.pool.total


def test_flush_spares_what_is_in_use() -> None:
    kv = make()
    for tokens in ([1, 2, 3, 4], [5, 6]):
        held = start(kv, [])
        kv.grow(held, len(tokens))
        finish(kv, held, tokens)
    user = start(kv, [5, 6])
    assert kv.flush() == 2
    assert kv.pool.cached == 1
    kv.release(user)


def test_check_names_the_leaking_owner() -> None:
    kv = make()
    held = start(kv, [])
    kv.grow(held, 2)
    held.pages[0].clear()
    with pytest.raises(InternalError, match="request lists other pages"):
        kv.check()
    del kv._live[held]
    with pytest.raises(InternalError, match="1 pages leaked by request, which is gone"):
        kv.check()


def test_check_notices_a_lock_that_nobody_holds() -> None:
    kv = make()
    kv.tree.lock(kv.tree.root(""))
    with pytest.raises(InternalError, match="locked though no request"):
        kv.check()
