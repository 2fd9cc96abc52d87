from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton_serving.errors import InternalError
from baton_serving.kv.allocator import RADIX, PageOwner, PagePool, Quarantine
from baton_serving.kv.layout import NULL_PAGE


def test_allocates_all_or_nothing() -> None:
    pool, owner = PagePool(4), PageOwner("a")
    pages = pool.allocate(3, owner)
    assert pages == [1, 2, 3]
    assert pool.allocate(2, owner) is None
    assert (pool.free, pool.in_use) == (1, 3)
    assert pool.allocate(0, owner) == []


def test_never_hands_out_the_null_page() -> None:
    pool = PagePool(3)
    assert NULL_PAGE not in (pool.allocate(3, PageOwner("a")) or [])


def test_a_pool_needs_a_page() -> None:
    with pytest.raises(ValueError, match="at least one page"):
        PagePool(0)


def test_refuses_to_free_twice_and_names_the_owner() -> None:
    pool, owner, other = PagePool(2), PageOwner("request a"), PageOwner("request b")
    pages = pool.allocate(1, owner) or []
    with pytest.raises(InternalError, match="belongs to request a, not to request b"):
        pool.release(pages, other)
    pool.release(pages, owner)
    with pytest.raises(InternalError, match="belongs to nobody"):
        pool.release(pages, owner)


def test_owners_of_one_name_are_two_owners() -> None:
    pool = PagePool(1)
    pages = pool.allocate(1, PageOwner("r")) or []
    with pytest.raises(InternalError):
        pool.release(pages, PageOwner("r"))


def test_quarantined_pages_stay_out_of_reach_until_lifted_once() -> None:
    pool, owner = PagePool(2), PageOwner("r")
    quarantine = pool.quarantine(pool.allocate(2, owner) or [], owner, "a write may land")
    assert (pool.free, pool.quarantined, pool.allocate(1, owner)) == (0, 2, None)
    assert [q.reason for q in pool.quarantines()] == ["a write may land"]
    pool.lift(quarantine)
    assert (pool.free, pool.quarantined) == (2, 0)
    with pytest.raises(InternalError, match="lifted before"):
        pool.lift(quarantine)


def test_check_notices_a_counter_that_is_off() -> None:
    pool = PagePool(2)
    pool.check()
    pool.cached += 1
    with pytest.raises(InternalError, match="page pool of 2"):
        pool.check()


class PoolMachine(RuleBasedStateMachine):
    """Random moves of pages between owners; the law is checked after each."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(12)
        self.owners = [PageOwner("a"), PageOwner("b")]
        self.held: dict[PageOwner, list[int]] = {owner: [] for owner in self.owners}
        self.cached: list[int] = []
        self.quarantines: list[Quarantine] = []

    @rule(which=st.integers(0, 1), count=st.integers(0, 8))
    def allocate(self, which: int, count: int) -> None:
        owner = self.owners[which]
        free = self.pool.free
        pages = self.pool.allocate(count, owner)
        assert (pages is None) == (count > free)
        self.held[owner] += pages or []

    @rule(which=st.integers(0, 1), count=st.integers(1, 4))
    def release(self, which: int, count: int) -> None:
        owner = self.owners[which]
        self.pool.release(self.held[owner][:count], owner)
        del self.held[owner][:count]

    @precondition(lambda self: self.held[self.owners[0]])
    @rule()
    def cache(self) -> None:
        page = self.held[self.owners[0]].pop()
        self.pool.cache(page, self.owners[0])
        self.cached.append(page)
        assert self.pool.owner(page) is RADIX

    @precondition(lambda self: self.cached)
    @rule()
    def evict(self) -> None:
        self.pool.evict(self.cached.pop())

    @rule()
    def quarantine(self) -> None:
        owner = self.owners[1]
        self.quarantines.append(self.pool.quarantine(self.held[owner], owner, "late"))
        self.held[owner] = []

    @precondition(lambda self: self.quarantines)
    @rule()
    def lift(self) -> None:
        self.pool.lift(self.quarantines.pop())

    @invariant()
    def law_holds(self) -> None:
        pool = self.pool
        pool.check()
        assert pool.in_use == sum(map(len, self.held.values()))
        assert pool.cached == len(self.cached)
        assert pool.quarantined == sum(len(q.pages) for q in self.quarantines)
        assert pool.free + pool.cached + pool.in_use + pool.quarantined == pool.total


TestPool = PoolMachine.TestCase
