"""What children of `runtime.process` run in its tests."""

from __future__ import annotations

import os
import signal

from baton_serving.errors import ConfigError
from baton_serving.runtime.process import Reporter


def echoes(value: int, reporter: Reporter) -> None:
    """Tells `value`, hears one, and is ready with their sum; then waits to be stopped."""
    reporter.tell(value)
    reporter.ready({"sum": value + reporter.hear()})
    signal.pause()


def refuses(reporter: Reporter) -> None:
    raise ConfigError("--flag is wrong: leave it out")


def dies(code: int, reporter: Reporter) -> None:
    os._exit(code)


def waits(reporter: Reporter) -> None:
    """For something that never comes."""
    reporter.hear()
