from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton_serving.kv.eviction import LruQueue


class Item:
    def __init__(self, serial: int, used: int) -> None:
        self.serial = serial
        self.used = used
        self.locked = False


class Items(LruQueue[Item]):
    def stamp(self, node: Item) -> int:
        return node.used

    def evictable(self, node: Item) -> bool:
        return not node.locked


def test_gives_the_oldest_first_and_ties_by_serial() -> None:
    queue = Items()
    items = [Item(0, 3), Item(1, 1), Item(2, 1)]
    for item in items:
        queue.push(item)
    order = []
    while queue.peek() is not None:
        order.append(queue.pop().serial)
    assert order == [1, 2, 0]


def test_an_item_used_since_goes_to_the_back() -> None:
    queue = Items()
    first, second = Item(0, 1), Item(1, 2)
    queue.push(first)
    queue.push(second)
    first.used = 9
    assert queue.peek() is second


def test_a_locked_item_is_dropped_and_may_be_entered_again() -> None:
    queue = Items()
    item = Item(0, 1)
    queue.push(item)
    item.locked = True
    assert queue.peek() is None
    item.locked = False
    queue.push(item)
    assert queue.peek() is item


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=60))
def test_the_heap_never_holds_an_item_twice(events: list[tuple[int, int]]) -> None:
    queue = Items()
    items = [Item(serial, 0) for serial in range(6)]
    pushed: set[Item] = set()
    for which, used in events:
        items[which].used += used
        queue.push(items[which])
        pushed.add(items[which])
        assert len(queue._heap) == len(pushed)
        oldest = queue.peek()
        assert oldest is not None
        assert oldest.used == min(item.used for item in pushed)
