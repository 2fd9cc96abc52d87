"""Decide once what was left open: `ServerConfig` + facts of machine and model -> `ResolvedConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baton_serving.config.check import addresses, check, json_object
from baton_serving.config.facts import HostFacts, ModelFacts
from baton_serving.config.options import ServerConfig
from baton_serving.errors import ConfigError
from baton_serving.kv.layout import DTYPE_BYTES, KV_DTYPES

_DTYPE_SPELLINGS = {"half": "float16", "float": "float32"}
_DEFAULT_DIST_TIMEOUT = 300


@dataclass(frozen=True)
class ResolvedConfig:
    """What holds for this worker. Whatever had to be decided is a field here; the rest is read from `given`.

    `chunked_prefill_size` None means prompts are computed whole. Sizes in tokens, `dist_timeout` in seconds.
    `max_total_tokens` is a whole number of pages. `bootstrap_addrs` are (host, port).
    """

    given: ServerConfig
    device: str
    dtype: str
    kv_dtype: str
    context_length: int
    page_size: int
    max_total_tokens: int
    max_running_requests: int
    chunked_prefill_size: int | None
    prefill_attention_backend: str
    decode_attention_backend: str
    cuda_graph_batch_sizes: tuple[int, ...]
    tokenizer_path: str
    served_model_name: str
    random_seed: int
    dist_timeout: int
    log_level_http: str
    model_overrides: Mapping[str, object]
    preferred_sampling_params: Mapping[str, object]
    transfer_protocol: str
    bootstrap_addrs: tuple[tuple[str, int], ...]

    @property
    def tp_size(self) -> int:
        return self.given.runtime.tp_size


def resolve(config: ServerConfig, host: HostFacts, model: ModelFacts) -> ResolvedConfig:
    """Decide everything that `config` leaves open. Pure; raises ConfigError naming the flag and the remedy."""
    check(config)
    device = resolve_device(config, host)
    on_cuda = device == "cuda"
    _check_split(config, model)
    dtype = _dtype(config, device, model)
    kv_dtype = KV_DTYPES.get(config.dtype.kv_cache_dtype, dtype)
    page_size = config.memory.page_size or (64 if on_cuda else 16)
    context_length = _context_length(config, model)
    max_running = config.memory.max_running_requests or (256 if on_cuda else 64)
    prefill_backend, decode_backend = _attention_backends(config, device, host)
    api, chosen = config.api, config.disaggregation
    bootstrap = chosen.disaggregation_bootstrap_addr
    return ResolvedConfig(
        given=config,
        device=device,
        dtype=dtype,
        kv_dtype=kv_dtype,
        context_length=context_length,
        page_size=page_size,
        max_total_tokens=_max_total_tokens(
            config, host, model, device, (dtype, kv_dtype), page_size, context_length * max_running
        ),
        max_running_requests=max_running,
        chunked_prefill_size=_chunked_prefill_size(config, device),
        prefill_attention_backend=prefill_backend,
        decode_attention_backend=decode_backend,
        cuda_graph_batch_sizes=_cuda_graph_batch_sizes(config, device, max_running),
        tokenizer_path=config.model.tokenizer_path or config.model.model_path,
        served_model_name=api.served_model_name or config.model.model_path,
        random_seed=host.entropy if config.runtime.random_seed is None else config.runtime.random_seed,
        dist_timeout=config.runtime.dist_timeout or _DEFAULT_DIST_TIMEOUT,
        log_level_http=(config.logging.log_level_http or "warning").lower(),
        model_overrides=json_object("--json-model-override-args", config.model.json_model_override_args),
        preferred_sampling_params=json_object("--preferred-sampling-params", api.preferred_sampling_params or "{}"),
        transfer_protocol=_transfer_protocol(config, device),
        bootstrap_addrs=addresses("--disaggregation-bootstrap-addr", bootstrap),
    )


def resolve_device(config: ServerConfig, host: HostFacts) -> str:
    """ "cpu" or "cuda" (ConfigError when the machine has not enough of what was asked for)."""
    device = config.runtime.device or ("cuda" if host.cuda_devices else "cpu")
    if device == "cuda" and not host.cuda_devices:
        raise ConfigError("--device cuda: no CUDA device is visible; use --device cpu")
    ranks, here = config.runtime.tp_size, len(config.nodes.ranks(config.runtime.tp_size))
    if device == "cuda" and here > host.cuda_devices:
        needed = "as many CUDA devices" if here == ranks else f"{here} CUDA devices on every node"
        raise ConfigError(f"--tp-size {ranks} needs {needed}; {host.cuda_devices} are visible: lower it")
    return device


def _check_split(config: ServerConfig, model: ModelFacts) -> None:
    tp_size = config.runtime.tp_size
    if model.attention_heads % tp_size:
        raise ConfigError(f"--tp-size {tp_size} does not divide the model's {model.attention_heads} attention heads")
    if model.kv_heads % tp_size and tp_size % model.kv_heads:
        raise ConfigError(f"--tp-size {tp_size} and the model's {model.kv_heads} kv-heads: one must divide the other")


def _dtype(config: ServerConfig, device: str, model: ModelFacts) -> str:
    asked = config.dtype.dtype
    if asked != "auto":
        return _DTYPE_SPELLINGS.get(asked, asked)
    if device == "cpu":
        return "float32"
    return model.dtype if model.dtype in ("float16", "bfloat16") else "bfloat16"


def _context_length(config: ServerConfig, model: ModelFacts) -> int:
    asked = config.model.context_length
    if asked is not None and asked > model.context_length:
        raise ConfigError(
            f"--context-length {asked} is beyond the model's {model.context_length}: lower it, or stretch the model "
            f"with --json-model-override-args '{{\"max_position_embeddings\": {asked}}}'"
        )
    return asked or model.context_length


def _chunked_prefill_size(config: ServerConfig, device: str) -> int | None:
    asked = config.memory.chunked_prefill_size
    if asked is None:
        return 8192 if device == "cuda" else 512
    return None if asked == -1 else asked


def _max_total_tokens(
    config: ServerConfig,
    host: HostFacts,
    model: ModelFacts,
    device: str,
    dtypes: tuple[str, str],
    page_size: int,
    useful: int,
) -> int:
    """Tokens of the KV pool. `dtypes` are the weights' and the pool's; `useful` is what all running requests could
    fill at most."""
    tp_size = config.runtime.tp_size
    asked = config.memory.max_total_tokens
    if asked is not None:
        if asked < page_size:
            raise ConfigError(f"--max-total-tokens {asked} is less than one page of {page_size} tokens: raise it")
        return asked // page_size * page_size
    fraction = config.memory.mem_fraction_static or (0.85 if device == "cuda" else 0.4)
    free = host.device_memory if device == "cuda" else host.host_memory // len(config.nodes.ranks(tp_size))
    saved = 0
    if (config.dtype.quantization or model.quantization) == "fp8":
        saved = model.layer_parameters * (DTYPE_BYTES[dtypes[0]] - 1)
    budget = int(free * fraction) - (model.parameters * DTYPE_BYTES[dtypes[0]] - saved) // tp_size
    heads_here = max(1, model.kv_heads // tp_size)
    token_bytes = max(1, model.kv_values_per_token * heads_here // model.kv_heads) * DTYPE_BYTES[dtypes[1]]
    tokens = min(budget // token_bytes, useful + page_size)
    if tokens < page_size:
        raise ConfigError(
            f"the weights leave no room for a KV pool: {free >> 20} MiB are free, --mem-fraction-static is {fraction}; "
            "raise it, raise --tp-size, or take a smaller model"
        )
    return tokens // page_size * page_size


def _attention_backends(config: ServerConfig, device: str, host: HostFacts) -> tuple[str, str]:
    kernels = config.kernels
    default = "auto" if device == "cuda" else "torch_native"
    for flag, name in (
        ("--attention-backend", kernels.attention_backend),
        ("--prefill-attention-backend", kernels.prefill_attention_backend),
        ("--decode-attention-backend", kernels.decode_attention_backend),
    ):
        if name == "triton" and device != "cuda":
            raise ConfigError(f"{flag} triton needs --device cuda; use torch_native")
        if name in ("flashinfer", "fa3"):
            _check_flashinfer(f"{flag} {name}", device, host, "torch_native")
        if name == "fa3" and host.compute_capability[0] != 9:
            raise ConfigError(f"{flag} fa3 runs on Hopper GPUs only; use flashinfer")
    if config.optimization.enable_deterministic_inference:
        return _deterministic_backends(config, device)
    both = kernels.attention_backend or default
    return kernels.prefill_attention_backend or both, kernels.decode_attention_backend or both


def _deterministic_backends(config: ServerConfig, device: str) -> tuple[str, str]:
    """One kernel for prefill and decode: whichever computes a token, it gets the same bits."""
    flag = "--enable-deterministic-inference"
    if device != "cuda":
        raise ConfigError(f"{flag} needs --device cuda: leave it out")
    kernels = config.kernels
    for name in (kernels.attention_backend, kernels.prefill_attention_backend, kernels.decode_attention_backend):
        if name not in (None, "triton"):
            raise ConfigError(f"{flag} goes with Triton's attention alone, not {name}: leave the back ends out")
    if config.model.model_impl == "transformers":
        raise ConfigError(f"{flag} needs the kernels of our own decoder: leave out --model-impl transformers")
    return "triton", "triton_extend"


def _check_flashinfer(what: str, device: str, host: HostFacts, instead: str) -> None:
    if device != "cuda":
        raise ConfigError(f"{what} needs --device cuda; use {instead}")
    if not host.has_flashinfer:
        raise ConfigError(f"{what} needs FlashInfer: install the cuda extra, or use {instead}")


def _cuda_graph_batch_sizes(config: ServerConfig, device: str, max_running: int) -> tuple[int, ...]:
    """Rising; empty when nothing is captured."""
    chosen = config.optimization
    if device == "cpu":
        for flag, given in (
            ("--cuda-graph-max-bs", chosen.cuda_graph_max_bs is not None),
            ("--cuda-graph-bs", chosen.cuda_graph_bs is not None),
            ("--disable-cuda-graph-padding", chosen.disable_cuda_graph_padding),
        ):
            if given:
                raise ConfigError(f"{flag} needs --device cuda: leave it out")
        return ()
    if chosen.disable_cuda_graph:
        return ()
    if chosen.cuda_graph_bs:
        return tuple(sorted(set(chosen.cuda_graph_bs)))
    largest = chosen.cuda_graph_max_bs or max_running
    if chosen.disable_cuda_graph_padding:
        return tuple(range(1, largest + 1))
    ladder = [1, 2, 4, *range(8, 33, 8), *range(48, 257, 16), *range(288, largest + 1, 32)]
    return tuple(sorted({size for size in ladder if size < largest} | {largest}))


def _transfer_protocol(config: ServerConfig, device: str) -> str:
    chosen = config.disaggregation
    asked = chosen.disaggregation_transfer_protocol
    if asked == "auto":
        return "rdma" if device == "cuda" and chosen.disaggregation_ib_device else "tcp"
    if asked == "nvlink_intra" and device != "cuda":
        raise ConfigError("--disaggregation-transfer-protocol nvlink_intra needs --device cuda; use tcp")
    return asked
