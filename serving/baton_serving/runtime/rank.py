"""One rank of a worker: model, page pool and executor, built from the configuration."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import torch

from baton_serving.config import ResolvedConfig
from baton_serving.errors import ConfigError
from baton_serving.kv.pool import KVPool, pages_for_tokens
from baton_serving.model.attention import AttentionPlanner
from baton_serving.model.loading import LoadedModel, ModelOptions, load_model
from baton_serving.model.parallel import ParallelState, init_parallel
from baton_serving.runtime.executor import Executor, ExecutorOptions
from baton_serving.runtime.identity import engine_digest
from baton_serving.runtime.memory import LargestSteps, fit_pages, measure_step_bytes
from baton_serving.runtime.rank_facts import RankFacts
from baton_serving.runtime.reachable import interface_towards
from baton_serving.runtime.stages import Stages
from baton_serving.sampling.processors import LogitProcessor, load_processors


@dataclass(frozen=True)
class Rank:
    """What one scheduler process holds on its device; `options` are what `loaded` was loaded with."""

    loaded: LoadedModel
    options: ModelOptions
    pool: KVPool
    executor: Executor
    parallel: ParallelState
    engine_digest: str


def rank_facts(rank: Rank, processors: Iterable[str], handoff_endpoint: str = "", handoff_key: str = "") -> RankFacts:
    """Describe a built rank."""
    loaded = rank.loaded
    layout = loaded.kv_layout
    groups = len(layout.groups)
    return RankFacts(
        weight_digest=loaded.digest,
        engine_digest=rank.engine_digest,
        architecture=loaded.info.architecture,
        vocab_size=loaded.info.vocab_size,
        eos_token_ids=list(loaded.info.eos_token_ids),
        dtype=str(loaded.info.dtype).removeprefix("torch."),
        kv_dtype=layout.dtype,
        page_size=layout.page_size,
        kv_groups=groups,
        pages=rank.pool.pages,
        max_total_tokens=rank.pool.pages // groups * layout.page_size,
        pool_bytes=rank.pool.size_bytes,
        logit_processors=sorted(processors),
        handoff_endpoint=handoff_endpoint,
        handoff_key=handoff_key,
    )


def logit_processors(config: ResolvedConfig) -> dict[str, LogitProcessor]:
    """The custom logit processors that requests may ask for; none unless they are switched on (ConfigError)."""
    if not config.given.api.enable_custom_logit_processor:
        return {}
    return load_processors(config.given.api.custom_logit_processors or ())


def rank_device(config: ResolvedConfig, tp_rank: int) -> torch.device:
    place = _ranks_here(config).index(tp_rank)
    return torch.device("cuda", place) if config.device == "cuda" else torch.device("cpu")


def _ranks_here(config: ResolvedConfig) -> range:
    return config.given.nodes.ranks(config.tp_size)


def build_rank(config: ResolvedConfig, tp_rank: int, rendezvous: str, listening: socket.socket | None = None) -> Rank:
    """Load this rank's part of the model and make its pool.

    All ranks call this together; they meet at the URL `rendezvous`, which is that of rank 0's socket `listening` if it
    has one, or else on one node at --nccl-port.
    On a GPU the calling thread works on a stream of its own from here on.
    ConfigError for whatever the caller must change.
    """
    device = rank_device(config, tp_rank)
    if device.type == "cpu":
        # One core stays free: threads that wait for a busy core hold up every operator.
        torch.set_num_threads(max(1, (len(os.sched_getaffinity(0)) - 1) // len(_ranks_here(config))))
    else:
        # Copies of transfer libraries wait for all that is queued on the default stream: the next steps, in our case.
        torch.cuda.set_stream(torch.cuda.Stream(device))
    stages = Stages(config.given.logging.show_time_cost)
    port = config.given.runtime.nccl_port
    if config.given.nodes.nnodes > 1:
        _take_the_way_to(rendezvous)
    elif port:
        rendezvous = f"tcp://127.0.0.1:{port}"
    parallel = init_parallel(tp_rank, config.tp_size, rendezvous, device, config.dist_timeout, listening)
    in_order = config.given.optimization.enable_deterministic_inference
    parallel = replace(parallel, in_order=in_order, node_size=len(_ranks_here(config)))
    stages.over("meeting the other ranks")
    options = _model_options(config, device, parallel)
    try:
        loaded = load_model(options)
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            f"the weights do not fit into the GPU's memory ({str(error).splitlines()[0]}); raise --tp-size, or see "
            "with nvidia-smi what else is in it"
        ) from error
    stages.over("loading and hashing the weights")
    try:
        pool, executor = _fitting_pool(config, loaded, parallel, device)
        executor.capture(config.cuda_graph_batch_sizes)
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigError(
            f"the GPU's memory does not last for weights, KV pool and steps ({str(error).splitlines()[0]}); lower "
            "--mem-fraction-static, --max-total-tokens or --max-running-requests"
        ) from error
    stages.over("making the KV pool and capturing graphs")
    return Rank(loaded, options, pool, executor, parallel, engine_digest(config, executor.attention_names))


def _take_the_way_to(rendezvous: str) -> None:
    """Have gloo and NCCL use the network interface that leads there: they would take the host name's, or guess."""
    at = urlsplit(rendezvous)
    interface = interface_towards(at.hostname or "", at.port or 0)
    if interface:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, interface)


