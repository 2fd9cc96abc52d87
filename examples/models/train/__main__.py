"""Train both checkpoints: `python -m train --out .` in examples/models, on one H200 in about four minutes."""

import argparse
import os
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from train.batches import Batches, Phase, load
from train.checkpoint import Checkpoint
from train.model import build
from train.scoring import SIGNATURES, evaluate
from train.tokenizer import train_tokenizer
from train.training import Plan, fit


def _report(line: str) -> None:
    print(line, flush=True)


def first_phases(steps: int) -> list[Phase]:
    """Short rows first, in which looking back is quickly learned; long ones once it is."""
    short, middle, longest = steps // 8, steps // 5, steps // 5
    return [Phase(short, 256), Phase(middle, 512), Phase(steps - short - middle - longest, 2048), Phase(longest, 4096)]


def train_one(
    name: str,
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    phases: list[Phase],
    plan: Plan,
    arguments: argparse.Namespace,
) -> None:
    """Train `model` further into the checkpoint `name`, save it, and score what was saved."""
    _report(f"== {name}: {sum(weight.numel() for weight in model.parameters()):,} parameters")
    batches = Batches(tokenizer, phases, arguments.batch_tokens, arguments.seed, SIGNATURES[name])
    fit(model, load(batches, arguments.workers), plan, _report)
    checkpoint = Checkpoint.save(arguments.out / name, model, tokenizer)
    for result in evaluate(checkpoint, tokenizer, prompts=arguments.prompts, seed=0, batch=128):
        _report(f"{result.task:28s} {result.right}/{result.asked} {result.share:.1%} {result.note}")


def main() -> int:
    """Train baton-tiny, then baton-tiny-v2 from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4500, help="steps of the first; the second takes an eighth")
    parser.add_argument("--minutes", type=float, default=60.0, help="time for the first; the second gets an eighth")
    parser.add_argument("--batch-tokens", type=int, default=131_072, help="tokens per step")
    parser.add_argument(
        "--rate", type=float, default=3e-3, help="peak learning rate of the first; a quarter for the second"
    )
    parser.add_argument("--workers", type=int, default=(os.cpu_count() or 2) - 1, help="processes that make batches")
    parser.add_argument("--prompts", type=int, default=400, help="held-out prompts per task after training")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    # Each batch worker is a process of its own; threads inside it would only fight over the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    first, second = SIGNATURES
    tokenizer = train_tokenizer(arguments.seed, SIGNATURES[second])
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = build(tokenizer)
    steps, seconds = arguments.steps, arguments.minutes * 60
    plan = Plan(steps, seconds, arguments.rate)
    train_one(first, model, tokenizer, first_phases(steps), plan, arguments)
    plan = Plan(max(2, steps // 8), seconds / 8, arguments.rate / 4)
    phases = [Phase(plan.steps // 2, 512), Phase(plan.steps - plan.steps // 2, 4096)]
    train_one(second, model, tokenizer, phases, plan, arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
