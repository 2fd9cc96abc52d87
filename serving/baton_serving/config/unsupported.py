"""Flags that people know from SGLang and that Baton recognises but cannot serve yet, each with what to do instead."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NotYet:
    """`harmless` is a value that asks for nothing Baton lacks and is therefore let through (None: no value is)."""

    names: tuple[str, ...]
    takes_value: bool
    instead: str
    harmless: str | None = None


def _flags(instead: str, *names: str) -> tuple[NotYet, ...]:
    return tuple(NotYet((name,), False, instead) for name in names)


def _values(instead: str, *names: str) -> tuple[NotYet, ...]:
    return tuple(NotYet((name,), True, instead) for name in names)


_ONE_POOL = "all kinds of KV share one pool, so leave it out"
_NO_SPECULATION = "leave speculative decoding out"
_NO_EXPERTS = "expert parallelism is not built, so leave it out"
_NO_LORA = "merge the adapter into the checkpoint"
_NO_HOST_TIER = "cached prefixes stay on the device, so leave it out"
_NO_SPARSITY = "leave double sparsity out"
_NO_OFFLOAD = "raise --tp-size to spread the weights"
_NO_ENCODER = "serve text models only"
_ALL_DEFAULTS = "the histogram's buckets are fixed, so leave it out"
_NO_DUMP = "leave tensor dumps out"
_NO_GRAMMAR = "constrained output is not built, so leave it out"
_TUNED = "it tunes a kernel that Baton does not have, so leave it out"
_NO_MOE_SWITCH = "it is deprecated where it comes from, so leave it out"

NOT_YET: tuple[NotYet, ...] = (
    NotYet(("--tokenizer-worker-num",), True, "one tokenizer serves a worker; use more workers", harmless="1"),
    NotYet(("--pipeline-parallel-size", "--pp-size"), True, "use --tp-size", harmless="1"),
    NotYet(("--data-parallel-size", "--dp-size"), True, "start more workers behind a gateway", harmless="1"),
    NotYet(("--expert-parallel-size", "--ep-size", "--ep"), True, _NO_EXPERTS, harmless="1"),
    NotYet(("--base-gpu-id",), True, "choose devices with CUDA_VISIBLE_DEVICES", harmless="0"),
    NotYet(("--gpu-id-step",), True, "choose devices with CUDA_VISIBLE_DEVICES", harmless="1"),
    NotYet(("--grammar-backend",), True, _NO_GRAMMAR, harmless="none"),
    NotYet(("--model-loader-extra-config",), True, "leave it out", harmless="{}"),
    NotYet(("--speculative-draft-model-path", "--speculative-draft-model"), True, _NO_SPECULATION),
    *_values("set HF_HOME to choose where checkpoints are kept", "--download-dir"),
    *_flags(_NO_ENCODER, "--enable-multimodal", "--encoder-only", "--language-only", "--disable-fast-image-processor"),
    *_values(_NO_ENCODER, "--encoder-transfer-backend", "--encoder-urls", "--mm-attention-backend"),
    *_values("one warm-up request is always sent; --skip-server-warmup leaves it out", "--warmups"),
    *_values("scales of the KV cache are read from the checkpoint", "--quantization-param-path"),
    *_values("serve the checkpoint unquantised with --dtype", "--torchao-config"),
    *_values(_ONE_POOL, "--hybrid-kvcache-ratio", "--swa-full-tokens-ratio"),
    *_flags(_ONE_POOL, "--disable-hybrid-swa-memory"),
    *_values("use --max-running-requests", "--max-micro-batch-size"),
    *_values(_NO_GRAMMAR, "--constrained-json-whitespace-pattern"),
    *_flags(_NO_GRAMMAR, "--disable-outlines-disk-cache"),
    *_flags("an idle worker waits without spinning, so leave it out", "--sleep-on-idle"),
    *_flags("rank 0 reports for all ranks, so leave it out", "--enable-metrics-for-all-schedulers"),
    *_values(_ALL_DEFAULTS, "--bucket-time-to-first-token", "--bucket-inter-token-latency"),
    *_values(_ALL_DEFAULTS, "--bucket-e2e-request-latency", "--prompt-tokens-buckets", "--generation-tokens-buckets"),
    *_flags("token counts are in /metrics as counters", "--collect-tokens-histogram"),
    *_flags("use --log-requests, which logs the times too", "--enable-request-time-stats-logging"),
    *_values("cache events are always there, at GET /baton/cache_events, so leave it out", "--kv-events-config"),
    *_values("send /v1/completions the text as the model expects it", "--completion-template"),
    *_values("there is no batch file API", "--file-storage-path"),
    *_values("the answer's text comes unparsed", "--reasoning-parser", "--tool-server"),
    *_values("the gateway balances between workers", "--load-balance-method"),
    *_flags("the gateway balances between workers", "--prefill-round-robin-balance"),
    *_flags(_NO_LORA, "--enable-lora"),
    *_values(_NO_LORA, "--max-lora-rank", "--lora-target-modules", "--lora-paths"),
    *_values(_NO_LORA, "--max-loras-per-batch", "--max-loaded-loras", "--lora-backend"),
    *_values(_NO_SPECULATION, "--speculative-algorithm", "--speculative-draft-model-revision"),
    *_values(_NO_SPECULATION, "--speculative-num-steps", "--speculative-eagle-topk"),
    *_values(_NO_SPECULATION, "--speculative-num-draft-tokens", "--speculative-accept-threshold-single"),
    *_values(_NO_SPECULATION, "--speculative-accept-threshold-acc", "--speculative-token-map"),
    *_values(_NO_SPECULATION, "--speculative-attention-mode"),
    *_values(_NO_EXPERTS, "--moe-a2a-backend", "--moe-runner-backend", "--flashinfer-mxfp4-moe-precision"),
    *_flags("all-reduce and norm run one after the other, so leave it out", "--enable-flashinfer-allreduce-fusion"),
    *_values(_NO_EXPERTS, "--deepep-mode", "--ep-num-redundant-experts", "--ep-dispatch-algorithm"),
    *_values(_NO_EXPERTS, "--init-expert-location", "--eplb-algorithm", "--eplb-rebalance-num-iterations"),
    *_flags(_NO_EXPERTS, "--enable-eplb", "--enable-expert-distribution-metrics"),
    *_values(_NO_EXPERTS, "--eplb-rebalance-layers-per-chunk", "--eplb-min-rebalancing-utilization-threshold"),
    *_values(_NO_EXPERTS, "--expert-distribution-recorder-mode", "--expert-distribution-recorder-buffer-size"),
    *_values(_NO_EXPERTS, "--deepep-config", "--moe-dense-tp-size", "--elastic-ep-backend"),
    *_values("use --disaggregation-ib-device", "--mooncake-ib-device"),
    *_values("serve attention models only", "--max-mamba-cache-size", "--mamba-ssm-dtype"),
    *_flags(_NO_HOST_TIER, "--enable-hierarchical-cache", "--enable-lmcache"),
    *_values(_NO_HOST_TIER, "--hicache-ratio", "--hicache-size", "--hicache-write-policy", "--hicache-io-backend"),
    *_values(_NO_HOST_TIER, "--hicache-mem-layout", "--hicache-storage-backend", "--hicache-storage-prefetch-policy"),
    *_values(_NO_HOST_TIER, "--hicache-storage-backend-extra-config"),
    *_flags(_NO_SPARSITY, "--enable-double-sparsity"),
    *_values(_NO_SPARSITY, "--ds-channel-config-path", "--ds-heavy-channel-num", "--ds-heavy-token-num"),
    *_values(_NO_SPARSITY, "--ds-heavy-channel-type", "--ds-sparse-decode-threshold"),
    *_values(_NO_OFFLOAD, "--cpu-offload-gb", "--offload-group-size", "--offload-num-in-group"),
    *_values(_NO_OFFLOAD, "--offload-prefetch-step", "--offload-mode"),
    *_flags("profile with nsys around the whole worker", "--enable-profile-cuda-graph", "--enable-cudagraph-gc"),
    *_flags("NCCL reduces between ranks, so leave it out", "--enable-nccl-nvls", "--enable-symm-mem"),
    *_flags("NCCL reduces between ranks, so leave it out", "--disable-custom-all-reduce", "--enable-mscclpp"),
    *_flags("NCCL reduces between ranks, so leave it out", "--enable-p2p-check"),
    *_flags(_TUNED, "--disable-flashinfer-cutlass-moe-fp4-allgather", "--disable-shared-experts-fusion"),
    *_flags(_TUNED, "--flashinfer-mla-disable-ragged", "--triton-attention-reduce-in-fp32"),
    *_flags(_TUNED, "--disable-chunked-prefix-cache"),
    *_values(_TUNED, "--triton-attention-num-kv-splits"),
    *_flags("prompts of one call are tokenized together already", "--enable-tokenizer-batch-encode"),
    *_flags("start more workers behind a gateway", "--enable-dp-attention", "--enable-dp-lm-head"),
    *_flags(_NO_EXPERTS, "--enable-two-batch-overlap"),
    *_values(_NO_EXPERTS, "--tbo-token-distribution-threshold"),
    *_flags("kernels are called directly, so leave it out", "--enable-torch-compile"),
    *_values("kernels are called directly, so leave it out", "--torch-compile-max-bs"),
    *_values("steps overlap already, so leave it out", "--num-continuous-decode-steps", "--scheduler-recv-interval"),
    *_flags("delete the checkpoint yourself once the worker is ready", "--delete-ckpt-after-loading"),
    *_flags("stop the worker to give its memory back", "--enable-memory-saver"),
    *_flags("ask for logprobs, which are served", "--enable-return-hidden-states", "--return-attention-tokens"),
    *_values("ask for logprobs, which are served", "--attention-tokens-top-k"),
    *_values("start the worker under numactl", "--numa-node"),
    *_values(_NO_DUMP, "--debug-tensor-dump-output-folder", "--debug-tensor-dump-input-file"),
    *_values(_NO_DUMP, "--debug-tensor-dump-inject"),
    *_flags(_NO_DUMP, "--debug-tensor-dump-prefill-only"),
    *_values("choose a format with --load-format", "--custom-weight-loader"),
    *_flags("run prefill and decode workers side by side", "--enable-pdmux"),
    *_values("run prefill and decode workers side by side", "--sm-group-num"),
    *_flags(_NO_MOE_SWITCH, "--enable-ep-moe", "--enable-deepep-moe", "--enable-flashinfer-cutlass-moe"),
    *_flags(_NO_MOE_SWITCH, "--enable-flashinfer-trtllm-moe", "--enable-triton-kernel-moe"),
    *_flags(_NO_MOE_SWITCH, "--enable-flashinfer-mxfp4-moe"),
)
