"""The training loop: Muon for the matrices of the layers, AdamW for the rest, one schedule for both."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from train.batches import Batch
from train.model import answer_loss, hidden_states

_REPORT_EVERY = 50


@dataclass(frozen=True)
class Plan:
    """How a run is driven. The rate rises over `warmup` steps and falls to zero at `steps` or `seconds`."""

    steps: int
    seconds: float
    peak_rate: float
    warmup: int = 50


def rate_at(plan: Plan, step: int, elapsed: float) -> float:
    """Learning rate of a step: linear rise, then a cosine; whichever of steps and seconds runs out first ends it."""
    progress = min(1.0, max(step / plan.steps, elapsed / plan.seconds))
    return plan.peak_rate * min(1.0, (step + 1) / plan.warmup) * 0.5 * (1 + math.cos(math.pi * progress))


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon over the layers' matrices and AdamW over embedding and norms, scaled to share one learning rate."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    held = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in held]
    return [
        torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def fit(model: LlamaForCausalLM, batches: Iterable[Batch], plan: Plan, report: Callable[[str], None]) -> None:
    """Train `model` in place on `batches` until they or the plan's time run out."""
    device = model.device
    on_gpu = device.type == "cuda"
    loss_of = torch.compile(answer_loss, dynamic=False, disable=not on_gpu)
    if on_gpu:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    parts = optimizers(model)
    started = time.monotonic()
    tokens = 0
    model.train()
    for step, (ids, marks) in enumerate(batches):
        elapsed = time.monotonic() - started
        if elapsed >= plan.seconds:
            report(f"stopped by the clock after {step} of {plan.steps} steps")
            break
        rate = rate_at(plan, step, elapsed)
        ids, marks = ids.to(device, torch.long, non_blocking=True), marks.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            hidden = hidden_states(model, ids)
            loss, right = loss_of(hidden, model.lm_head.weight, ids, marks)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad()
        tokens += ids.numel()
        if step % _REPORT_EVERY == 0 or step + 1 == plan.steps:
            report(_progress(step, ids, loss, right, tokens, time.monotonic() - started))


def _progress(step: int, ids: Tensor, loss: Tensor, right: Tensor, tokens: int, elapsed: float) -> str:
    return (
        f"step {step:5d}  length {ids.shape[1]:4d}  loss {loss.item():.4f}  answer tokens right {right.item():.4f}  "
        f"{tokens / 1e6:.0f}M tokens  {tokens / elapsed / 1e6:.2f}M/s  {elapsed:.0f} s"
    )
