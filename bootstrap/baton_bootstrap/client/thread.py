"""The clients for a process without an asyncio loop: one daemon thread hosts them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Self, TypeVar

from baton_bootstrap.client.registration import RegistrationClient
from baton_bootstrap.client.view import View
from baton_bootstrap.client.watch import WatchClient
from baton_bootstrap.records import Beat, Entry, Worker
from baton_bootstrap.tls import TlsFiles

T = TypeVar("T")


class BootstrapThread:
    """A watch, and a registration once `register` is called, both on a thread of their own.

    All methods may be called from any thread.
    """

    def __init__(
        self, addresses: str | Sequence[str], *, token: str | None = None, tls: TlsFiles | None = None
    ) -> None:
        self._addresses = addresses
        self._token = token
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bootstrap-client", daemon=True)
        self._thread.start()
        self._registration: RegistrationClient | None = None
        self._watch = self._run(self._start_watch())

    @property
    def view(self) -> View:
        return self._watch.view

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def register(self, worker: Worker, source: Callable[[], Beat], timeout: float | None = None) -> None:
        """Register and return once a replica holds the worker. `source` is called on the thread: it must not block.

        Raises `TimeoutError` after `timeout` seconds; the client goes on trying.
        """
        self._registration = self._run(self._start_registration(worker, source))
        self._run(asyncio.wait_for(self._registration.registered(), timeout))

    def poke(self) -> None:
        """Send a heartbeat now."""
        if self._registration is not None:
            self._loop.call_soon_threadsafe(self._registration.poke)

    def find(self, key: str) -> Entry:
        """The one live worker with this id or key. Raises `NotFound`, `Ambiguous` or `Unreachable`."""
        return self._run(self._watch.find(key))

    def changed(self, version: int, timeout: float | None = None) -> View:
        """The view as soon as its version is past `version`. Raises `TimeoutError`."""
        return self._run(asyncio.wait_for(self._watch.changed(version), timeout))

    def close(self) -> None:
        """Say goodbye and end the thread; a second call does nothing."""
        if self._loop.is_closed():
            return
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start_watch(self) -> WatchClient:
        watch = WatchClient(self._addresses, token=self._token, tls=self._tls)
        await watch.start()
        return watch

    async def _start_registration(self, worker: Worker, source: Callable[[], Beat]) -> RegistrationClient:
        client = RegistrationClient(self._addresses, worker, source, token=self._token, tls=self._tls)
        await client.start()
        return client

    async def _stop(self) -> None:
        await self._watch.aclose()
        if self._registration is not None:
            await self._registration.aclose()

    def _run(self, coroutine: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
