from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.config import HostFacts, ModelFacts, config_from_values, resolve
from baton_serving.config.resolve import ResolvedConfig
from baton_serving.errors import ConfigError

CPU = HostFacts(host_memory=16 << 30, entropy=7)
H200 = HostFacts(
    host_memory=128 << 30,
    cuda_devices=2,
    device_memory=139 << 30,
    compute_capability=(9, 0),
    has_flashinfer=True,
    entropy=7,
)
BARE_GPU = dataclasses.replace(H200, has_flashinfer=False)
A100 = dataclasses.replace(H200, compute_capability=(8, 0))
# 8 layers, 4 kv-heads, K and V of 64: 8 * 4 * 2 * 64 numbers per token.
MODEL = ModelFacts(
    architecture="LlamaForCausalLM",
    context_length=4096,
    dtype="bfloat16",
    attention_heads=8,
    kv_heads=4,
    parameters=1 << 30,
    kv_values_per_token=4096,
)


def resolved(host: HostFacts = CPU, model: ModelFacts = MODEL, /, **values: object) -> ResolvedConfig:
    return resolve(config_from_values({"model_path": "m", **values}), host, model)


def complaint(host: HostFacts = CPU, model: ModelFacts = MODEL, /, **values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(host, model, **values)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_narrow_kv_cache_holds_more_tokens() -> None:
    whole, narrow = resolved(), resolved(kv_cache_dtype="fp8_e4m3")
    assert (narrow.dtype, narrow.kv_dtype) == ("float32", "float8_e4m3fn")
    budget = int((16 << 30) * 0.4 - (4 << 30))
    assert narrow.max_total_tokens == min(budget // 4096, 64 * 4096 + 16) // 16 * 16 > whole.max_total_tokens


def test_defaults_on_cpu() -> None:
    config = resolved()
    assert config.device == "cpu"
    assert config.dtype == config.kv_dtype == "float32"
    assert config.page_size == 16
    assert config.chunked_prefill_size == 512
    assert config.max_running_requests == 64
    assert config.context_length == 4096
    assert config.prefill_attention_backend == config.decode_attention_backend == "torch_native"
    assert config.cuda_graph_batch_sizes == ()
    assert config.transfer_protocol == "tcp"
    assert config.tokenizer_path == config.served_model_name == "m"
    assert config.random_seed == 7
    assert config.model_overrides == config.preferred_sampling_params == {}
    assert config.bootstrap_addrs == ()


def test_defaults_on_cuda() -> None:
    config = resolved(H200)
    assert config.device == "cuda"
    assert config.dtype == "bfloat16"
    assert config.page_size == 64
    assert config.chunked_prefill_size == 8192
    assert config.max_running_requests == 256
    assert config.prefill_attention_backend == config.decode_attention_backend == "auto"
    assert config.cuda_graph_batch_sizes[:5] == (1, 2, 4, 8, 16)
    assert config.cuda_graph_batch_sizes[-1] == 256


def test_dtypes() -> None:
    assert resolved(dtype="half").dtype == "float16"
    assert resolved(dtype="float").dtype == "float32"
    assert resolved(H200, dataclasses.replace(MODEL, dtype="float32")).dtype == "bfloat16"
    assert resolved(H200, dataclasses.replace(MODEL, dtype="float16")).dtype == "float16"


def test_the_pool_holds_what_memory_allows() -> None:
    # 40% of 16 GiB less 4 GiB of float32 weights, at 16 KiB per token, would hold 157,286 tokens: fewer than 64 × 4096.
    assert resolved().max_total_tokens == int((16 << 30) * 0.4 - (4 << 30)) // (4096 * 4) // 16 * 16
    assert resolved(mem_fraction_static=0.5).max_total_tokens == (4 << 30) // (4096 * 4)


def test_the_pool_is_no_larger_than_requests_could_fill() -> None:
    assert resolved(max_running_requests=2, context_length=1000).max_total_tokens == 2016


def test_ranks_on_one_cpu_share_its_memory_and_split_heads() -> None:
    one, two = resolved(mem_fraction_static=0.5), resolved(mem_fraction_static=0.5, tp_size=2)
    assert two.tp_size == 2
    assert two.max_total_tokens == one.max_total_tokens  # half the memory and half the weights, half the bytes a token


def test_replicated_heads_cost_their_full_size() -> None:
    model = dataclasses.replace(MODEL, kv_heads=1, attention_heads=8, kv_values_per_token=1024)
    budget = (16 << 30) // 4 // 2 - (4 << 30) // 4
    assert resolved(CPU, model, tp_size=4, mem_fraction_static=0.5).max_total_tokens == budget // 4096 // 16 * 16


def test_an_asked_for_pool_is_cut_to_whole_pages() -> None:
    assert resolved(max_total_tokens=1000).max_total_tokens == 992


def test_chunking_can_be_switched_off() -> None:
    assert resolved(chunked_prefill_size=-1).chunked_prefill_size is None


def test_one_backend_for_both_and_one_for_each() -> None:
    config = resolved(H200, attention_backend="flashinfer", decode_attention_backend="torch_native")
    assert (config.prefill_attention_backend, config.decode_attention_backend) == ("flashinfer", "torch_native")
    assert resolved(H200, prefill_attention_backend="fa3").prefill_attention_backend == "fa3"


def test_graph_batch_sizes() -> None:
    assert resolved(H200, disable_cuda_graph=True).cuda_graph_batch_sizes == ()
    assert resolved(H200, cuda_graph_bs=(8, 1, 8)).cuda_graph_batch_sizes == (1, 8)
    assert resolved(H200, cuda_graph_max_bs=10).cuda_graph_batch_sizes == (1, 2, 4, 8, 10)
    assert resolved(H200, cuda_graph_max_bs=3, disable_cuda_graph_padding=True).cuda_graph_batch_sizes == (1, 2, 3)


def test_json_values_are_read() -> None:
    config = resolved(json_model_override_args='{"rope_theta": 1}', preferred_sampling_params='{"temperature": 0}')
    assert config.model_overrides == {"rope_theta": 1}
    assert config.preferred_sampling_params == {"temperature": 0}


def test_transfer_settings() -> None:
    config = resolved(H200, disaggregation_mode="prefill", disaggregation_ib_device="mlx5_0")
    assert config.transfer_protocol == "rdma"
    config = resolved(disaggregation_bootstrap_addr="10.0.0.7:8998,[::1]:9000")
    assert config.bootstrap_addrs == (("10.0.0.7", 8998), ("::1", 9000))


NODES: dict[str, object] = {"nnodes": 2, "tp_size": 2, "dist_init_addr": "10.0.0.7:20000"}
WRONG: list[tuple[HostFacts, dict[str, object], str]] = [
    (CPU, {"model_path": ""}, "--model-path is missing"),
    (CPU, {"disaggregation_mode": "decode"}, "--disaggregation-mode decode needs --disaggregation-bootstrap-addr"),
    (CPU, {"device": "cuda"}, "--device cuda: no CUDA device is visible; use --device cpu"),
    (H200, {"tp_size": 4}, "--tp-size 4 needs as many CUDA devices; 2 are visible"),
    (CPU, {"tp_size": 3}, "--tp-size 3 does not divide the model's 8 attention heads"),
    (CPU, {"tp_size": 0}, "--tensor-parallel-size must be above 0"),
    (H200, {**NODES, "tp_size": 8}, "--tp-size 8 needs 4 CUDA devices on every node; 2 are visible: lower it"),
    (CPU, {**NODES, "nnodes": 0}, "--nnodes must be above 0"),
    (CPU, {**NODES, "node_rank": 2}, "--node-rank 2: with --nnodes 2 it lies between 0 and 1"),
    (CPU, {**NODES, "tp_size": 1}, "--nnodes 2 does not divide --tp-size 1: every node has as many ranks"),
    (CPU, {**NODES, "nnodes": 1}, "--dist-init-addr needs --nnodes above 1"),
    (CPU, {**NODES, "dist_init_addr": None}, "--nnodes 2 needs --dist-init-addr: a HOST:PORT of node 0"),
    (CPU, {**NODES, "dist_init_addr": "h"}, "--dist-init-addr: 'h' is not HOST:PORT"),
    (CPU, {"context_length": 5000}, "--context-length 5000 is beyond the model's 4096"),
    (CPU, {"context_length": 0}, "--context-length must be above 0"),
    (CPU, {"max_total_tokens": 8}, "--max-total-tokens 8 is less than one page of 16 tokens"),
    (CPU, {"mem_fraction_static": 0.2}, "the weights leave no room for a KV pool"),
    (CPU, {"mem_fraction_static": 1.5}, "--mem-fraction-static 1.5: a fraction lies between 0 and 1"),
    (CPU, {"page_size": 0}, "--page-size must be above 0"),
    (CPU, {"chunked_prefill_size": 0}, "--chunked-prefill-size must be above 0, or -1"),
    (CPU, {"enable_mixed_chunk": True, "chunked_prefill_size": -1}, "--enable-mixed-chunk needs chunks"),
    (CPU, {"attention_backend": "flashinfer"}, "--attention-backend flashinfer needs --device cuda; use torch_native"),
    (BARE_GPU, {"attention_backend": "flashinfer"}, "needs FlashInfer: install the cuda extra, or use torch_native"),
    (CPU, {"decode_attention_backend": "triton"}, "--decode-attention-backend triton needs --device cuda"),
    (A100, {"decode_attention_backend": "fa3"}, "--decode-attention-backend fa3 runs on Hopper GPUs only"),
    (CPU, {"sampling_backend": "flashinfer"}, "--sampling-backend flashinfer is not supported yet: use pytorch"),
    (CPU, {"cuda_graph_max_bs": 8}, "--cuda-graph-max-bs needs --device cuda: leave it out"),
    (CPU, {"cuda_graph_bs": (8,)}, "--cuda-graph-bs needs --device cuda: leave it out"),
    (H200, {"cuda_graph_bs": (0,)}, "--cuda-graph-bs must be above 0"),
    (CPU, {"json_model_override_args": "{"}, "--json-model-override-args: not JSON"),
    (CPU, {"json_model_override_args": "[]"}, "--json-model-override-args: JSON, but no object"),
    (
        CPU,
        {"preferred_sampling_params": '{"heat": 1}'},
        "--preferred-sampling-params: no sampling parameter is called heat",
    ),
    (CPU, {"skip_tokenizer_init": True, "chat_template": "x"}, "--chat-template needs a tokenizer"),
    (CPU, {"port": 70000}, "--port 70000: a port lies between 0 and 65535"),
    (CPU, {"grpc_port": -1}, "--grpc-port -1: a port lies between 0 and 65535"),
    (CPU, {"grpc_port": 30000}, "--grpc-port 30000 is the port of --port too"),
    (CPU, {"log_level": "loud"}, "--log-level: 'loud' is not one of debug"),
    (CPU, {"stream_interval": 0}, "--stream-interval must be above 0"),
    (CPU, {"watchdog_timeout": 0}, "--watchdog-timeout must be above 0"),
    (CPU, {"max_queued_requests": -1}, "--max-queued-requests must be 0 or more"),
    (CPU, {"disaggregation_bootstrap_addr": "here"}, "--disaggregation-bootstrap-addr: 'here' is not HOST:PORT"),
    (CPU, {"disaggregation_verify": True}, "--disaggregation-verify needs --disaggregation-mode"),
    (CPU, {"disaggregation_decode_tp": 0}, "--disaggregation-decode-tp must be above 0"),
    (CPU, {"disaggregation_decode_tp": 2}, "--disaggregation-decode-tp is for --disaggregation-mode prefill"),
    (CPU, {"disaggregation_decode_dp": 2}, "--disaggregation-decode-dp 2: every worker of this version has size 1"),
    (CPU, {"disaggregation_prefill_pp": 2}, "--disaggregation-prefill-pp 2: every worker of this version has size 1"),
    (
        CPU,
        {
            "disaggregation_mode": "decode",
            "disaggregation_transfer_backend": "fake",
            "disaggregation_bootstrap_addr": "10.0.0.7:8998",
        },
        "--disaggregation-transfer-backend fake runs one leg alone",
    ),
    (
        CPU,
        {"disaggregation_transfer_protocol": "nvlink_intra"},
        "--disaggregation-transfer-protocol nvlink_intra needs --device cuda; use tcp",
    ),
]


@pytest.mark.parametrize(("host", "values", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_bad_combinations_name_the_flag_and_the_remedy(
    host: HostFacts, values: dict[str, object], message: str
) -> None:
    assert re.search(re.escape(message), complaint(host, **values))


def test_kv_heads_and_ranks_must_divide() -> None:
    model = dataclasses.replace(MODEL, attention_heads=12, kv_heads=4)
    assert "kv-heads: one must divide the other" in complaint(CPU, model, tp_size=6)


@given(
    tokens=st.none() | st.integers(64, 10**7),
    page=st.none() | st.sampled_from([1, 16, 64]),
    running=st.none() | st.integers(1, 4096),
    memory=st.integers(14 << 30, 1 << 40),
    on_cuda=st.booleans(),
)
def test_whatever_is_left_open_is_decided_the_same_each_time(
    tokens: int | None, page: int | None, running: int | None, memory: int, on_cuda: bool
) -> None:
    host = dataclasses.replace(H200 if on_cuda else CPU, host_memory=memory)
    values = {"max_total_tokens": tokens, "page_size": page, "max_running_requests": running}
    config = resolved(host, **values)
    assert config == resolved(host, **values)
    assert config.max_total_tokens % config.page_size == 0
    assert config.max_total_tokens >= config.page_size


def test_deterministic_inference_has_one_attention_for_prefill_and_decode() -> None:
    config = resolved(H200, enable_deterministic_inference=True)
    assert (config.prefill_attention_backend, config.decode_attention_backend) == ("triton", "triton_extend")
    assert "needs --device cuda" in complaint(CPU, enable_deterministic_inference=True)
    assert "not fa3" in complaint(H200, enable_deterministic_inference=True, attention_backend="fa3")
    message = complaint(H200, enable_deterministic_inference=True, model_impl="transformers")
    assert "leave out --model-impl transformers" in message


def test_8_bit_weights_leave_more_room_for_the_pool() -> None:
    model = dataclasses.replace(MODEL, parameters=60 << 30, layer_parameters=50 << 30, context_length=1 << 20)
    plain, narrow = resolved(H200, model, tp_size=2), resolved(H200, model, tp_size=2, quantization="fp8")
    stored = resolved(H200, dataclasses.replace(model, quantization="fp8"), tp_size=2)
    assert plain.max_total_tokens < narrow.max_total_tokens == stored.max_total_tokens
