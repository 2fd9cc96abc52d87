"""From a real radix tree through a real socket to a gateway's prefix index."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from support.certificates import Authority

from baton_bootstrap.hosted import HostedServer
from baton_bootstrap.tls import Tls
from baton_serving.api.server import bind
from baton_serving.gateway import cache_follower
from baton_serving.gateway.cache_follower import CacheFollower, Source
from baton_serving.gateway.policies.memory import Memory
from baton_serving.gateway.policies.prefix_keys import header_value, prefix_keys, seed_of
from baton_serving.gateway.snapshot import RequestFacts
from baton_serving.kv.allocator import PageOwner, PagePool
from baton_serving.kv.layout import KVGroup, KVLayout
from baton_serving.kv.radix import RadixCache, block_hashes, pack
from baton_serving.runtime import cache_feed
from baton_serving.runtime.cache_feed import CacheFeed
from baton_serving.runtime.cache_frames import PATH, CacheFrame, pack_keys, unpack_keys
from baton_serving.runtime.cache_log import CacheLog
from baton_serving.runtime.requests import Choice, GenerateRequest, RequestRecord
from baton_serving.sampling.params import SamplingParams

PAGE = 4
WEIGHTS = "weights-1"
PATIENCE = 20.0


class CachingWorker:
    """The part of a worker that caches: a real tree, what it tells, and the feed that readers hear it from."""

    def __init__(self, worker_id: str = "p0", incarnation: str = "i1") -> None:
        self.id, self.incarnation, self.weight_digest = worker_id, incarnation, WEIGHTS
        self.running = self.queued_tokens = self.used_tokens = 0
        self.log = CacheLog()
        self.pool = PagePool(2000)
        self.tree = RadixCache(KVLayout(PAGE, 1, 4, 4, "float32", (KVGroup((0,)),)), self.pool, self.log)
        self.feed = CacheFeed(WEIGHTS, PAGE)

    def serve(self, text: bytes, names: bytes, rid: str = "r") -> None:
        """A prompt comes, a token for each eight bytes, and is computed."""
        tokens = [int.from_bytes(text[at : at + 8], "little") % 2**31 for at in range(0, len(text) // 8 * 8, 8)]
        request = GenerateRequest(rid, [tokens], [Choice(0, SamplingParams())], prefix_keys=names.decode())
        self.feed.started(RequestRecord.of(request))
        key, node = pack(tokens), self.tree.root(WEIGHTS)
        owner = PageOwner(rid)
        for start in range(0, len(key) // (4 * PAGE) * 4 * PAGE, 4 * PAGE):
            page = self.pool.allocate(1, owner)
            assert page is not None
            node, _ = self.tree.descend(node, key[start : start + 4 * PAGE], page, owner)
            if self.pool.owner(page[0]) is owner:  # the tree had this page already
                self.pool.release(page, owner)
        self.tell()

    def evict(self, pages: int) -> None:
        self.tree.evict(pages)
        self.tell()

    def tell(self) -> None:
        changed = self.log.take()
        if changed is not None:
            self.feed.changed(changed.stored, changed.removed)


def facts(text: bytes) -> RequestFacts:
    return RequestFacts(number=0, model="m", prompt=text, prompt_tokens=len(text) // 8)


@asynccontextmanager
async def serving(answer: Callable[[Request], Awaitable[Response]], tls: Tls | None = None) -> AsyncIterator[int]:
    app = Starlette(routes=[Route(PATH, answer)])
    config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none", timeout_graceful_shutdown=1)
    config.load()
    config.ssl = None if tls is None else tls.server
    server = HostedServer(config)
    with bind("127.0.0.1", 0) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            if true():
                return
            await asyncio.sleep(0.005)


def held(memory: Memory, worker: CachingWorker, text: bytes) -> int:
    return sum(tokens for tokens, _ in memory.held(facts(text), (worker,)))


async def test_a_gateway_learns_what_another_ones_requests_left_and_what_was_evicted() -> None:
    worker = CachingWorker()
    text = bytes(range(256)) * 8
    names = header_value(prefix_keys(text, seed_of("m", WEIGHTS)), len(text))
    worker.serve(text, names)  # before anybody listens: in the snapshot
    memory = Memory()

    async def answer(_: Request) -> Response:
        return StreamingResponse(worker.feed.lines())

    async with serving(answer) as port:
        follower = CacheFollower(memory)
        follower.update([Source(worker.id, worker.incarnation, f"http://127.0.0.1:{port}")])
        await until(lambda: held(memory, worker, text) == 256)
        other = b"x" * 1024 + text
        worker.serve(other, header_value(prefix_keys(other, seed_of("m", WEIGHTS)), len(other)), "r2")
        await until(lambda: held(memory, worker, other) > 300)
        worker.evict(32)  # the deep half of the first prompt, which was used longest ago
        await until(lambda: held(memory, worker, text) <= 128)
        assert held(memory, worker, text) > 0
        assert held(memory, worker, other) > 300
        worker.evict(10**6)
        await until(lambda: held(memory, worker, text) == held(memory, worker, other) == 0)
        worker.feed.close()
        await follower.aclose()
    assert follower.resyncs <= 1


async def test_a_missed_change_is_made_good_by_a_fresh_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream leaves out a change once: believing it, the gateway would think that key 1 is still there."""
    monkeypatch.setattr(cache_follower, "SILENCE_SECONDS", 3600.0)
    text = b"y" * 128
    key = prefix_keys(text, seed_of("m", WEIGHTS))[0]
    worker = CachingWorker()
    frames = [
        [CacheFrame(5, snapshot=True, stored=pack_keys([key])), CacheFrame(7, stored=pack_keys([99]))],
        [CacheFrame(7, snapshot=True, stored=pack_keys([99])), CacheFrame(7)],
    ]
    heard: list[int] = []
    hold = asyncio.Event()

    async def answer(_: Request) -> Response:
        turn = len(heard)
        heard.append(turn)

        async def lines() -> AsyncIterator[bytes]:
            for frame in frames[min(turn, 1)]:
                yield msgspec.json.encode(frame) + b"\n"
            await hold.wait()

        return StreamingResponse(lines())

    memory = Memory()
    async with serving(answer) as port:
        follower = CacheFollower(memory)
        follower.update([Source(worker.id, worker.incarnation, f"http://127.0.0.1:{port}")])
        await until(lambda: held(memory, worker, text) > 0 or len(heard) > 1)
        await until(lambda: len(heard) > 1 and held(memory, worker, text) == 0)
        assert follower.resyncs == 1
        await until(lambda: memory.index.match([99]) == [(1, 1 << memory.index.slot((worker.id, worker.incarnation)))])
        follower.update([])
        hold.set()
        await follower.aclose()


