"""Chat streams through a service's gateways, without a pause, and what came of them."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from types import TracebackType

import aiohttp
from support.kube.node import Node

from versions import Recorder, Tally, ask, judge

_BASES = itertools.count(step=1000)  # nobody asks what others have asked: workers remember it

GATEWAY_PORT = 8000
BOOTSTRAP_PORT = 8998


class Streams:
    """Runs within the context. Each request goes to a gateway that is ready, as a Service would have it."""

    def __init__(self, node: Node, bootstrap: str, count: int = 6, prompts: int = 40) -> None:
        self.tally = Tally()
        self._node = node
        self._bootstrap = bootstrap
        self._count = count
        self._prompts = prompts
        self._base = next(_BASES)
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="streams", daemon=True)

    def __enter__(self) -> Streams:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def wait(self, answers: int) -> None:
        """Return after so many more answers."""
        goal = len(self.tally.answers) + answers
        end = time.monotonic() + 60
        while len(self.tally.answers) < goal:
            assert time.monotonic() < end, f"{len(self.tally.answers)} of {goal} answers: {self.complaints('')}"
            time.sleep(0.05)

    def complaints(self, signing: str) -> dict[str, list[str]]:
        """What must not be, by kind; answers of the weights `signing`, and no others, are signed."""
        return {kind: found[:3] for kind, found in judge(self.tally, signing).items() if found}

    def digests(self, since: float) -> set[str]:
        """Weights that answered what was sent after `since`."""
        return {digest for one in self.tally.answers if one.sent > since for digest in one.digests}

    async def _run(self) -> None:
        numbers = itertools.count()
        timeout = aiohttp.ClientTimeout(total=120)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            Recorder([self._bootstrap], self.tally),
            aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
        ):

            async def client() -> None:
                while not self._over.is_set():
                    gateways = [one for one in self._node.of("gateway") if one.ready]
                    if not gateways:
                        await asyncio.sleep(0.05)
                        continue
                    number = next(numbers)
                    url = f"http://{gateways[number % len(gateways)].address}:{GATEWAY_PORT}"
                    self.tally.answers.append(await ask(session, url, self._base + number % self._prompts))

            await asyncio.gather(*(client() for _ in range(self._count)))
