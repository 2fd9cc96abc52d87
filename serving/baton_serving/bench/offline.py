"""`baton bench offline`: throughput of a worker inside this process, through the Python engine, without HTTP."""

from __future__ import annotations

import asyncio
import time
from argparse import ArgumentParser, Namespace

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from baton_serving.bench.arguments import (
    add_output_argument,
    add_workload_arguments,
    make_items,
    progress_bar,
    write_json,
)
from baton_serving.bench.workload import Item
from baton_serving.config import add_arguments as add_config_arguments
from baton_serving.config import config_from_args
from baton_serving.runtime.engine import Completion, Engine


class Throughput(msgspec.Struct, frozen=True):
    """One run: every request was given to the engine at once."""

    seconds: float
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    requests_per_second: float
    prompt_tokens_per_second: float
    output_tokens_per_second: float


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the requests, then every flag of the configuration tree."""
    add_workload_arguments(parser)
    add_output_argument(parser)
    add_config_arguments(parser)


def run(args: Namespace) -> int:
    """Start an engine, generate, print the throughput."""
    console = Console()
    with Engine(config_from_args(args)) as engine:
        items = make_items(args, engine.facts.rank.vocab_size)
        with progress_bar(console) as progress:
            figures = asyncio.run(_measure(engine, items, args, progress))
    console.print(_table(figures))
    write_json(args, figures)
    return 0


async def _measure(engine: Engine, items: list[Item], args: Namespace, progress: Progress) -> Throughput:
    task = progress.add_task("requests", total=len(items))

    async def one(item: Item) -> Completion:
        params = {
            "max_new_tokens": item.output_tokens,
            "temperature": args.temperature,
            "ignore_eos": not args.stop_at_eos,
        }
        answer = await engine.async_generate(item.prompt, params)
        progress.advance(task)
        return answer if isinstance(answer, Completion) else answer[0]

    begin = time.perf_counter()
    answers = await asyncio.gather(*map(one, items))
    seconds = time.perf_counter() - begin
    prompt = sum(answer.prompt_tokens for answer in answers)
    output = sum(len(answer.token_ids) for answer in answers)
    return Throughput(
        seconds=seconds,
        requests=len(items),
        prompt_tokens=prompt,
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        completion_tokens=output,
        requests_per_second=len(items) / seconds,
        prompt_tokens_per_second=prompt / seconds,
        output_tokens_per_second=output / seconds,
    )


def _table(figures: Throughput) -> Table:
    result = Table("offline throughput", "", title_justify="left")
    result.add_row("requests", f"{figures.requests} in {figures.seconds:.2f} s")
    result.add_row("requests per second", f"{figures.requests_per_second:.2f}")
    result.add_row(
        "prompt tokens per second",
        f"{figures.prompt_tokens_per_second:.0f} ({figures.prompt_tokens} in all, {figures.cached_tokens} cached)",
    )
    result.add_row(
        "output tokens per second", f"{figures.output_tokens_per_second:.0f} ({figures.completion_tokens} in all)"
    )
    return result