def _model_options(config: ResolvedConfig, device: torch.device, parallel: ParallelState) -> ModelOptions:
    given = config.given
    template = given.api.chat_template
    return ModelOptions(
        path=Path(given.model.model_path),
        device=device,
        dtype=config.dtype,
        load_format=given.model.load_format,
        model_impl=given.model.model_impl,
        overrides=config.model_overrides,
        max_positions=config.context_length,
        seed=config.random_seed,
        use_mmap=not given.model.weight_loader_disable_mmap,
        page_size=config.page_size,
        kv_cache_dtype=given.dtype.kv_cache_dtype,
        quantization=given.dtype.quantization,
        deterministic=given.optimization.enable_deterministic_inference,
        tokenizer_path=Path(config.tokenizer_path),
        chat_template=None if template is None else Path(template).read_text(encoding="utf-8"),
        parallel=parallel,
    )


def _fitting_pool(
    config: ResolvedConfig, loaded: LoadedModel, parallel: ParallelState, device: torch.device
) -> tuple[KVPool, Executor]:
    """The pool, and the executor on it. On a GPU the pool leaves room for the largest steps, which are measured."""
    layout = loaded.kv_layout
    wanted = pages_for_tokens(config.max_total_tokens, layout.page_size, len(layout.groups))
    if device.type == "cpu":
        return _build_pool(config, loaded, parallel, device, wanted)
    memory = config.given.memory
    prefill_tokens = min(memory.max_prefill_tokens, config.chunked_prefill_size or memory.max_prefill_tokens)
    largest = LargestSteps(prefill_tokens, config.context_length, config.max_running_requests)
    _, executor = _build_pool(config, loaded, parallel, device, 1)
    step_bytes = measure_step_bytes(executor, device, largest)
    del _, executor
    page_bytes = layout.rank_shape(config.tp_size).page_bytes
    pages = fit_pages(wanted, memory.max_total_tokens is not None, page_bytes, step_bytes, device)
    return _build_pool(config, loaded, parallel, device, parallel.least(pages, device))


def _build_pool(
    config: ResolvedConfig, loaded: LoadedModel, parallel: ParallelState, device: torch.device, pages: int
) -> tuple[KVPool, Executor]:
    layout = loaded.kv_layout
    pool = KVPool(layout.rank_shape(config.tp_size), layout.groups, pages, device)
    attention = AttentionPlanner(pool, loaded.heads, config.prefill_attention_backend, config.decode_attention_backend)
    options = ExecutorOptions(
        max_slots=config.max_running_requests,
        max_context=config.context_length,
        vocab_size=loaded.info.vocab_size,
        nan_detection=config.given.optimization.enable_nan_detection,
    )
    return pool, Executor(loaded.model, pool, attention, parallel, options, logit_processors(config))
