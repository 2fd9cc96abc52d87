"""How long each stage of start-up takes (`--show-time-cost`)."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)


class Stages:
    """Logs the seconds between one `over` and the next, the first from construction on; says nothing if not `shown`."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._began = time.monotonic()

    def over(self, stage: str) -> None:
        """The stage, described for people, has just ended."""
        now = time.monotonic()
        if self._shown:
            log.info("start-up: %s took %.2f s", stage, now - self._began)
        self._began = now