async def test_a_closed_worker_tells_whoever_shows_a_certificate(tmp_path: Path) -> None:
    """Certificates carry the name of the service's parts and no address."""
    inside = Authority("inside")
    worker, memory = CachingWorker(), Memory()
    text = b"z" * 1024
    worker.serve(text, header_value(prefix_keys(text, seed_of("m", WEIGHTS)), len(text)))

    async def answer(_: Request) -> Response:
        return StreamingResponse(worker.feed.lines())

    async with serving(answer, Tls(inside.write(tmp_path / "worker"))) as port:
        source = Source(worker.id, worker.incarnation, f"https://127.0.0.1:{port}")
        stranger = CacheFollower(memory, Tls(Authority("outside").write(tmp_path / "stranger", inside)))
        stranger.update([source])
        await until(lambda: stranger.resyncs > 0)
        assert held(memory, worker, text) == 0
        await stranger.aclose()
        follower = CacheFollower(memory, Tls(inside.write(tmp_path / "gateway")))
        follower.update([source])
        await until(lambda: held(memory, worker, text) > 0)
        assert follower.resyncs == 0
        worker.feed.close()
        await follower.aclose()


async def test_other_weights_in_the_same_worker_name_other_blocks() -> None:
    """The blocks of a prompt under the old weights are no word on what is there under the new ones."""
    feed = CacheFeed("weights-1", PAGE)
    tokens = list(range(8))
    blocks = {weights: block_hashes(weights, pack(tokens), PAGE) for weights in ("weights-1", "weights-2")}

    def ask(key: int) -> None:
        names = header_value([key], 128)
        request = GenerateRequest(str(key), [tokens], [Choice(0, SamplingParams())], prefix_keys=names.decode())
        feed.started(RequestRecord.of(request))

    async def told() -> list[int]:
        lines = feed.lines()
        frame = msgspec.json.decode(await anext(lines), type=CacheFrame)
        await lines.aclose()  # type: ignore[attr-defined]
        return list(unpack_keys(frame.stored))

    ask(1)
    feed.changed(blocks["weights-1"], [])
    assert await told() == [1]
    feed.rename("weights-2")
    ask(2)
    assert await told() == [1]  # the new weights have computed nothing yet
    feed.changed(blocks["weights-2"], blocks["weights-1"])
    assert await told() == [2]


@pytest.mark.parametrize("status", [401, 404])
async def test_a_worker_that_tells_nothing_is_asked_once(status: int) -> None:
    asked: list[int] = []

    async def answer(_: Request) -> Response:
        asked.append(1)
        return Response(status_code=status)

    async with serving(answer) as port:
        follower = CacheFollower(Memory())
        follower.update([Source("p0", "i1", f"http://127.0.0.1:{port}")])
        await until(lambda: all(task.done() for task in follower._tasks.values()) and bool(asked))
        assert (follower.resyncs, asked) == (0, [1])
        await follower.aclose()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["serve", "evict", "lag"]), st.integers(0, 5), st.integers(1, 40))), st.data()
)
def test_whoever_reads_at_any_pace_ends_up_with_what_the_tree_holds(
    steps: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    """A small backlog is overrun again and again; the keys believed in at the end are those of blocks in the tree."""

    async def play() -> None:
        worker = CachingWorker()
        texts = [bytes([65 + n // 2]) * 300 + bytes([97 + n]) * 500 for n in range(6)]
        lines = worker.feed.lines()
        believed: set[int] = set()
        seq = -1

        async def read_all() -> None:
            nonlocal seq
            while seq != worker.feed._seq:
                for line in (await anext(lines)).splitlines():
                    frame = msgspec.json.decode(line, type=CacheFrame)
                    stored = set(unpack_keys(frame.stored))
                    if frame.snapshot:
                        believed.clear()
                    else:
                        assert frame.seq in (seq, seq + 1)
                    believed.difference_update(unpack_keys(frame.removed))
                    believed.update(stored)
                    seq = frame.seq

        await read_all()
        for kind, which, count in steps:
            if kind == "serve":
                text = texts[which]
                keys = prefix_keys(text, 1)
                worker.serve(text, header_value(keys, len(text)))
            elif kind == "evict":
                worker.evict(count)
            else:
                await read_all()
        await read_all()
        assert believed == set(worker.feed._present())
        blocks = {node.block for node in worker.tree.walk()}
        assert worker.feed._blocks == blocks
        await lines.aclose()  # type: ignore[attr-defined]

    backlog = data.draw(st.sampled_from([1, 3, 1000]))
    before, cache_feed.BACKLOG = cache_feed.BACKLOG, backlog
    try:
        asyncio.run(play())
    finally:
        cache_feed.BACKLOG = before
