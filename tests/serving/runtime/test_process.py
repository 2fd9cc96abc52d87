"""Child processes: how they start, fail, hear from their parent, and end."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest

from baton_serving.errors import ConfigError, InternalError
from baton_serving.runtime.process import Child, ChildWatch, stop_all, wait_ready

MAINS = "support.child_mains"


@pytest.fixture
def children() -> Iterator[list[Child]]:
    started: list[Child] = []
    yield started
    stop_all(started, 5.0)


def test_children_and_parent_talk_before_readiness(children: list[Child]) -> None:
    children += [Child(f"child{value}", f"{MAINS}:echoes", value) for value in (1, 2)]
    told: list[tuple[str, object]] = []

    def answer(child: Child, value: object) -> None:
        told.append((child.name, value))
        child.tell(10)

    assert wait_ready(children, answer) == {"child1": {"sum": 11}, "child2": {"sum": 12}}
    assert sorted(told) == [("child1", 1), ("child2", 2)]


def test_one_failure_ends_the_wait_for_all(children: list[Child]) -> None:
    children += [Child("patient", f"{MAINS}:waits"), Child("wrong", f"{MAINS}:refuses")]
    with pytest.raises(ConfigError, match=r"^--flag is wrong: leave it out$"):
        wait_ready(children)


def test_a_death_during_start_up_is_told_with_its_exit_code(children: list[Child]) -> None:
    children += [Child("patient", f"{MAINS}:waits"), Child("mortal", f"{MAINS}:dies", 7)]
    with pytest.raises(InternalError, match=r"^mortal died during start-up \(exit code 7\)$"):
        wait_ready(children)


def test_a_death_later_is_seen_at_once(children: list[Child]) -> None:
    children.append(Child("child", f"{MAINS}:echoes", 1))
    wait_ready(children, lambda child, _: child.tell(0))
    seen: queue.SimpleQueue[tuple[str, int | None]] = queue.SimpleQueue()
    watch = ChildWatch(children, lambda child, code: seen.put((child.name, code)))
    children[0].process.kill()
    assert seen.get(timeout=30) == ("child", -9)
    watch.close()
