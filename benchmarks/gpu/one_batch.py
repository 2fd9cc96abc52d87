"""Decode and prefill of one batch on one GPU, beside their floors: Qwen3-8B's shape with random weights in bfloat16.

Run it from a checkout: `python benchmarks/gpu/one_batch.py [--json FILE] [--profile] [--quick]`. Steps go through the
worker's executor as the scheduler orders them: the next one is launched before the last one's tokens are read. The KV
that decode steps read is random. Ceilings are measured in the same run: a copy within the device, counting bytes read
and written, and a square bfloat16 product of random numbers. Floors are 16.4 GB of weights plus the batch's KV over the
copy rate (decode), and the FLOPs of projections, causal attention and the last rows' head over the product's rate
(prefill), and both added up for few new tokens on a cached prefix; with `--tp`, one of that many parts of each. With
`--flag quantization=fp8` projections have half the bytes and the rate of a square product of 8-bit floats, and with
`--flag kv_cache_dtype=fp8_e4m3` the KV has half the bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import torch

from baton_kernels.quantize import quantize_rows_torch
from baton_serving.config import config_from_values
from baton_serving.runtime.facts import resolve_here
from baton_serving.runtime.rank import Rank, build_rank
from baton_serving.sampling.params import SamplingParams, SlotSetup
from baton_serving.scheduling.step import PageWrite, StepPlan

SHAPE = Path(__file__).with_name("qwen3_8b.json")
WEIGHT_BYTES, KV_TOKEN_BYTES = 16.4e9, 147_456
TOKEN_FLOPS, HEAD_FLOPS = 2 * 6.946e9, 2 * 4096 * 151936
DECODE = [(1024, n) for n in (1, 16, 64, 128, 256)] + [(4096, n) for n in (1, 64, 128)]
PREFILL = [(1, 1024), (1, 8192), (4, 4096)]
EXTEND = (16, 64, 256)  # new tokens on a prefix of PREFIX
PREFIX = 4096
SIZE = 64  # tokens of a page


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a copy, and FLOP per second of products in bfloat16 and in 8-bit floats. `weight_bytes` and
    `kv_bytes` (of a token) are what the configuration makes of the model."""

    copy: float
    product: float
    product8: float
    weight_bytes: float = WEIGHT_BYTES
    kv_bytes: float = KV_TOKEN_BYTES
    layers_product: float = 0.0

    def of(self, extra: dict[str, object]) -> Ceilings:
        """For a configuration with the flags `extra`."""
        eight = extra.get("quantization") == "fp8"
        narrow = str(extra.get("kv_cache_dtype", "")).startswith("fp8")
        return replace(
            self,
            weight_bytes=WEIGHT_BYTES - (TOKEN_FLOPS / 2 if eight else 0.0),
            kv_bytes=KV_TOKEN_BYTES / (2 if narrow else 1),
            layers_product=self.product8 if eight else self.product,
        )

    def parts(self, number: int) -> Ceilings:
        """Of that many GPUs together."""
        faster = {name: number * getattr(self, name) for name in ("copy", "product", "product8", "layers_product")}
        return replace(self, **faster)


