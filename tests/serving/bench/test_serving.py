"""The client and the whole command against a real HTTP server that streams tokens, or misbehaves on request."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from baton_serving.bench import serving
from baton_serving.bench.client import Client, Disconnect, Ending, Outcome
from baton_serving.bench.protocols import ROUTES
from baton_serving.config.parser import OneLineParser
from baton_serving.errors import ConfigError


class Server:
    """Speaks /v1/completions; the prompt's first token says how: 0 well, 1 refuses, 2 errors, 3 breaks off, 4 hangs."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.app = web.Application()
        self.app.router.add_post("/v1/completions", self.complete)
        self.app.router.add_get("/v1/models", self.models)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        kind, wanted = body["prompt"][0], body["max_tokens"]
        if kind == 1:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for index in range(wanted):
                choice = {"text": "x", "finish_reason": "length" if index == wanted - 1 else None}
                # Cut in the middle of an event: the client must put the pieces together.
                event = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
                await response.write(event[:9])
                await response.write(event[9:])
                if kind == 4:
                    await asyncio.sleep(30)
        except (ConnectionResetError, asyncio.CancelledError):
            self.gone.set()
            raise
        if kind == 2:
            await response.write(b'data: {"error": {"message": "lost a worker"}}\n\n')
        elif kind == 0:
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": wanted}
            await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
            await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    runner = TestServer(server.app, handler_cancellation=True)
    await runner.start_server()
    yield server, str(runner.make_url("/"))
    await runner.close()


async def send(url: str, kind: int, disconnect: Disconnect | None = None) -> Outcome:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        client = Client(session, url, ROUTES["completions"])
        return await client.send({"prompt": [kind, 7], "max_tokens": 5}, disconnect)


async def test_a_complete_stream_is_done_with_its_counts(server: tuple[Server, str]) -> None:
    outcome = await send(server[1], 0)
    assert (outcome.ending, outcome.error) == (Ending.DONE, "")
    assert (outcome.prompt_tokens, outcome.completion_tokens, len(outcome.chunks)) == (2, 5, 5)
    assert outcome.started < outcome.chunks[0] <= outcome.chunks[-1] <= outcome.ended


async def test_each_bad_ending_is_told_apart(server: tuple[Server, str]) -> None:
    refused, errored, broken = [await send(server[1], kind) for kind in (1, 2, 3)]
    assert (refused.ending, refused.error[:4]) == (Ending.FAILED, "400:")
    assert errored.ending is Ending.FAILED
    assert "lost a worker" in errored.error
    assert (broken.ending, broken.error) == (Ending.LOST, "the stream ended without its end mark")
    assert len(broken.chunks) == 5


async def test_a_client_leaves_mid_stream_and_the_server_notices(server: tuple[Server, str]) -> None:
    assert (await send(server[1], 4, Disconnect(1, 0.0))).ending is Ending.DISCONNECTED
    await asyncio.wait_for(server[0].gone.wait(), 10)
    assert (await send(server[1], 4, Disconnect(0, 0.05))).ending is Ending.DISCONNECTED
    assert (await send(server[1], 0, Disconnect(9, 0.0))).ending is Ending.DONE


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    assert (await send("http://127.0.0.1:9", 0)).ending is Ending.FAILED


@pytest.fixture
def url() -> Iterator[str]:
    """The same server in a thread of its own: `run` brings its own event loop."""
    started, urls = threading.Event(), list[str]()
    loop = asyncio.new_event_loop()

    async def start() -> TestServer:
        runner = TestServer(Server().app)
        await runner.start_server()
        urls.append(str(runner.make_url("/")))
        started.set()
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.close())

    thread = threading.Thread(target=serve)
    thread.start()
    assert started.wait(20)
    yield urls[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def run(*argv: str) -> int:
    parser = OneLineParser("baton bench serving", "")
    serving.add_arguments(parser)
    return serving.run(parser.parse(argv))


def test_the_command_measures_and_writes_json(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    arguments = ["--url", url, "--num-prompts", "12", "--input-len", "3", "--output-len", "6", "--vocab-size", "1"]
    assert run(*arguments, "--max-concurrency", "4", "--output-json", str(output)) == 0
    figures = json.loads(output.read_text())
    assert (figures["requests"], figures["endings"]["done"]) == (12, 12)
    assert (figures["prompt_tokens"], figures["completion_tokens"]) == (36, 72)
    assert figures["ttft"]["count"] == 12
    assert "time to first token" in capsys.readouterr().out


def test_the_command_fails_when_requests_do(url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 600, "output_length": 2, "hash_ids": [1, 2]}\n' * 3)
    assert run("--url", url, "--dataset", "trace", "--trace", str(trace), "--vocab-size", "1") == 0
    assert run("--url", url, "--num-prompts", "30", "--input-len", "1", "--output-len", "2", "--vocab-size", "4") == 1


def test_what_cannot_work_is_said_before_the_start(url: str) -> None:
    with pytest.raises(ConfigError, match="no server answers"):
        run("--url", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="--trace FILE"):
        run("--url", url, "--dataset", "trace")
    for argument in ("--request-rate=0", "--disconnect=1.5", "--num-prompts=-1", "--timeout=nan", "--input-len=x"):
        with pytest.raises(ConfigError, match=argument.partition("=")[0]):
            run("--url", url, argument)
