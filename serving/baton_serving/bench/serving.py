"""`baton bench serving`: latency and throughput of a running endpoint, OpenAI-compatible or native."""

from __future__ import annotations

import asyncio
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from baton_serving.bench.client import Client, Outcome
from baton_serving.bench.load import Pace, disconnects, offer
from baton_serving.bench.protocols import ROUTES, Sampling
from baton_serving.bench.report import Summary, summarise, tables
from baton_serving.bench.workload import Item, Lengths, random_items, shared_prefix_items, trace_items
from baton_serving.errors import ConfigError

DATASETS = ("random", "shared-prefix", "trace")


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the server, the requests, their pace and the output."""
    server = parser.add_argument_group("server")
    server.add_argument("--url", default="http://127.0.0.1:30000", help="base URL of the endpoint (%(default)s)")
    server.add_argument("--api", choices=tuple(ROUTES), default="completions", help="route to use (%(default)s)")
    server.add_argument("--model", help="model name to ask for (default: the first of /v1/models)")
    server.add_argument("--api-key", help="sent as a bearer token")
    server.add_argument("--timeout", type=positive, default=600.0, help="seconds for one request (%(default)s)")
    requests = parser.add_argument_group("requests")
    requests.add_argument("--dataset", choices=DATASETS, default="random", help="kind of prompts (%(default)s)")
    requests.add_argument("--num-prompts", type=count, default=None, help="requests (default: 100, or the whole trace)")
    requests.add_argument("--input-len", type=count, default=512, help="prompt tokens (%(default)s)")
    requests.add_argument("--output-len", type=count, default=64, help="tokens to generate (%(default)s)")
    requests.add_argument(
        "--range-ratio", type=fraction, default=1.0, help="lengths are even from this part of them up (%(default)s)"
    )
    requests.add_argument("--prefix-len", type=count, default=512, help="shared-prefix: prefix tokens (%(default)s)")
    requests.add_argument("--groups", type=count, default=8, help="shared-prefix: different prefixes (%(default)s)")
    requests.add_argument("--trace", type=Path, help="trace: JSON lines in Mooncake's format")
    requests.add_argument("--vocab-size", type=count, default=256, help="token ids are below this (%(default)s)")
    requests.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    requests.add_argument("--stop-at-eos", action="store_true", help="let the model end early")
    requests.add_argument("--disconnect", type=fraction, default=0.0, help="part of clients that leave (%(default)s)")
    requests.add_argument("--seed", type=int, default=0, help="of prompts, arrivals and disconnects (%(default)s)")
    pace = parser.add_argument_group("pace")
    pace.add_argument("--request-rate", type=positive, help="Poisson arrivals a second (default: all at once)")
    pace.add_argument("--max-concurrency", type=count, help="requests in flight at most (default: no limit)")
    pace.add_argument("--warmup", type=int, default=1, help="requests before the clock starts (%(default)s)")
    parser.add_argument("--output-json", type=Path, help="write the figures there")


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def fraction(text: str) -> float:
    """A number between 0 and 1, for argparse."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a number") from error


def run(args: Namespace) -> int:
    """Run the benchmark; exit status 1 when a request failed or got no terminal reply."""
    items = make_items(args)
    console = Console()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        summary = asyncio.run(_measure(args, items, progress))
    for table in tables(summary):
        console.print(table)
    if args.output_json is not None:
        args.output_json.write_bytes(msgspec.json.format(msgspec.json.encode(summary)))
    return 0 if summary.clean else 1


def make_items(args: Namespace) -> list[Item]:
    """The requests that the parsed arguments describe (ConfigError when they do not fit together)."""
    lengths = Lengths(args.input_len, args.output_len, args.range_ratio)
    number = args.num_prompts or 100
    if args.dataset == "trace":
        if args.trace is None:
            raise ConfigError("--dataset trace needs --trace FILE")
        return trace_items(args.trace, args.vocab_size, args.num_prompts)
    if args.dataset == "shared-prefix":
        return shared_prefix_items(number, args.groups, args.prefix_len, lengths, args.vocab_size, args.seed)
    return random_items(number, lengths, args.vocab_size, args.seed)


async def _measure(args: Namespace, items: list[Item], progress: Progress) -> Summary:
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    timeout = aiohttp.ClientTimeout(total=args.timeout, sock_connect=10)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        model = await _model_name(session, args)
        route = ROUTES[args.api]
        client = Client(session, args.url, route)
        sampling = Sampling(args.temperature, not args.stop_at_eos)
        for item in items[: args.warmup]:
            await client.send(route.body(item, model, sampling))
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
