"""`baton bench one-batch`: prefill and decode of one batch on the executor itself, beside their floors.

No scheduler, no sockets, no tokenizer: what is left is the model on this device. With `--scheduler-overhead` it is the
other way round: the scheduler without a model.
"""

from __future__ import annotations

import statistics
import tempfile
from argparse import ArgumentParser, Namespace

import msgspec
from rich.console import Console
from rich.table import Table
from torch import nn

from baton_serving.bench import scheduler_overhead
from baton_serving.bench.arguments import add_output_argument, count, positive, progress_bar, write_json
from baton_serving.bench.batch_runner import BatchRunner
from baton_serving.bench.floors import Ceilings, ModelCost, measure_ceilings, model_cost
from baton_serving.config import add_arguments as add_config_arguments
from baton_serving.config import config_from_args
from baton_serving.errors import ConfigError
from baton_serving.runtime.facts import resolve_here
from baton_serving.runtime.rank import Rank, build_rank

DEFAULT_BATCHES = (1, 16, 64)


class Result(msgspec.Struct, frozen=True):
    """Medians in milliseconds beside their floors, of `batch` prompts of `input_len` tokens."""

    batch: int
    input_len: int
    output_len: int
    prefill_ms: float
    prefill_floor_ms: float
    decode_ms: float
    decode_floor_ms: float


class Figures(msgspec.Struct, frozen=True):
    """Everything one run found; ceilings in GB/s and GFLOP/s."""

    device: str
    dtype: str
    copy_gb_per_s: float
    matmul_gflop_per_s: float
    results: list[Result]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the measurement, then every flag of the configuration tree."""
    group = parser.add_argument_group("measurement")
    group.add_argument("--batch-size", type=count, nargs="+", default=DEFAULT_BATCHES, help="rows (1 16 64)")
    group.add_argument("--input-len", type=count, default=1024, help="prompt tokens (%(default)s)")
    group.add_argument("--output-len", type=count, default=32, help="decode steps (%(default)s)")
    group.add_argument("--repeats", type=count, default=3, help="runs of which the median counts (%(default)s)")
    group.add_argument(
        "--scheduler-overhead", action="store_true", help="measure the scheduler loop on a stand-in instead"
    )
    group.add_argument("--step-ms", type=positive, default=5.0, help="the stand-in's step time (%(default)s)")
    add_output_argument(group)
    add_config_arguments(parser)


def run(args: Namespace) -> int:
    """Measure and print; weights are random unless `--load-format` says otherwise."""
    return _run_scheduler(args) if args.scheduler_overhead else _run_model(args)


def _run_scheduler(args: Namespace) -> int:
    console = Console()
    with progress_bar(console) as progress:
        overheads = [
            scheduler_overhead.measure(batch, 10 * args.output_len, args.step_ms / 1000)
            for batch in progress.track(args.batch_size, description="batch sizes")
        ]
    console.print(scheduler_overhead.table(overheads, args.step_ms / 1000))
    write_json(args, overheads)
    return 0


def _run_model(args: Namespace) -> int:
    console = Console()
    with tempfile.TemporaryDirectory() as folder, progress_bar(console) as progress:
        rank = _build(args, f"file://{folder}/ranks")
        device, dtype = rank.pool.device, rank.loaded.info.dtype
        ceilings, cost = measure_ceilings(device, dtype), _cost(rank)
        runner = BatchRunner(rank, args.input_len, args.output_len)
        results = [
            _measure(runner, cost, ceilings, batch, args.repeats)
            for batch in progress.track(args.batch_size, description="batch sizes")
        ]
    figures = Figures(
        str(device), str(dtype).removeprefix("torch."), ceilings.copy / 1e9, ceilings.matmul / 1e9, results
    )
    console.print(_table(figures))
    write_json(args, figures)
    return 0


def _build(args: Namespace, rendezvous: str) -> Rank:
    """The rank that the arguments describe, with room for the largest batch."""
    rows, length = max(args.batch_size), args.input_len + args.output_len
    args.load_format = getattr(args, "load_format", "dummy")
    args.max_running_requests = rows
    args.max_total_tokens = rows * (length + 2 * (getattr(args, "page_size", None) or 64))
    config = resolve_here(config_from_args(args))
    if config.tp_size != 1:
        raise ConfigError("bench one-batch measures one rank: leave --tp-size out")
    if config.context_length < length:
        raise ConfigError(
            f"--input-len and --output-len need {length} positions, the model has {config.context_length}: lower them"
        )
    return build_rank(config, 0, rendezvous)


def _cost(rank: Rank) -> ModelCost:
    model = rank.loaded.model
    if not isinstance(model, nn.Module):
        raise ConfigError("bench one-batch counts the weights of torch modules: take another --model-impl")
    return model_cost(model, rank.loaded.kv_layout, rank.loaded.heads.q_heads)


def _measure(runner: BatchRunner, cost: ModelCost, ceilings: Ceilings, batch: int, repeats: int) -> Result:
    runner.prefill(batch)  # warms up
    prefills, decodes = [], []
    for _ in range(repeats):
        prefills.append(runner.prefill(batch))
        decodes.append(runner.decode(batch))
    context = runner.input_len + runner.output_len // 2
    return Result(
        batch=batch,
        input_len=runner.input_len,
        output_len=runner.output_len,
        prefill_ms=1000 * statistics.median(prefills),
        prefill_floor_ms=1000 * cost.prefill_seconds(batch, runner.input_len, ceilings),
        decode_ms=1000 * statistics.median(decodes),
        decode_floor_ms=1000 * cost.decode_seconds(batch, context, ceilings),
    )


def _table(figures: Figures) -> Table:
    result = Table("batch", "prefill ms", "floor", "of floor", "decode ms", "floor", "of floor")
    result.title = (
        f"{figures.device}, {figures.dtype}; ceilings: copy {figures.copy_gb_per_s:,.0f} GB/s, "
        f"matmul {figures.matmul_gflop_per_s:,.0f} GFLOP/s"
    )
    for row in figures.results:
        result.add_row(
            f"{row.batch} × {row.input_len}",
            *_beside_floor(row.prefill_ms, row.prefill_floor_ms),
            *_beside_floor(row.decode_ms, row.decode_floor_ms),
        )
    return result


def _beside_floor(found: float, floor: float) -> tuple[str, str, str]:
    return f"{found:.2f}", f"{floor:.2f}", f"{floor / found:.2f}"
