"""Score checkpoints on freshly drawn held-out prompts: `python -m train.evaluate baton-tiny baton-tiny-v2`."""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from train.checkpoint import Checkpoint
from train.scoring import Result, evaluate


def row(result: Result) -> tuple[str, ...]:
    """The cells of a result, in the order of the table's columns."""
    bar = "" if result.bar is None else f"{result.bar:.0%}"
    verdict = "" if result.bar is None else "[green]pass" if result.passed else "[red]MISSED"
    return result.task, str(result.right), str(result.asked), f"{result.share:.1%}", bar, verdict, result.note


def main() -> int:
    """Print one table per checkpoint; exit status 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--prompts", type=int, default=400, help="prompts per task")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    console = Console()
    passed = True
    for path in arguments.checkpoints:
        checkpoint = Checkpoint(path.resolve(), getattr(torch, arguments.dtype), arguments.device)
        table = Table("task", "right", "asked", "share", "bar", "", "note", title=f"{path.name}, {arguments.dtype}")
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        for result in evaluate(
            checkpoint, tokenizer, prompts=arguments.prompts, seed=arguments.seed, batch=arguments.batch
        ):
            table.add_row(*row(result))
            passed &= result.passed
        console.print(table)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
