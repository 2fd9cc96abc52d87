"""`baton bench serving`: latency and throughput of a running endpoint, OpenAI-compatible or native."""

from __future__ import annotations

import asyncio
import time
from argparse import ArgumentParser, Namespace
from dataclasses import replace

import aiohttp
import msgspec
from rich.console import Console
from rich.progress import Progress

from baton_serving.bench.arguments import (
    add_output_argument,
    add_workload_arguments,
    count,
    fraction,
    make_items,
    positive,
    progress_bar,
    write_json,
)
from baton_serving.bench.client import Client, Outcome
from baton_serving.bench.load import Pace, disconnects, offer
from baton_serving.bench.protocols import ROUTES, Sampling
from baton_serving.bench.report import Summary, summarise, tables
from baton_serving.bench.workload import Item
from baton_serving.errors import ConfigError


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the server, the requests, the clients' pace and the output."""
    server = parser.add_argument_group("server")
    server.add_argument("--url", default="http://127.0.0.1:30000", help="base URL of the endpoint (%(default)s)")
    server.add_argument("--api", choices=tuple(ROUTES), default="completions", help="route to use (%(default)s)")
    server.add_argument("--model", help="model name to ask for (default: the first of /v1/models)")
    server.add_argument("--api-key", help="sent as a bearer token")
    server.add_argument("--timeout", type=positive, default=600.0, help="seconds for one request (%(default)s)")
    add_workload_arguments(parser)
    parser.add_argument("--vocab-size", type=count, default=256, help="token ids are below this (%(default)s)")
    clients = parser.add_argument_group("clients")
    clients.add_argument("--disconnect", type=fraction, default=0.0, help="part of clients that leave (%(default)s)")
    clients.add_argument("--request-rate", type=positive, help="Poisson arrivals a second (default: all at once)")
    clients.add_argument("--max-concurrency", type=count, help="requests in flight at most (default: no limit)")
    clients.add_argument("--warmup", type=int, default=1, help="requests before the clock starts (%(default)s)")
    add_output_argument(parser)


def run(args: Namespace) -> int:
    """Run the benchmark; exit status 1 when a request failed or got no terminal reply."""
    items = make_items(args, args.vocab_size)
    console = Console()
    with progress_bar(console) as progress:
        summary = asyncio.run(_measure(args, items, progress))
    for table in tables(summary):
        console.print(table)
    write_json(args, summary)
    return 0 if summary.clean else 1


def _as_json(body: object) -> str:
    """Faster than the standard library's: all prompts at once should reach the server at once."""
    return msgspec.json.encode(body).decode()


async def _measure(args: Namespace, items: list[Item], progress: Progress) -> Summary:
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    timeout = aiohttp.ClientTimeout(total=args.timeout, sock_connect=10)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector, json_serialize=_as_json
    ) as session:
        model = await _model_name(session, args)
        route = ROUTES[args.api]
        client = Client(session, args.url, route)
        sampling = Sampling(args.temperature, not args.stop_at_eos)
        for item in items[: args.warmup]:
            other = replace(item, prompt=item.prompt[::-1])  # leaves nothing in the cache that the run could use
            await client.send(route.body(other, model, sampling))
        leaving = disconnects(items, args.disconnect, args.seed)
        task = progress.add_task("requests", total=len(items))

        async def send(index: int, item: Item) -> Outcome:
            return await client.send(route.body(item, model, sampling), leaving[index])

        begin = time.perf_counter()
        pace = Pace(args.request_rate, args.max_concurrency)
        outcomes = await offer(items, send, pace, args.seed, lambda _: progress.advance(task))
        return summarise(outcomes, time.perf_counter() - begin)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def _model_name(session: aiohttp.ClientSession, args: Namespace) -> str:
    """The name asked for, or the first that the server offers; also finds out whether a server answers at all."""
    url = args.url.rstrip("/") + "/v1/models"
    try:
        async with session.get(url) as response:
            status, body = response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ConfigError(f"no server answers at {args.url} ({error}): start one, or give its --url") from error
    if args.model or (args.api == "native" and status == 404):
        return args.model or ""
    if status != 200:
        raise ConfigError(f"{url} answers {status}: give --api-key if it wants one, or --model")
    try:
        return msgspec.json.decode(body, type=_Models).data[0].id
    except (msgspec.DecodeError, IndexError) as error:
        raise ConfigError(f"{url} names no model: give --model") from error
