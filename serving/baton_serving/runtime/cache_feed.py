"""What this worker's KV cache holds, told to whoever listens in the names that the listeners themselves gave.

A gateway names the beginnings of each prompt by keys of its own making. The feed notes at which block of the radix tree
each key's beginning ends, and tells a key when its block is there and again when it is gone. So a gateway learns what
became of prompts that it, or any other gateway, sent here, and needs no tokenizer and no tree.

A reader gets a snapshot first and then every change. One that cannot keep up loses its backlog and gets a snapshot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import msgspec

from baton_serving.kv.radix import block_hashes, pack
from baton_serving.runtime.cache_frames import BEAT_SECONDS, CacheFrame, pack_keys, read_names
from baton_serving.runtime.messages import Failure
from baton_serving.runtime.requests import RequestRecord

log = logging.getLogger(__name__)

WHOLE = 65535
MAX_NAMES = 512  # of one prompt
MAX_KEYS = 1 << 20  # known at once, some 200 MB; beyond it the oldest are forgotten
BACKLOG = 1024  # lines that a reader may lag behind


class _Reader:
    """Lines for one reader; None stands for a lost backlog."""

    def __init__(self) -> None:
        self.lines: list[bytes] | None = None
        self.ready = asyncio.Event()

    def put(self, line: bytes) -> None:
        if self.lines is not None:
            self.lines.append(line)
            if len(self.lines) > BACKLOG:
                self.lines = None
        self.ready.set()


class CacheFeed:
    """An observer of requests, told of the tree's changes by `changed`. Lives on the API process's loop.

    `namespace` is that of the radix tree: the digest of the weights.
    """

    def __init__(self, namespace: str, page_size: int) -> None:
        self._namespace = namespace
        self._page_size = page_size
        self._blocks: set[int] = set()
        self._block_of: dict[int, int] = {}  # key → block where its beginning ends, oldest first
        self._keys_of: dict[int, set[int]] = {}  # the same, the other way round
        self._seq = 0
        self._readers: set[_Reader] = set()
        self._closed = False
        self._encoder = msgspec.json.Encoder()

    # Requests

    def started(self, record: RequestRecord) -> None:
        """Take note of the names that came with a prompt."""
        request = record.request
        if not request.prefix_keys:
            return
        try:
            names = read_names(request.prefix_keys)[:MAX_NAMES]
        except ValueError as error:
            log.debug("prefix keys of %s left out: %s", request.rid, error)
            return
        prompt = request.prompts[0]
        blocks = block_hashes(self._namespace, pack(prompt), self._page_size)
        there: list[int] = []
        for key, fraction in names:
            pages = fraction * len(prompt) // WHOLE // self._page_size
            if 0 < pages <= len(blocks):
                self._name(key, blocks[pages - 1])
                if self._block_of[key] in self._blocks:
                    there.append(key)
        self._tell(there, self._forget_oldest())

    def produced(self, record: RequestRecord, index: int, tokens: int, now: float) -> None:
        """Nothing to note."""

    def finished(self, record: RequestRecord) -> None:
        """Nothing to note."""

    def failed(self, failure: Failure) -> None:
        """Nothing to note."""

    # The tree

    def rename(self, namespace: str) -> None:
        """Other weights are served from now on: prompts that come have other blocks."""
        self._namespace = namespace

    def changed(self, stored: Sequence[int], removed: Sequence[int]) -> None:
        """Blocks that left the tree and blocks that entered it."""
        self._blocks.difference_update(removed)
        self._blocks.update(stored)
        gone: list[int] = []
        for block in removed:
            keys = self._keys_of.pop(block, ())
            gone.extend(keys)
            for key in keys:
                del self._block_of[key]
        self._tell([key for block in stored for key in self._keys_of.get(block, ())], gone)

    # Readers

    async def lines(self) -> AsyncIterator[bytes]:
        """A snapshot, then every change, and a beat when nothing changes; ends when the feed is closed."""
        reader = _Reader()
        self._readers.add(reader)
        try:
            while not self._closed:
                if reader.lines is None:
                    reader.lines = []
                    yield self._line(CacheFrame(self._seq, snapshot=True, stored=pack_keys(self._present())))
                    continue
                reader.ready.clear()
                lines, reader.lines = reader.lines, []
                yield b"".join(lines) or self._line(CacheFrame(self._seq))
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_SECONDS):
                        await reader.ready.wait()
        finally:
            self._readers.discard(reader)

    def close(self) -> None:
        """End every reader's stream."""
        self._closed = True
        for reader in self._readers:
            reader.ready.set()

    def _present(self) -> list[int]:
        return [key for key, block in self._block_of.items() if block in self._blocks]

    def _name(self, key: int, block: int) -> None:
        """The key's beginning ends at `block`; of two blocks that it is said to end at, one that is there counts."""
        before = self._block_of.pop(key, block)
        if before != block and before in self._blocks and block not in self._blocks:
            block = before
        if before != block:
            self._drop(key, before)
        self._block_of[key] = block
        self._keys_of.setdefault(block, set()).add(key)

    def _forget_oldest(self) -> list[int]:
        """Keys beyond the bound; those that were told are gone for the readers."""
        told: list[int] = []
        while len(self._block_of) > MAX_KEYS:
            key = next(iter(self._block_of))
            block = self._block_of.pop(key)
            self._drop(key, block)
            if block in self._blocks:
                told.append(key)
        return told

    def _drop(self, key: int, block: int) -> None:
        keys = self._keys_of[block]
        keys.discard(key)
        if not keys:
            del self._keys_of[block]

    def _tell(self, stored: list[int], removed: list[int]) -> None:
        if not stored and not removed:
            return
        self._seq += 1
        if self._readers:
            line = self._line(CacheFrame(self._seq, stored=pack_keys(stored), removed=pack_keys(removed)))
            for reader in self._readers:
                reader.put(line)

    def _line(self, frame: CacheFrame) -> bytes:
        return self._encoder.encode(frame) + b"\n"
