"""Every option of `baton serve`, grouped. Names, defaults and choices are those an SGLang user knows.

`None` and "auto" mean "decide for me": `config.resolve` decides once and puts the outcome into `ResolvedConfig`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from baton_serving.config import choices as known
from baton_serving.config.flags import option
from baton_serving.config.nodes import NodeOptions


@dataclass(frozen=True)
class ModelOptions:
    """Model and tokenizer."""

    model_path: str = option(
        "--model-path", "--model", default="", help="Folder of the checkpoint, its hub name, or s3://BUCKET/PATH."
    )
    tokenizer_path: str | None = option(
        "--tokenizer-path", default=None, help="Folder or hub name of the tokenizer.", auto="the model path"
    )
    tokenizer_mode: str = option(
        "--tokenizer-mode",
        default="auto",
        choices=("auto", "slow"),
        not_yet=("slow",),
        instead="leave it at auto; transformers has only fast tokenizers since its version 5",
        help="Which of a checkpoint's tokenizers is used.",
        auto="the fast one",
    )
    skip_tokenizer_init: bool = option(
        "--skip-tokenizer-init", default=False, help="Serve token ids only: /generate with input_ids, no text routes."
    )
    load_format: str = option(
        "--load-format",
        default="auto",
        choices=known.LOAD_FORMATS,
        not_yet=known.LOAD_NOT_YET,
        instead="convert the checkpoint to safetensors",
        help='Format of the weights; "dummy" fills them with random numbers.',
        auto="safetensors where there are any, else pt",
    )
    model_impl: str = option(
        "--model-impl",
        default="auto",
        choices=("auto", "transformers"),
        help='"auto" takes Baton\'s own decoder; "transformers" runs transformers\' model on Baton\'s KV pool.',
    )
    is_embedding: bool = option(
        "--is-embedding",
        default=False,
        help="Serve /v1/embeddings (the last token's hidden state, of length 1) and generate nothing.",
    )
    trust_remote_code: bool = option(
        "--trust-remote-code", default=False, help="Run Python code that comes with the checkpoint's tokenizer."
    )
    context_length: int | None = option(
        "--context-length",
        default=None,
        unit="tokens",
        help="Longest prompt and answer together.",
        auto="what the model's config says",
    )
    revision: str | None = option("--revision", default=None, help="Branch, tag or commit of a hub name.")
    json_model_override_args: str = option(
        "--json-model-override-args", default="{}", help="JSON object laid over the model's config.json."
    )
    weight_loader_disable_mmap: bool = option(
        "--weight-loader-disable-mmap", default=False, help="Read weight files whole; for slow network file systems."
    )


@dataclass(frozen=True)
class HttpOptions:
    """HTTP and gRPC server."""

    host: str = option("--host", default="127.0.0.1", help="Address to listen on.")
    port: int = option("--port", default=30000, help="Port of the HTTP API; 0 takes a free one.")
    grpc_port: int | None = option(
        "--grpc-port", default=None, help="Port of gRPC; 0 takes a free one.", auto="no gRPC"
    )
    probe_port: int | None = option(
        "--probe-port",
        default=None,
        help="Port that answers /health and /metrics alone, never with TLS: for probes, which have no certificate.",
        auto="none",
    )
    ssl_certfile: str | None = option(
        "--ssl-certfile",
        default=None,
        help="Certificate chain (PEM) of this worker, for its ports and as a client; taken over when it changes.",
        auto="no TLS",
    )
    ssl_keyfile: str | None = option("--ssl-keyfile", default=None, help="Key of the certificate.", auto="no TLS")
    ssl_ca_certs: str | None = option(
        "--ssl-ca-certs",
        default=None,
        help="Authority that the certificates of clients and of the bootstrap server must come from.",
        auto="clients need no certificate",
    )
    announce_file: str | None = option(
        "--announce-file", default=None, help="Write the bound ports here as JSON once the worker serves."
    )
    skip_server_warmup: bool = option(
        "--skip-server-warmup", default=False, help="Report ready without a first request of our own."
    )


@dataclass(frozen=True)
class DtypeOptions:
    """Data types."""

    dtype: str = option(
        "--dtype",
        default="auto",
        choices=("auto", "half", "float16", "bfloat16", "float", "float32"),
        help="Type of weights and activations.",
        auto="float32 on cpu; on cuda the checkpoint's type, bfloat16 where that is float32",
    )
    kv_cache_dtype: str = option(
        "--kv-cache-dtype",
        default="auto",
        choices=("auto", "fp8_e5m2", "fp8_e4m3"),
        help="Type of the KV cache. 8-bit floats halve it, and are scaled where the checkpoint brings scales.",
        auto="the type of the activations",
    )
    quantization: str | None = option(
        "--quantization",
        default=None,
        choices=known.QUANTIZATIONS,
        not_yet=known.QUANTIZATIONS_NOT_YET,
        instead="use fp8",
        help="Make the layers' weights 8-bit floats as they are read, scaled per output; activations, row by row.",
        auto="what the checkpoint holds",
    )


@dataclass(frozen=True)
class MemoryOptions:
    """Memory and scheduling."""

    mem_fraction_static: float | None = option(
        "--mem-fraction-static",
        default=None,
        unit="fraction of the free memory",
        help="Share of the device's free memory for weights and KV pool together.",
        auto="0.85 on cuda, 0.4 on cpu",
    )
    max_running_requests: int | None = option(
        "--max-running-requests", default=None, help="Requests decoded together.", auto="256 on cuda, 64 on cpu"
    )
    max_queued_requests: int = option(
        "--max-queued-requests", default=sys.maxsize, help="Waiting requests beyond which a new one gets a 429."
    )
    max_total_tokens: int | None = option(
        "--max-total-tokens",
        default=None,
        unit="tokens",
        help="Capacity of the KV pool.",
        auto="what the memory allows, but no more than all running requests could fill",
    )
    chunked_prefill_size: int | None = option(
        "--chunked-prefill-size",
        default=None,
        unit="tokens",
        help="Longest piece of a prompt computed in one step; -1 computes prompts whole.",
        auto="8192 on cuda, 512 on cpu",
    )
    max_prefill_tokens: int = option(
        "--max-prefill-tokens", default=16384, unit="tokens", help="Prompt tokens of all requests in one step."
    )
    schedule_policy: str = option(
        "--schedule-policy",
        default="fcfs",
        choices=("lpm", "random", "fcfs", "dfs-weight", "lof"),
        help="Order of waiting requests: first come, longest cached prefix, longest output, tree order or chance.",
    )
    schedule_conservativeness: float = option(
        "--schedule-conservativeness",
        default=1.0,
        help="Above 1 fewer requests are admitted at once and fewer are retracted later; below 1 the reverse.",
    )
    page_size: int | None = option(
        "--page-size", default=None, unit="tokens", help="Tokens of one KV page.", auto="64 on cuda, 16 on cpu"
    )


@dataclass(frozen=True)
class RuntimeOptions:
    """Processes and devices."""

    device: str | None = option(
        "--device", default=None, choices=("cpu", "cuda"), help="Where the model runs.", auto="cuda where there is one"
    )
    tp_size: int = option(
        "--tensor-parallel-size", "--tp-size", "--tp", default=1, help="Ranks that share each layer of the model."
    )
    nccl_port: int | None = option(
        "--nccl-port", default=None, help="Port at which the ranks find each other.", auto="none: a private file"
    )
    dist_timeout: int | None = option(
        "--dist-timeout", default=None, unit="seconds", help="Longest wait of one rank for another.", auto="300"
    )
    stream_interval: int = option(
        "--stream-interval",
        default=1,
        unit="tokens",
        help="Tokens between two events of a stream; the first is at once.",
    )
    stream_output: bool = option(
        "--stream-output",
        default=False,
        help="Streams of /generate say what is new; without it each event holds all text so far.",
    )
    random_seed: int | None = option(
        "--random-seed",
        default=None,
        help="Seed of requests that bring none, and of dummy weights.",
        auto="drawn at start",
    )
    watchdog_timeout: float = option(
        "--watchdog-timeout", default=300.0, unit="seconds", help="A step that takes longer ends the worker."
    )


@dataclass(frozen=True)
class LoggingOptions:
    """Logging and metrics."""

    log_level: str = option(
        "--log-level", default="info", help="Least level that is logged: debug, info, warning, error or critical."
    )
    log_level_http: str | None = option(
        "--log-level-http", default=None, help="Least level of the HTTP server's own lines.", auto="warning"
    )
    log_requests: bool = option("--log-requests", default=False, help="Log each request as it ends.")
    log_requests_level: int = option(
        "--log-requests-level",
        default=2,
        choices=(0, 1, 2, 3),
        help="0: ids and times; 1: and parameters; 2: and the first 2,048 characters; 3: and all of prompt and answer.",
    )
    crash_dump_folder: str | None = option(
        "--crash-dump-folder", default=None, help="Where the last minutes' requests are written when the worker fails."
    )
    show_time_cost: bool = option("--show-time-cost", default=False, help="Log how long each stage of start-up took.")
    enable_metrics: bool = option(
        "--enable-metrics", default=False, help="Accepted for compatibility: /metrics is always on."
    )
    enable_trace: bool = option(
        "--enable-trace", default=False, help="Send OpenTelemetry spans of every request; needs the extra 'trace'."
    )
    otlp_traces_endpoint: str = option(
        "--otlp-traces-endpoint",
        default="localhost:4317",
        help="Where the spans go: host:port (gRPC) or http://host:port (HTTP).",
    )
    gc_warning_threshold_secs: float = option(
        "--gc-warning-threshold-secs",
        default=0.0,
        unit="seconds",
        help="Warn when Python's garbage collector stops a process longer than this; 0 never warns.",
    )
    decode_log_interval: int = option(
        "--decode-log-interval", default=40, unit="steps", help="Decode steps between two lines of scheduler figures."
    )


@dataclass(frozen=True)
class ApiOptions:
    """API."""

    api_key: str | None = option(
        "--api-key", default=None, help="Key that clients send as a bearer token.", auto="no key"
    )
    served_model_name: str | None = option(
        "--served-model-name", default=None, help="Name under which clients ask for the model.", auto="the model path"
    )
    weight_version: str = option(
        "--weight-version",
        default="default",
        help="A label of the weights for people; identity is the computed digest.",
    )
    chat_template: str | None = option(
        "--chat-template", default=None, help="Path of a Jinja chat template.", auto="the tokenizer's own"
    )
    tool_call_parser: str | None = option(
        "--tool-call-parser",
        default=None,
        choices=("hermes", "llama3", "mistral", "qwen", "qwen25", *known.TOOL_PARSERS_NOT_YET),
        not_yet=known.TOOL_PARSERS_NOT_YET,
        instead="use hermes, llama3, mistral or qwen",
        help="How the model spells tool calls; answers to chats that offer tools are read so.",
        auto="the answer's text comes unparsed",
    )
    enable_cache_report: bool = option(
        "--enable-cache-report", default=False, help="Report cached prompt tokens in usage.prompt_tokens_details."
    )
    preferred_sampling_params: str | None = option(
        "--preferred-sampling-params",
        default=None,
        help="JSON object of sampling parameters for requests that set none.",
    )
    enable_custom_logit_processor: bool = option(
        "--enable-custom-logit-processor",
        default=False,
        help="Let requests ask by name for a function that changes their logits; they never bring code.",
    )
    custom_logit_processors: tuple[str, ...] | None = option(
        "--custom-logit-processors",
        default=None,
        help="Functions that requests may ask for besides the built-in ones, as NAME=MODULE:FUNCTION.",
        auto="the built-in ones only",
    )
    allow_auto_truncate: bool = option(
        "--allow-auto-truncate", default=False, help="Cut the start off over-long prompts rather than refuse them."
    )


@dataclass(frozen=True)
class KernelOptions:
    """Kernel back ends."""

    attention_backend: str | None = option(
        "--attention-backend",
        default=None,
        choices=known.ATTENTION_BACKENDS,
        not_yet=known.ATTENTION_NOT_YET,
        instead="use torch_native, flashinfer, fa3 or triton",
        help="Attention of prefill and decode.",
        auto="on cuda the fastest that is installed and fits the model, else torch_native",
    )
    prefill_attention_backend: str | None = option(
        "--prefill-attention-backend",
        default=None,
        choices=known.ATTENTION_BACKENDS,
        not_yet=known.ATTENTION_NOT_YET,
        instead="use torch_native, flashinfer, fa3 or triton",
        help="Attention of prefill alone.",
        auto="the attention backend",
    )
    decode_attention_backend: str | None = option(
        "--decode-attention-backend",
        default=None,
        choices=known.ATTENTION_BACKENDS,
        not_yet=known.ATTENTION_NOT_YET,
        instead="use torch_native, flashinfer, fa3 or triton",
        help="Attention of decode alone.",
        auto="the attention backend",
    )
    sampling_backend: str | None = option(
        "--sampling-backend",
        default=None,
        choices=("flashinfer", "pytorch"),
        not_yet=("flashinfer",),
        instead="use pytorch",
        help="What draws tokens.",
        auto="pytorch",
    )


@dataclass(frozen=True)
class OptimizationOptions:
    """Optimisation and debugging."""

    disable_radix_cache: bool = option(
        "--disable-radix-cache", default=False, help="Keep no prefix for later requests."
    )
    enable_mixed_chunk: bool = option(
        "--enable-mixed-chunk", default=False, help="Let decode rows ride along in the steps of chunked prefill."
    )
    disable_overlap_schedule: bool = option(
        "--disable-overlap-schedule",
        default=False,
        help="Process a step's results before the next is launched, as the CPU always does; easier to debug, slower.",
    )
    enable_nan_detection: bool = option(
        "--enable-nan-detection", default=False, help="Fail a request whose logits are not numbers."
    )
    enable_deterministic_inference: bool = option(
        "--enable-deterministic-inference",
        default=False,
        help="Compute each token to the same bits in any batch, chunking or company; a seed then repeats its text.",
    )
    disable_cuda_graph: bool = option(
        "--disable-cuda-graph", default=False, help="Launch the kernels of decode and of short prefill one by one."
    )
    cuda_graph_max_bs: int | None = option(
        "--cuda-graph-max-bs", default=None, unit="requests", help="Largest batch captured.", auto="running requests"
    )
    cuda_graph_bs: tuple[int, ...] | None = option(
        "--cuda-graph-bs",
        default=None,
        unit="requests",
        help="Batch sizes captured.",
        auto="a rising list up to the largest",
    )
    disable_cuda_graph_padding: bool = option(
        "--disable-cuda-graph-padding", default=False, help="Replay a graph only for exactly its batch size."
    )


@dataclass(frozen=True)
class DisaggregationOptions:
    """Prefill/decode disaggregation."""

    disaggregation_mode: str = option(
        "--disaggregation-mode",
        default="null",
        choices=("null", "prefill", "decode"),
        help='Which leg this worker runs; "null" runs requests whole.',
    )
    disaggregation_transfer_backend: str = option(
        "--disaggregation-transfer-backend",
        default="mooncake",
        choices=("mooncake", "nixl", "ascend", "fake"),
        not_yet=("ascend",),
        instead="use mooncake or nixl",
        help="Library that moves the KV pages; fake moves none and runs one leg alone with made-up KV, for benchmarks.",
    )
    disaggregation_transfer_protocol: str = option(
        "--disaggregation-transfer-protocol",
        default="auto",
        choices=("auto", "tcp", "rdma", "nvlink_intra"),
        help="Wire under the transfer library.",
        auto="rdma on cuda when an InfiniBand device is named, else tcp",
    )
    disaggregation_bootstrap_addr: str | None = option(
        "--disaggregation-bootstrap-addr",
        default=None,
        help="HOST:PORT of the bootstrap server to register with; several with commas.",
        auto="none; a prefill worker then serves one itself",
    )
    disaggregation_bootstrap_port: int = option(
        "--disaggregation-bootstrap-port",
        default=8998,
        help="Port of the bootstrap server a prefill worker serves itself.",
    )
    disaggregation_decode_tp: int | None = option(
        "--disaggregation-decode-tp",
        default=None,
        help="Tensor parallel size that decode peers of a prefill worker must have; others are refused.",
        auto="any that fits",
    )
    disaggregation_decode_dp: int | None = option(
        "--disaggregation-decode-dp",
        default=None,
        help="Data parallel size of the decode workers; 1 is the only one.",
        auto="1",
    )
    disaggregation_prefill_pp: int = option(
        "--disaggregation-prefill-pp",
        default=1,
        help="Pipeline parallel size of the prefill workers; 1 is the only one.",
    )
    disaggregation_ib_device: str | None = option(
        "--disaggregation-ib-device",
        default=None,
        help="InfiniBand devices to use, with commas between them.",
        auto="the library's choice",
    )
    num_reserved_decode_tokens: int = option(
        "--num-reserved-decode-tokens",
        default=512,
        unit="tokens",
        help="Room a decode worker keeps per request for its answer before it accepts another.",
    )
    disaggregation_curve_key_file: str | None = option(
        "--disaggregation-curve-key-file",
        default=None,
        help="File with the CURVE secret keys (Z85) that all workers of a service share, one a line: the first "
        "encrypts the handoff's control sockets, the others are accepted too. A replaced file is taken over at once.",
        auto="no encryption",
    )
    disaggregation_verify: bool = option(
        "--disaggregation-verify", default=False, help="Compare a hash of every page on both sides of a transfer."
    )


@dataclass(frozen=True)
class ServerConfig:
    """What was asked for: one worker's options as typed on the command line or given to `Engine`."""

    model: ModelOptions = field(default_factory=ModelOptions)
    http: HttpOptions = field(default_factory=HttpOptions)
    dtype: DtypeOptions = field(default_factory=DtypeOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    nodes: NodeOptions = field(default_factory=NodeOptions)
    logging: LoggingOptions = field(default_factory=LoggingOptions)
    api: ApiOptions = field(default_factory=ApiOptions)
    kernels: KernelOptions = field(default_factory=KernelOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    disaggregation: DisaggregationOptions = field(default_factory=DisaggregationOptions)
