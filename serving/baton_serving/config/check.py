"""What is wrong with a configuration by itself, before machine or model are looked at. One line per fault."""

from __future__ import annotations

import json
from collections.abc import Mapping

from baton_serving.config.flags import Setting, settings
from baton_serving.config.options import ServerConfig
from baton_serving.errors import ConfigError
from baton_serving.sampling.params import SamplingParams

_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def check_value(setting: Setting, value: object) -> object:
    """`value` as the field holds it: lists become tuples. ConfigError on a wrong type or one outside the choices."""
    flag = setting.flag
    if value is None and setting.default is None:
        return None
    items: tuple[object, ...] = (value,)
    if setting.many and isinstance(value, list | tuple):
        items = tuple(value)
    for item in items:
        if not _is_of(setting.kind, item):
            raise ConfigError(f"{flag.name}: {item!r} is not of type {setting.kind.__name__}")
        if item in flag.not_yet:
            raise ConfigError(f"{flag.name} {item} is not supported yet: {flag.instead}")
        if flag.choices and item not in flag.choices:
            raise ConfigError(f"{flag.name}: {item!r} is not one of {', '.join(map(str, flag.supported))}")
    return items if setting.many else value


def check(config: ServerConfig) -> None:
    """Raise ConfigError for the first fault that needs no knowledge of machine or model to see."""
    for setting in settings(ServerConfig):
        check_value(setting, getattr(getattr(config, setting.group), setting.field))
    _check_model(config)
    _check_ports(config)
    _check_memory(config)
    _check_runtime(config)
    _check_nodes(config)
    _check_disaggregation(config)


