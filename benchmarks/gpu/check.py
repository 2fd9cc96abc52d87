"""Correctness on the GPU this runs on: kernels against float64, attention on a pool beyond 2^31 elements, and models.

Run it from a checkout: `python benchmarks/gpu/check.py [--json FILE]`. Errors are ‖out - exact‖ / ‖exact‖ over fresh
random inputs; the exit code is 1 when one is over its bar. Models are compared with float32 on the CPU; in bfloat16
the bar is 1.5 times the error of transformers' own bfloat16 run on the same GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.paged_runner import PagedRunner
from support.tiny_models import DECODER_KINDS, write_tiny_checkpoint

from baton_kernels.activation import ACTIVATION_AND_MUL, ACTIVATIONS, activation_and_mul_torch
from baton_kernels.argmax import ARGMAX
from baton_kernels.kv_scale import UNSCALED, KVScale
from baton_kernels.linear import LINEAR
from baton_kernels.linear8 import LINEAR8
from baton_kernels.paged_attention import (
    DECODE_ATTENTION,
    EXTEND_ATTENTION,
    AttentionSpec,
    PagedAttention,
    PagedAttentionFactory,
    PagedRows,
    paged_attention_reference,
)
from baton_kernels.quantize import GATE_ROWS8, NORM_ROWS8, QUANTIZE_ROWS, Rows8, quantize_rows_torch
from baton_kernels.registry import KernelUnavailable
from baton_kernels.rms_norm import ADD_RMS_NORM, RMS_NORM, rms_norm_torch
from baton_kernels.rope import rope_table
from baton_kernels.rope_kv_write import ROPE_KV_WRITE, HeadNorm, keys_and_values, rope_kv_write_torch
from baton_serving.kv.layout import KVGroup, PageShape
from baton_serving.kv.pool import KVPool
from baton_serving.model.decoder import Kernels, Linear
from baton_serving.model.loading import load_model
from baton_serving.model.options import ModelOptions

GPU = torch.device("cuda")
BARS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}


@dataclass(frozen=True)
class Finding:
    what: str
    error: float
    bar: float

    @property
    def good(self) -> bool:
        return self.error <= self.bar  # also False for NaN


def error_of(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out.double() - exact.double()).norm() / exact.double().norm())


def check_small_ops() -> Iterator[Finding]:
    for dtype in (torch.float32, torch.bfloat16):
        bar, name = BARS[dtype], str(dtype).removeprefix("torch.")
        for rows, dim in ((1, 4096), (37, 4096), (300, 128), (5, 2560)):
            x, residual = (torch.randn(rows, dim, device=GPU).to(dtype) for _ in range(2))
            weight = torch.randn(dim, device=GPU).to(dtype)
            exact = rms_norm_torch(x.double(), weight.double(), 1e-6, 1.0)
            out = RMS_NORM.select(GPU, dtype)(x, weight, 1e-6, 1.0)
            yield Finding(f"rms_norm {name} {rows}x{dim}", error_of(out, exact), bar)
            total = residual.double() + x.double()
            out = ADD_RMS_NORM.select(GPU, dtype)(x.clone(), residual, weight, 1e-6)
            yield Finding(f"add_rms_norm sum {name} {rows}x{dim}", error_of(residual, total), bar)
            exact = rms_norm_torch(residual.double(), weight.double(), 1e-6)
            yield Finding(f"add_rms_norm {name} {rows}x{dim}", error_of(out, exact), bar)
        for activation in ACTIVATIONS:
            gate_up = torch.randn(19, 2 * 12288, device=GPU).to(dtype)
            exact = activation_and_mul_torch(gate_up.double(), activation)
            out = ACTIVATION_AND_MUL.select(GPU, dtype)(gate_up, activation)
            yield Finding(f"activation {activation} {name}", error_of(out, exact), bar)


def check_rope_kv_write() -> Iterator[Finding]:
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for q_heads, kv_heads, dim, rotary, normed in (
            (32, 8, 128, 128, True),
            (9, 3, 96, 64, False),
            (4, 1, 64, 64, 1),
        ):
            tokens, layers, size = 77, 3, 64
            qkv = torch.randn(tokens, (q_heads + 2 * kv_heads) * dim, device=GPU).to(dtype)
            weights = [torch.randn(dim, device=GPU).to(dtype) for _ in range(2)]
            norm = HeadNorm(weights[0], weights[1], 1e-6) if normed else None
            wide_norm = HeadNorm(weights[0].double(), weights[1].double(), 1e-6) if normed else None
            positions = torch.randperm(4096, device=GPU)[:tokens]
            pages = torch.randperm(200, device=GPU)[:tokens]
            table = rope_table(1e6 ** (-torch.arange(0, rotary, 2, device=GPU) / rotary), 4096)
            pools = [
                torch.zeros(200, kv_heads, layers, 2, size, dim, device=GPU, dtype=t) for t in (dtype, torch.float64)
            ]
            (k, v), (wide_k, wide_v) = ((pool[:, :, 1, 0], pool[:, :, 1, 1]) for pool in pools)
            exact = rope_kv_write_torch(
                qkv.double(), wide_norm, positions, table.double(), wide_k, wide_v, pages, positions % size
            )
            places = (pages, positions % size)
            out = ROPE_KV_WRITE.select(GPU, dtype)(qkv, norm, positions, table, k, v, *places, keep_keys=True)
            label = f"rope_kv_write {name} {q_heads}/{kv_heads} heads of {dim}"
            kept = [side[pages, :, positions % size] for side in (wide_k, wide_v)]
            for what, found, wanted in zip(("keys", "values"), keys_and_values(qkv, k, v), kept, strict=True):
                yield Finding(f"{label}, {what} kept", error_of(found, wanted), BARS[dtype])
            yield Finding(f"{label}, queries", error_of(out, exact), BARS[dtype])
            yield Finding(f"{label}, pages", error_of(pools[0], pools[1]), BARS[dtype])


def check_linear() -> Iterator[Finding]:
    several = [(rows, 4096, inputs) for rows in (3, 24, 64) for inputs in (4096, 12288)]
    for rows, outputs, inputs in ((1, 6144, 4096), (1, 4097, 12288), (1, 151936, 4096), *several):
        x, weight = (torch.randn(n, inputs, device=GPU).to(torch.bfloat16) for n in (rows, outputs))
        exact = x.double() @ weight.double().T
        out = LINEAR.select(GPU, x.dtype)(x, weight, None)
        yield Finding(f"linear {rows}x{inputs} by {outputs}", error_of(out, exact), BARS[x.dtype])
    layer = Linear(12288, 4096, False, Kernels(GPU, torch.bfloat16), torch.bfloat16)
    layer.weight = torch.nn.Parameter(torch.randn(4096, 12288, device=GPU).to(torch.bfloat16), requires_grad=False)
    x, residual = (torch.randn(1100, n, device=GPU).to(torch.bfloat16) for n in (12288, 4096))
    exact = residual.double() + x.double() @ layer.weight.double().T
    left = layer.add_to(residual, x)
    yield Finding("linear added to 1100 rows of the residual stream", error_of(residual, exact), BARS[x.dtype])
    yield Finding("and nothing left to add", float(left is not None), 0.0)


def check_argmax() -> Iterator[Finding]:
    for dtype, rows, vocab in (
        (torch.bfloat16, 1, 151936),
        (torch.bfloat16, 256, 151936),
        (torch.float32, 33, 129_280),
        (torch.float16, 3, 5),
    ):
        logits = torch.randn(rows, vocab, device=GPU).to(dtype)  # in 16 bits the largest is seldom alone
        logits[0, vocab // 2 :] = math.nan
        wrong = (ARGMAX.select(GPU, dtype)(logits) != logits.argmax(dim=-1)).sum()
        yield Finding(f"argmax of {rows} rows of {vocab} {str(dtype)[6:]}, rows that differ", float(wrong), 0.0)


def check_eight_bit_products() -> Iterator[Finding]:
    """Against the quantised operands in float64: what is left is rounding of sums and of the result."""
    for rows, outputs, inputs in (
        (1, 6144, 4096),
        (1, 4096, 12288),
        (16, 4096, 4096),
        (100, 6144, 4096),
        (700, 512, 4096),
    ):
        x, weight = (torch.randn(n, inputs, device=GPU).to(torch.bfloat16) for n in (rows, outputs))
        bias = torch.randn(outputs, device=GPU).to(torch.bfloat16)
        narrow, scale = quantize_rows_torch(weight)
        wide = narrow.double() * scale.double().unsqueeze(1)
        for name in ("cuda", "invariant"):
            product = LINEAR8.select(GPU, x.dtype, name)
            values, scales = quantize_rows_torch(x)
            used = values.double() * scales.double().unsqueeze(1)
            given = quantize_rows_torch(x) if rows > 1 or name == "invariant" else x
            used = used if isinstance(given, Rows8) else x.double()
            for added in (None, bias):
                exact = used @ wide.T + (0.0 if added is None else added.double())
                if added is not None and rows == 1 and name == "cuda":
                    continue  # quantised there
                found = error_of(product(given, narrow, scale, added, x.dtype), exact)
                label = f"linear8 {name} {rows}x{inputs} by {outputs}{'' if added is None else ' with bias'}"
                yield Finding(label, found, BARS[x.dtype])


def check_rows_of_eight_bits() -> Iterator[Finding]:
    """Fused and alone, bit by bit: 0 numbers may differ."""
    for rows, dim in ((1, 4096), (300, 4096), (5, 12288), (7, 2560)):
        x, residual = (torch.randn(rows, dim, device=GPU).to(torch.bfloat16) for _ in range(2))
        weight = torch.randn(dim, device=GPU).to(torch.bfloat16)
        pairs = [(QUANTIZE_ROWS.select(GPU, x.dtype)(x), quantize_rows_torch(x))]
        normed = ADD_RMS_NORM.select(GPU, x.dtype)(x.clone(), residual.clone(), weight, 1e-6, 0.0)
        fused = NORM_ROWS8.select(GPU, x.dtype)(x.clone(), residual.clone(), weight, 1e-6, 0.0)
        pairs.append((fused, quantize_rows_torch(normed)))
        gate_up = torch.randn(rows, 2 * dim, device=GPU).to(torch.bfloat16)
        gated = ACTIVATION_AND_MUL.select(GPU, x.dtype)(gate_up, "silu")
        pairs.append((GATE_ROWS8.select(GPU, x.dtype)(gate_up, "silu"), quantize_rows_torch(gated)))
        for what, (found, wanted) in zip(("rows", "norm", "gate"), pairs, strict=True):
            other = (found.values.view(torch.uint8) != wanted.values.view(torch.uint8)).float().mean()
            yield Finding(f"{what} to 8 bits {rows}x{dim}, numbers that differ", float(other), 1e-3)


def check_invariance() -> Iterator[Finding]:
    """Products of a row beside any others: numbers that differ, of which there may be none."""
    x, weight = (torch.randn(n, 4096, device=GPU).to(torch.bfloat16) for n in (700, 6144))
    narrow, scale = quantize_rows_torch(weight)
    rows8 = quantize_rows_torch(x)
    plain, eight = LINEAR.select(GPU, x.dtype, "invariant"), LINEAR8.select(GPU, x.dtype, "invariant")
    whole, whole8 = plain(x, weight, None), eight(rows8, narrow, scale, None, x.dtype)
    for n in (1, 2, 16, 17, 33, 64, 65, 128, 129, 300):
        other = float((plain(x[:n], weight, None) != whole[:n]).float().sum())
        yield Finding(f"linear invariant {n} of 700 rows, numbers that differ", other, 0.0)
        few = Rows8(rows8.values[:n], rows8.scales[:n])
        other = float((eight(few, narrow, scale, None, x.dtype) != whole8[:n]).float().sum())
        yield Finding(f"linear8 invariant {n} of 700 rows, numbers that differ", other, 0.0)


def random_rows(pool: KVPool, q_lens: tuple[int, ...], kv_lens: tuple[int, ...], first_page: int) -> PagedRows:
    """Rows on shuffled pages from `first_page` on; every place of these pages that no row covers is NaN."""
    size = pool.shape.page_size
    widths = [-(-kv // size) for kv in kv_lens]
    order = (torch.randperm(sum(widths)) + first_page).tolist()
    table = torch.zeros(len(kv_lens), max(widths) + 1, dtype=torch.int32)
    for row, (kv_len, width) in enumerate(zip(kv_lens, widths, strict=True)):
        for index in range(width):
            page = table[row, index] = order.pop()
            filled = min(size, kv_len - index * size)
            for layer in (0, pool.shape.layers - 1):
                for side in pool.layer_kv(layer):
                    cell = torch.full(side.shape[1:], math.nan, device=GPU)
                    cell[:, :filled].normal_()
                    # Pages of 8-bit floats are written by their bytes.
                    narrow = side.dtype.itemsize == 1
                    into, new = side[page], cell.to(side.dtype)
                    (into.view(torch.uint8) if narrow else into).copy_(new.view(torch.uint8) if narrow else new)
    lens = torch.tensor(kv_lens, dtype=torch.int32)
    return PagedRows(q_lens, kv_lens, table.to(GPU), lens.to(GPU))


def check_attention(
    pool: KVPool, base: AttentionSpec, first_page: int, note: str, scale: KVScale = UNSCALED
) -> Iterator[Finding]:
    cases = {
        DECODE_ATTENTION: [((1,) * 7, (5, 1, 700, 64, 65, 2047, 128)), ((1,), (1500,)), ((1,) * 40, (90,) * 40)],
        EXTEND_ATTENTION: [((3, 130, 1, 17), (20, 130, 1, 900)), ((257,), (600,)), ((70, 5, 300), (70, 5, 300))],
    }
    layer = pool.shape.layers - 1
    k_pages, v_pages = pool.layer_kv(layer)
    for op, shapes in cases.items():
        for implementation in op.implementations:
            for spec in (base, replace(base, window=100), replace(base, softcap=8.0)):
                worst = 0.0
                try:
                    backend = op.build(GPU, spec.dtype, partial(_call, spec), implementation.name)
                except KernelUnavailable:
                    continue
                for q_lens, kv_lens in shapes:
                    rows = random_rows(pool, q_lens, kv_lens, first_page)
                    q = torch.randn(sum(q_lens), spec.q_heads, spec.k_dim, device=GPU).to(spec.dtype)
                    exact = paged_attention_reference(q.double(), wide(k_pages), wide(v_pages), rows, spec, scale)
                    plan = backend.plan(rows)
                    k, v = k_pages, v_pages
                    if plan.reads_new:
                        k = (new_tokens(wide(k), rows) * scale.k).to(spec.dtype)
                        v = (new_tokens(wide(v), rows) * scale.v).to(spec.dtype)
                    found = error_of(plan.run(q, k, v, scale), exact)
                    worst = found if math.isnan(found) else max(worst, found)
                kind = "window" if spec.window else "softcap" if spec.softcap else "plain"
                yield Finding(f"{op.name} {implementation.name} {kind} {note}", worst, BARS[spec.dtype])


def new_tokens(pages: torch.Tensor, rows: PagedRows) -> torch.Tensor:
    """What the pages hold of rows that begin with their new tokens: `[tokens, kv_heads, dim]`."""
    size = pages.shape[2]
    held = [
        pages[table.long()].transpose(1, 2).flatten(0, 1)
        for table in rows.page_table[:, : -(-max(rows.q_lens) // size)]
    ]
    return torch.cat([row[:length] for row, length in zip(held, rows.q_lens, strict=True)])


def wide(pages: torch.Tensor) -> torch.Tensor:
    """Pages that torch can index: 8-bit floats as float32."""
    return pages.float() if pages.dtype.itemsize == 1 else pages


def _call(spec: AttentionSpec, factory: PagedAttentionFactory) -> PagedAttention:
    return factory(spec)


def make_pool(pages: int, dtype: str) -> KVPool:
    shape = PageShape(kv_heads=8, layers=36, page_size=64, k_dim=128, v_dim=128, dtype=dtype)
    return KVPool(shape, [KVGroup(tuple(range(36)))], pages, GPU)


def attention_spec(dtype: torch.dtype) -> AttentionSpec:
    return AttentionSpec(32, 8, 128, 128, 64, 128**-0.5, dtype, dtype, GPU)


def check_narrow_pools() -> Iterator[Finding]:
    for kv_dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        name = str(kv_dtype).removeprefix("torch.")
        pool = make_pool(120, name)
        spec = replace(attention_spec(torch.bfloat16), kv_dtype=kv_dtype)
        yield from check_attention(pool, spec, 1, name)
        yield from check_attention(pool, spec, 1, f"{name} scaled", KVScale(0.25, 3.0))
        tokens, heads, dim = 77, 8, 128
        qkv = torch.randn(tokens, (32 + 2 * heads) * dim, device=GPU) * 300  # some of it beyond e4m3's largest value
        places = (torch.randperm(120, device=GPU)[:tokens], torch.arange(tokens, device=GPU) % 64)
        table = rope_table(1e6 ** (-torch.arange(0, dim, 2, device=GPU) / dim), 4096)
        sides = [side[:, :, :, :].clone() for side in pool.layer_kv(0)]
        plain = [side.clone() for side in sides]
        arguments = (None, torch.arange(tokens, device=GPU), table)
        ROPE_KV_WRITE.select(GPU, torch.bfloat16)(qkv.clone().bfloat16(), *arguments, sides[0], sides[1], *places)
        rope_kv_write_torch(qkv.bfloat16().float(), *arguments, plain[0], plain[1], *places)
        for mine, exact, what in zip(sides, plain, ("keys", "values"), strict=True):
            found, wanted = (side.float()[places[0], :, places[1]] for side in (mine, exact))
            yield Finding(f"rope_kv_write {name} {what}", error_of(found, wanted), BARS[torch.bfloat16])


def check_pools() -> Iterator[Finding]:
    small = make_pool(120, "float32")
    yield from check_attention(small, attention_spec(torch.float32), 1, "float32")
    del small
    large = make_pool(2000, "bfloat16")  # 9.4e9 elements
    yield from check_attention(large, attention_spec(torch.bfloat16), 1, "bfloat16")
    yield from check_attention(large, attention_spec(torch.bfloat16), 1860, "bfloat16 beyond 2^31")


def teacher_forced(path: Path, dtype: str, device: torch.device, tokens: list[int]) -> torch.Tensor:
    """Logits of all `tokens`: in chunks, then one by one."""
    page_size = 64 if device.type == "cuda" else 16
    loaded = load_model(ModelOptions(path=path, device=device, dtype=dtype, page_size=page_size))
    runner = PagedRunner(loaded, pages=200, device=device)
    edges = [0, 100, 300, *range(301, len(tokens) + 1)]
    parts = [runner.step({"r": tokens[a:b]})["r"] for a, b in pairwise(edges)]
    return torch.cat(parts).float().cpu()


@torch.inference_mode()
def huggingface(path: Path, dtype: torch.dtype, tokens: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map="cuda")
    logits: torch.Tensor = model(torch.tensor([tokens], device=GPU)).logits[0].float().cpu()
    return logits


def check_models() -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: write_tiny_checkpoint(kind, Path(folder) / kind, dtype=torch.bfloat16) for kind in DECODER_KINDS}
        for kind in ("llama", "qwen3"):
            wide = {"head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 2}
            name = f"{kind} with heads of 128"
            paths[name] = write_tiny_checkpoint(kind, Path(folder) / name, overrides=wide, dtype=torch.bfloat16)
        paths["baton-tiny"] = Path(__file__).parents[2] / "examples/models/baton-tiny"
        for kind, path in paths.items():
            tokens = torch.randint(3, 250, (330,)).tolist()
            exact = teacher_forced(path, "float32", torch.device("cpu"), tokens)
            found = error_of(teacher_forced(path, "float32", GPU, tokens), exact)
            yield Finding(f"model {kind} float32 against the CPU", found, 2e-4)
            theirs = error_of(huggingface(path, torch.bfloat16, tokens), exact)
            found = error_of(teacher_forced(path, "bfloat16", GPU, tokens), exact)
            yield Finding(f"model {kind} bfloat16 (transformers {theirs:.2e})", found, 1.5 * theirs)


CHECKS = (
    *(
        check_small_ops,
        check_rope_kv_write,
        check_linear,
        check_argmax,
        check_eight_bit_products,
        check_rows_of_eight_bits,
    ),
    *(check_invariance, check_narrow_pools, check_pools, check_models),
)


def main() -> int:
    """Run all checks, print them, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="run the checks whose name holds this")
    parser.add_argument("--json", type=Path, help="write the findings here as well")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    findings: list[Finding] = []
    for check in CHECKS:
        if arguments.only and arguments.only not in check.__name__:
            continue
        with torch.inference_mode():
            for finding in check():
                findings.append(finding)
                print(f"{'ok  ' if finding.good else 'BAD '} {finding.error:.2e} of {finding.bar:.1e}  {finding.what}")
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(finding) for finding in findings], indent=1))
    bad = sum(not finding.good for finding in findings)
    print(f"{len(findings)} checks, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
