"""Through HTTP and the gateway: one worker, two undivided ones, and one prefill and one decode worker on two GPUs.

    python benchmarks/gpu/serving.py --arrangement one two split [--json FILE]

Qwen3-8B's shape with random weights in bfloat16, every worker with its GPU, all processes on this host. Loads are 256
prompts at once, and concurrency 32 and 1, of 1,024 tokens in and 256 out; and one prompt at a time of 1,024 and 8,192
tokens with two tokens out, for the time to the first one. `--tiny` takes a model that a CPU can serve.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from baton_serving.local.service import LocalService

SHAPE = Path(__file__).with_name("qwen3_8b.json")
TINY: dict[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "vocab_size": 512,
}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "dtype": "float32"}
BENCH_SECONDS = 300


@dataclass(frozen=True)
class Load:
    name: str
    prompts: int
    input_len: int
    output_len: int
    concurrency: int

    def arguments(self, seed: int) -> list[str]:
        """For `baton bench serving`; every load needs a seed of its own, or the next finds its prompts cached."""
        lengths = ["--input-len", str(self.input_len), "--output-len", str(self.output_len)]
        warm = str(min(self.concurrency, 4))
        return [
            *lengths,
            "--num-prompts",
            str(self.prompts),
            "--max-concurrency",
            str(self.concurrency),
            "--warmup",
            warm,
            "--seed",
            str(seed),
        ]


LOADS = (
    Load("1k alone", 12, 1024, 2, 1),
    Load("8k alone", 6, 8192, 2, 1),
    Load("concurrency 1", 4, 1024, 256, 1),
    Load("concurrency 32", 128, 1024, 256, 32),
    Load("256 at once", 256, 1024, 256, 256),
)
TINY_LOADS = (Load("alone", 4, 100, 2, 1), Load("concurrency 8", 16, 100, 16, 8))


def manifest(folder: Path, arrangement: str, arguments: argparse.Namespace) -> Path:
    """Written into `folder`, beside the model's config.json."""
    flags = ["--load-format", "dummy", "--skip-tokenizer-init", "--random-seed", "1", *arguments.worker_flag]
    split = arrangement == "split"
    document = {
        "apiVersion": "baton.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "bench"},
        "spec": {
            "model": {"uri": "file://model", "servedName": "model"},
            "prefill": {"replicas": int(split), "extraArgs": [*flags, *arguments.prefill_flag]},
            "decode": {"replicas": 2 if arrangement == "two" else 1, "extraArgs": flags},
            "transfer": {"backend": arguments.backend, "protocol": arguments.protocol},
        },
    }
    path = folder / f"{arrangement}.json"
    path.write_text(json.dumps(document))
    return path


def measure(service: LocalService, loads: tuple[Load, ...], vocab_size: int, folder: Path) -> Iterator[dict[str, Any]]:
    """What `baton bench serving` finds for each load."""
    for seed, load in enumerate(loads):
        found = folder / "found.json"
        command = [sys.executable, "-m", "baton_serving.cli.main", "bench", "serving", "--url", service.url]
        command += [
            "--api",
            "native",
            "--vocab-size",
            str(vocab_size),
            "--output-json",
            str(found),
            *load.arguments(seed),
        ]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BENCH_SECONDS)
        if not found.exists():
            raise SystemExit(f"{load.name}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
        figures = json.loads(found.read_text())
        found.unlink()
        yield {"load": load.name, "wall": time.perf_counter() - begin, **figures}


def millis(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} ms"


def show(console: Console, arrangement: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=arrangement, title_justify="left")
    for column in ("load", "tok/s", "TTFT p50", "TTFT p99", "TPOT p50", "ITL p99", "failed"):
        table.add_column(column, justify="left" if column == "load" else "right")
    for row in rows:
        times = [row["ttft"]["p50"], row["ttft"]["p99"], row["tpot"]["p50"], row["itl"]["p99"]]
        failed = sum(row["errors"].values())
        table.add_row(row["load"], f"{row['output_throughput']:.0f}", *map(millis, times), str(failed))
    console.print(table)


def main() -> None:
    """Measure the arrangements one after the other; figures are written after each load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arrangement", nargs="+", choices=["one", "two", "split"], default=["two", "split"])
    parser.add_argument("--backend", choices=["mooncake", "nixl"], default="mooncake")
    parser.add_argument("--protocol", choices=["nvlink", "tcp"], default="nvlink")
    parser.add_argument("--only", nargs="+", help="loads by name")
    parser.add_argument("--worker-flag", action="append", default=[], help="a word for every worker's command line")
    parser.add_argument("--prefill-flag", action="append", default=[], help="a word for the prefill worker's")
    parser.add_argument("--tiny", action="store_true", help="a tiny model")
    parser.add_argument("--json", type=Path, help="write all figures here as well")
    parser.add_argument("--verbose", action="store_true", help="show the workers' log lines")
    arguments = parser.parse_args()
    config = json.loads(SHAPE.read_text()) | (TINY if arguments.tiny else {})
    loads: tuple[Load, ...] = TINY_LOADS if arguments.tiny else LOADS
    if arguments.only:
        loads = tuple(load for load in loads if load.name in arguments.only)
    figures: dict[str, list[dict[str, Any]]] = {}
    console = Console(width=120)

    def hear(name: str, line: str) -> None:
        if arguments.verbose:
            print(f"{name}: {line}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "model/config.json").write_text(json.dumps(config))
        for arrangement in arguments.arrangement:
            begin = time.perf_counter()
            path = manifest(folder, arrangement, arguments)
            rows = figures[arrangement] = []
            with LocalService(path, undivided=arrangement != "split", restart=False, on_line=hear) as service:
                console.print(f"{arrangement}: ready after {time.perf_counter() - begin:.1f} s")
                for row in measure(service, loads, int(str(config["vocab_size"])), folder):
                    rows.append(row)
                    if arguments.json:
                        arguments.json.write_text(json.dumps(figures, indent=1))
            show(console, arrangement, rows)


if __name__ == "__main__":
    main()