def json_object(flag: str, text: str) -> Mapping[str, object]:
    """The JSON object that a flag's value holds (ConfigError when it is none)."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{flag}: not JSON ({error}); give an object such as '{{\"key\": 1}}'") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{flag}: JSON, but no object; give one such as '{{\"key\": 1}}'")
    return value


def address(flag: str, text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` (ConfigError when it is not of that form). IPv6 hosts stand in brackets."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{flag}: {text!r} is not HOST:PORT, as in 10.0.0.7:8998")
    return host.removeprefix("[").removesuffix("]"), int(port)


def addresses(flag: str, text: str | None) -> tuple[tuple[str, int], ...]:
    """The `address` of each of several with commas between them; none for an empty text."""
    return tuple(address(flag, part) for part in (text or "").split(",") if part)


def _is_of(kind: type, item: object) -> bool:
    if isinstance(item, bool):
        return kind is bool
    return isinstance(item, int | float if kind is float else kind)


def _refuse_unless(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_model(config: ServerConfig) -> None:
    model, api = config.model, config.api
    _refuse_unless(model.model_path != "", "--model-path is missing: give the folder of a checkpoint")
    json_object("--json-model-override-args", model.json_model_override_args)
    if api.preferred_sampling_params is not None:
        params = json_object("--preferred-sampling-params", api.preferred_sampling_params)
        unknown = sorted(set(params) - set(SamplingParams.__struct_fields__))
        _refuse_unless(
            not unknown, f"--preferred-sampling-params: no sampling parameter is called {', '.join(unknown)}"
        )
    _refuse_unless(
        model.context_length is None or model.context_length > 0, "--context-length must be above 0, or left out"
    )
    _refuse_unless(
        not (model.skip_tokenizer_init and api.chat_template),
        "--chat-template needs a tokenizer: leave out --skip-tokenizer-init",
    )


def _check_ports(config: ServerConfig) -> None:
    http, runtime = config.http, config.runtime
    ports = {
        "--port": http.port,
        "--grpc-port": http.grpc_port,
        "--probe-port": http.probe_port,
        "--nccl-port": runtime.nccl_port,
        "--disaggregation-bootstrap-port": config.disaggregation.disaggregation_bootstrap_port,
    }
    taken: dict[int, str] = {}
    for flag, port in ports.items():
        if not port:
            continue
        _refuse_unless(0 < port < 65536, f"{flag} {port}: a port lies between 0 and 65535")
        _refuse_unless(port not in taken, f"{flag} {port} is the port of {taken.get(port)} too: give another")
        taken[port] = flag


def _check_memory(config: ServerConfig) -> None:
    memory = config.memory
    fraction = memory.mem_fraction_static
    _refuse_unless(
        fraction is None or 0.0 < fraction < 1.0, f"--mem-fraction-static {fraction}: a fraction lies between 0 and 1"
    )
    positive = {
        "--max-running-requests": memory.max_running_requests,
        "--max-total-tokens": memory.max_total_tokens,
        "--max-prefill-tokens": memory.max_prefill_tokens,
        "--schedule-conservativeness": memory.schedule_conservativeness,
        "--page-size": memory.page_size,
        "--num-reserved-decode-tokens": config.disaggregation.num_reserved_decode_tokens,
        "--cuda-graph-max-bs": config.optimization.cuda_graph_max_bs,
        "--cuda-graph-bs": min(config.optimization.cuda_graph_bs or (1,)),
    }
    for flag, number in positive.items():
        _refuse_unless(number is None or number > 0, f"{flag} must be above 0")
    _refuse_unless(memory.max_queued_requests >= 0, "--max-queued-requests must be 0 or more")
    chunk = memory.chunked_prefill_size
    _refuse_unless(
        chunk is None or chunk > 0 or chunk == -1, "--chunked-prefill-size must be above 0, or -1 for prompts whole"
    )
    _refuse_unless(
        not (config.optimization.enable_mixed_chunk and chunk == -1),
        "--enable-mixed-chunk needs chunks: leave out --chunked-prefill-size -1",
    )


def _check_runtime(config: ServerConfig) -> None:
    runtime, logging = config.runtime, config.logging
    _refuse_unless(runtime.tp_size > 0, "--tensor-parallel-size must be above 0")
    _refuse_unless(runtime.stream_interval > 0, "--stream-interval must be above 0")
    _refuse_unless(runtime.watchdog_timeout > 0, "--watchdog-timeout must be above 0 seconds")
    _refuse_unless(runtime.dist_timeout is None or runtime.dist_timeout > 0, "--dist-timeout must be above 0 seconds")
    _refuse_unless(logging.decode_log_interval > 0, "--decode-log-interval must be above 0 steps")
    _refuse_unless(logging.gc_warning_threshold_secs >= 0, "--gc-warning-threshold-secs must be 0 or more")
    for flag, level in (("--log-level", logging.log_level), ("--log-level-http", logging.log_level_http)):
        _refuse_unless(
            level is None or level.lower() in _LOG_LEVELS, f"{flag}: {level!r} is not one of {', '.join(_LOG_LEVELS)}"
        )


def _check_nodes(config: ServerConfig) -> None:
    nodes, tp_size = config.nodes, config.runtime.tp_size
    count, rank, meeting = nodes.nnodes, nodes.node_rank, nodes.dist_init_addr
    _refuse_unless(count > 0, "--nnodes must be above 0")
    _refuse_unless(0 <= rank < count, f"--node-rank {rank}: with --nnodes {count} it lies between 0 and {count - 1}")
    _refuse_unless(
        tp_size % count == 0, f"--nnodes {count} does not divide --tp-size {tp_size}: every node has as many ranks"
    )
    if count == 1:
        _refuse_unless(
            meeting is None, "--dist-init-addr needs --nnodes above 1; leave it out, or see --nccl-port for one node"
        )
    elif meeting is None:
        raise ConfigError(f"--nnodes {count} needs --dist-init-addr: a HOST:PORT of node 0, the same on all nodes")
    else:
        address("--dist-init-addr", meeting)


def _check_disaggregation(config: ServerConfig) -> None:
    chosen = config.disaggregation
    fake = chosen.disaggregation_transfer_backend == "fake" and chosen.disaggregation_mode != "null"
    _refuse_unless(
        not (fake and (chosen.disaggregation_bootstrap_addr or chosen.disaggregation_verify)),
        "--disaggregation-transfer-backend fake runs one leg alone, with made-up KV: leave out "
        "--disaggregation-bootstrap-addr and --disaggregation-verify",
    )
    if chosen.disaggregation_mode == "decode" and not fake and not chosen.disaggregation_bootstrap_addr:
        raise ConfigError(
            "--disaggregation-mode decode needs --disaggregation-bootstrap-addr: the HOST:PORT of the bootstrap server "
            "that the prefill workers register with"
        )
    if chosen.disaggregation_bootstrap_addr is not None:
        for part in chosen.disaggregation_bootstrap_addr.split(","):
            address("--disaggregation-bootstrap-addr", part)
    embeds = config.model.is_embedding
    _refuse_unless(
        not (embeds and (chosen.disaggregation_mode != "null" or config.http.grpc_port is not None)),
        "--is-embedding serves whole and over HTTP: leave --disaggregation-mode and --grpc-port out",
    )
    if chosen.disaggregation_mode == "null":
        _refuse_unless(
            not chosen.disaggregation_verify, "--disaggregation-verify needs --disaggregation-mode prefill or decode"
        )
    decode_tp = chosen.disaggregation_decode_tp
    _refuse_unless(decode_tp is None or decode_tp > 0, "--disaggregation-decode-tp must be above 0")
    _refuse_unless(
        decode_tp is None or chosen.disaggregation_mode == "prefill",
        "--disaggregation-decode-tp is for --disaggregation-mode prefill: a prefill worker checks it of its peers",
    )
    for flag, size in (
        ("--disaggregation-decode-dp", chosen.disaggregation_decode_dp),
        ("--disaggregation-prefill-pp", chosen.disaggregation_prefill_pp),
    ):
        _refuse_unless(size in (None, 1), f"{flag} {size}: every worker of this version has size 1; leave it out")
