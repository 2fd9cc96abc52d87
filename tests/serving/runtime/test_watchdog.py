"""A loop that stands still ends the worker; one that ticks, or said that it would be long, does not."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from baton_serving.runtime.watchdog import GcWarnings, Watchdog

PATIENCE = 30.0


def test_a_stuck_step_is_noticed() -> None:
    noticed = threading.Event()
    watchdog = Watchdog(0.05, noticed.set)
    watchdog.start()
    assert noticed.wait(PATIENCE)
    watchdog.stop()


def test_ticks_and_declared_operations_hold_it_off() -> None:
    noticed = threading.Event()
    watchdog = Watchdog(0.2, noticed.set)
    watchdog.tick()
    watchdog.busy(PATIENCE)
    watchdog.start()
    assert not noticed.wait(0.5)
    watchdog.stop()


def test_it_ends_the_process_with_every_threads_stack() -> None:
    code = """
import logging, threading
from baton_serving.runtime.watchdog import Watchdog
logging.basicConfig()
def stuck_step():
    threading.Event().wait()
Watchdog(0.05).start()
stuck_step()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 70
    assert "--watchdog-timeout" in ended.stderr
    assert "stuck_step" in ended.stderr


@pytest.fixture
def slow_collections() -> Iterator[GcWarnings]:
    """A clock by which every collection takes two seconds."""
    now = iter(range(0, 10**6, 2))
    warnings = GcWarnings(1.0, clock=lambda: float(next(now)))
    warnings.install()
    yield warnings
    warnings.remove()
    gc.unfreeze()


def test_long_collections_are_logged(slow_collections: GcWarnings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        gc.collect()
    assert "garbage collection of generation 2 took 2.000 s" in caplog.text
    slow_collections.remove()
    caplog.clear()
    gc.collect()
    assert caplog.text == ""
