"""Command-line arguments that the benchmarks share, and what is made of them."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace, _ArgumentGroup
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from baton_serving.bench.workload import Item, Lengths, random_items, shared_prefix_items, trace_items
from baton_serving.errors import ConfigError

DATASETS = ("random", "shared-prefix", "trace")


def add_workload_arguments(parser: ArgumentParser) -> None:
    """What is asked for: see `make_items`."""
    group = parser.add_argument_group("requests")
    group.add_argument("--dataset", choices=DATASETS, default="random", help="kind of prompts (%(default)s)")
    group.add_argument("--num-prompts", type=count, help="requests (100, or the whole trace)")
    group.add_argument("--input-len", type=count, default=512, help="prompt tokens (%(default)s)")
    group.add_argument("--output-len", type=count, default=64, help="tokens to generate (%(default)s)")
    group.add_argument(
        "--range-ratio", type=fraction, default=1.0, help="lengths are even from this part of them up (%(default)s)"
    )
    group.add_argument("--prefix-len", type=count, default=512, help="shared-prefix: prefix tokens (%(default)s)")
    group.add_argument("--groups", type=count, default=8, help="shared-prefix: different prefixes (%(default)s)")
    group.add_argument("--trace", type=Path, help="trace: JSON lines in Mooncake's format")
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    group.add_argument("--stop-at-eos", action="store_true", help="let the model end early")
    group.add_argument("--seed", type=int, default=0, help="of everything that is drawn (%(default)s)")


def add_output_argument(parser: ArgumentParser | _ArgumentGroup) -> None:
    """Where the figures go: see `write_json`."""
    parser.add_argument("--output-json", type=Path, help="write the figures there")


def make_items(args: Namespace, vocab_size: int) -> list[Item]:
    """The requests that the parsed arguments describe (ConfigError when they do not fit together)."""
    lengths = Lengths(args.input_len, args.output_len, args.range_ratio)
    number = args.num_prompts or 100
    if args.dataset == "trace":
        if args.trace is None:
            raise ConfigError("--dataset trace needs --trace FILE")
        return trace_items(args.trace, vocab_size, args.num_prompts)
    if args.dataset == "shared-prefix":
        return shared_prefix_items(number, args.groups, args.prefix_len, lengths, vocab_size, args.seed)
    return random_items(number, lengths, vocab_size, args.seed)


def write_json(args: Namespace, figures: object) -> None:
    """Write `figures` as indented JSON where the arguments say, if they do."""
    if args.output_json is not None:
        args.output_json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")


def progress_bar(console: Console) -> Progress:
    """A bar with counts and time, to be entered as a context."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


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
