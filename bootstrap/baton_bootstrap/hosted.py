"""An HTTP server that lives inside a process of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn


class HostedServer(uvicorn.Server):
    """Leaves signals to the process that hosts it, which ends it with `should_exit`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