class Runner:
    """Orders steps of an executor as a scheduler would; every slot owns pages for `longest` tokens."""

    def __init__(self, rank: Rank, params: SamplingParams) -> None:
        self._executor = rank.executor
        self._pages = rank.pool.pages
        self._params = params
        self._step = 0

    def decode(self, context: int, batch: int, steps: int) -> list[float]:
        """Seconds between the ends of consecutive steps in the middle of which a row holds `context` tokens."""
        pending, ends = None, []
        for number in range(steps):
            plan = self._plan(batch, context - steps // 2 + number, 1, given=False, set_up=number == 0)
            launched = self._executor.launch(plan)
            if pending is not None:
                pending.result()
                ends.append(time.perf_counter())
            pending = launched
        if pending is not None:
            pending.result()
        return [after - before for before, after in itertools.pairwise(ends)][2:]

    def prefill(self, batch: int, length: int, prefix: int = 0) -> float:
        """Seconds from the launch of one step to its tokens on the host."""
        plan = self._plan(batch, prefix, length, given=True, set_up=True)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        self._executor.launch(plan).result()
        return time.perf_counter() - begin

    def _plan(self, batch: int, start: int, length: int, given: bool, set_up: bool) -> StepPlan:
        self._step += 1
        width = -(-(start + length + 2 * SIZE) // SIZE)
        order = torch.randperm(self._pages)[: batch * width].add(1).tolist() if set_up else []
        return StepPlan(
            step=self._step,
            slots=list(range(batch)),
            starts=[start] * batch,
            lengths=[length] * batch,
            extend=[int(given)] * batch,
            tokens=torch.randint(0, 151936, (batch * length,)).tolist() if given else [],
            sample=[1] * batch,
            setups=[SlotSetup(slot, self._params, [], [17]) for slot in range(batch)] if set_up else [],
            page_writes=[PageWrite(slot, 0, 0, order[slot * width : (slot + 1) * width]) for slot in range(batch)]
            if set_up
            else [],
        )


def measure_ceilings() -> Ceilings:
    """Medians of 20."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = _median_seconds(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    wide = 2 * 8192**3 / _median_seconds(lambda: torch.mm(a, b, out=product))
    rows, columns = quantize_rows_torch(a), quantize_rows_torch(b)
    narrow = _median_seconds(
        lambda: torch._scaled_mm(
            rows.values,
            columns.values.t(),
            scale_a=rows.scales.unsqueeze(1),
            scale_b=columns.scales.unsqueeze(0),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
    )
    return Ceilings(2 * (4 << 30) / copy, wide, 2 * 8192**3 / narrow)


def _median_seconds(work: Callable[[], object], repeats: int = 20) -> float:
    for _ in range(3):
        work()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    millis: list[float] = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
    return statistics.median(millis) / 1000


def decode_floor(context: int, batch: int, ceilings: Ceilings) -> float:
    return (ceilings.weight_bytes + context * batch * ceilings.kv_bytes) / ceilings.copy


def prefill_floor(batch: int, length: int, ceilings: Ceilings, prefix: int = 0) -> float:
    attention = 36 * 4 * 4096 * length * (prefix + (length + 1) / 2)
    layers = length * TOKEN_FLOPS / ceilings.layers_product
    return batch * (layers + (attention + HEAD_FLOPS) / ceilings.product)


def extend_floor(length: int, ceilings: Ceilings) -> float:
    return decode_floor(PREFIX, 1, ceilings) + prefill_floor(1, length, ceilings, PREFIX)


def build(extra: dict[str, object], folder: Path, tp_rank: int = 0) -> Rank:
    """The rank with a pool full of random numbers."""
    values = {"model_path": str(folder), "load_format": "dummy", "device": "cuda", "random_seed": 1}
    values |= {"chunked_prefill_size": 16384, "max_total_tokens": 560_000, "context_length": 16384, **extra}
    rank = build_rank(resolve_here(config_from_values(values)), tp_rank, f"file://{folder}/ranks")
    for layer in range(36):
        for side in rank.pool.layer_kv(layer):
            if side.dtype.itemsize == 1:
                side.view(torch.uint8).random_(0, 0x38)  # below 1, and never NaN
            else:
                side.normal_()
    return rank


Profile = list[tuple[str, int, float]]


def _profile(work: Callable[[int], object], steps: int) -> Profile:
    """Kernels of `work(steps)` by time: name, calls a step, microseconds a step."""
    work(steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        work(steps)
        torch.cuda.synchronize()
    rows = [(e.key[:90], e.count // steps, e.self_device_time_total / steps) for e in found.key_averages()]
    return sorted(rows, key=lambda row: -row[2])[:14]


def idle_share(runner: Runner, batch: int, steps: int = 30) -> float:
    """Part of the second half of a run of decode steps in which nothing ran on the GPU."""
    runner.decode(1024, batch, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        runner.decode(1024, batch, steps)
        torch.cuda.synchronize()
    on_gpu = [e.time_range for e in found.events() if e.device_type.name == "CUDA"]
    spans: list[tuple[float, float]] = sorted((span.start, span.end) for span in on_gpu)
    begin, end = (spans[0][0] + spans[-1][1]) / 2, spans[-1][1]
    busy, reached = 0.0, begin
    for first, last in spans:
        busy += max(0.0, last - max(first, reached))
        reached = max(reached, last)
    return 1.0 - busy / (end - begin)


def _profiles(runner: Runner) -> dict[str, Profile]:
    profiles = {f"a decode step of {n} rows": _profile(partial(runner.decode, 1024, n), 8) for n in (1, 16, 64)}
    for length in (64, 1024, 8192):
        profiles[f"a prefill of {length} tokens"] = _profile(partial(_prefill_once, runner, length), 1)
    return profiles


def _prefill_once(runner: Runner, length: int, _: int) -> float:
    return runner.prefill(1, length)


def main() -> None:
    """Measure, print a table, and write all figures where `--json` says."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(SHAPE.read_text())
        if arguments.tp == 1:
            measure(arguments, Path(folder), 0)
            return
        context = multiprocessing.get_context("spawn")
        ranks = [
            context.Process(target=_measure_and_leave, args=(arguments, Path(folder), rank))
            for rank in range(arguments.tp)
        ]
        for process in ranks:
            process.start()
        wait([process.sentinel for process in ranks])  # the first to end is over, or the others wait for it for ever
        for process in ranks:
            process.join(10)
            process.kill()


def _measure_and_leave(arguments: argparse.Namespace, folder: Path, tp_rank: int) -> None:
    """Leaves without taking NCCL down, which hangs while CUDA graphs hold its collectives."""
    measure(arguments, folder, tp_rank)
    sys.stdout.flush()
    os._exit(0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures here as well")
    parser.add_argument("--quick", action="store_true", help="a few sizes, one run each")
    parser.add_argument("--profile", action="store_true", help="show where decode steps of 1 and 64 rows spend time")
    parser.add_argument("--sampled", action="store_true", help="temperature 1 and top-p 0.95 rather than greedy")
    parser.add_argument("--flag", action="append", default=[], metavar="NAME=VALUE", help="a worker flag to set")
    parser.add_argument("--tp", type=int, default=1, help="GPUs to split the model over")
    return parser.parse_args()


def measure(arguments: argparse.Namespace, folder: Path, tp_rank: int) -> None:
    """What one rank does: all launch the same steps, the first one speaks."""
    begin = time.perf_counter()
    torch.manual_seed(7)  # all ranks order the same steps
    torch.cuda.set_device(tp_rank)
    params = SamplingParams(temperature=1.0, top_p=0.95) if arguments.sampled else SamplingParams(temperature=0.0)
    extra: dict[str, object] = {"tp_size": arguments.tp, **dict(map(_flag, arguments.flag))}
    with torch.inference_mode():
        ceilings = measure_ceilings().of(extra)
        torch.cuda.empty_cache()
        rank = build(extra, folder, tp_rank)
        torch.manual_seed(8)
        runner = Runner(rank, params)
        speak = print if tp_rank == 0 else _silent
        speak(
            f"{torch.cuda.get_device_name()}: copy {ceilings.copy / 1e12:.3f} TB/s, product "
            f"{ceilings.product / 1e12:.1f} TFLOP/s, in 8 bits {ceilings.product8 / 1e12:.1f}"
        )
        speak(f"ready after {time.perf_counter() - begin:.1f} s; {rank.pool.pages} pages", flush=True)
        rows = list(_measure(runner, ceilings.parts(arguments.tp), arguments.quick, speak))
        if not arguments.quick or arguments.profile:
            speak(f"GPU idle at batch 64: {idle_share(runner, 64):.2%}", flush=True)
        profiles = _profiles(runner) if arguments.profile else {}
    for what, kernels in profiles.items():
        speak(f"\nkernels of {what}: {sum(row[2] for row in kernels):.0f} µs")
        for name, count, micros in kernels:
            speak(f"{micros:9.1f} µs  {count:4d} x  {name}")
    if arguments.json and tp_rank == 0:
        figures = {**asdict(ceilings), "rows": rows, "profiles": profiles}
        arguments.json.write_text(json.dumps(figures, indent=1))


def _flag(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    return name, True if value in ("", "true") else value


def _silent(*_: object, **__: object) -> None:
    pass


def _measure(
    runner: Runner, ceilings: Ceilings, quick: bool, speak: Callable[..., None]
) -> Sequence[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def note(what: str, found: list[float], floor: float) -> None:
        middle = statistics.median(found)
        rows.append(
            {"what": what, "ms": [1000 * x for x in found], "floor_ms": 1000 * floor, "of_floor": floor / middle}
        )
        spread = f"{1000 * min(found):.2f}-{1000 * max(found):.2f}"
        speak(
            f"{what:28s} {1000 * middle:8.2f} ms ({spread})  floor {1000 * floor:7.2f}  {floor / middle:.3f}",
            flush=True,
        )

    repeats = 1 if quick else 3
    for context, batch in [DECODE[0], DECODE[2]] if quick else DECODE:
        runner.decode(context, batch, 8)
        medians = [statistics.median(runner.decode(context, batch, 40)) for _ in range(repeats)]
        note(f"decode ctx {context} batch {batch}", medians, decode_floor(context, batch, ceilings))
    for batch, length in PREFILL[1:2] if quick else PREFILL:
        runner.prefill(batch, length)
        seconds = [runner.prefill(batch, length) for _ in range(max(2, repeats))]
        note(f"prefill {batch} x {length}", seconds, prefill_floor(batch, length, ceilings))
    for length in EXTEND:
        runner.prefill(1, length, PREFIX)
        seconds = [runner.prefill(1, length, PREFIX) for _ in range(5)]
        note(f"extend of {length} on {PREFIX}", seconds, extend_floor(length, ceilings))
    return rows


if __name__ == "__main__":
    main()
