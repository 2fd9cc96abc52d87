"""Values that an SGLang user knows for some options, and those of them that Baton does not have yet."""

from __future__ import annotations

ATTENTION_BACKENDS = (
    *("triton", "torch_native", "cutlass_mla", "fa3", "flashinfer", "flashmla", "trtllm_mla", "trtllm_mha"),
    *("dual_chunk_flash_attn", "hybrid_linear_attn", "aiter", "wave", "intel_amx", "ascend"),
)
ATTENTION_SUPPORTED = ("torch_native", "fa3", "flashinfer", "triton")
ATTENTION_NOT_YET = tuple(name for name in ATTENTION_BACKENDS if name not in ATTENTION_SUPPORTED)
QUANTIZATIONS = (
    *("awq", "fp8", "gptq", "marlin", "gptq_marlin", "awq_marlin", "bitsandbytes", "gguf", "modelopt", "modelopt_fp4"),
    *("petit_nvfp4", "w8a8_int8", "w8a8_fp8", "moe_wna16", "qoq", "w4afp8", "mxfp4"),
)
QUANTIZATIONS_NOT_YET = tuple(name for name in QUANTIZATIONS if name != "fp8")
LOAD_FORMATS = (
    *("auto", "pt", "safetensors", "npcache", "dummy", "sharded_state", "gguf", "bitsandbytes", "layered", "remote"),
)
TOOL_PARSERS_NOT_YET = (
    *("deepseekv3", "deepseekv31", "glm", "glm45", "gpt-oss", "kimi_k2", "pythonic", "qwen3_coder", "step3"),
)
LOAD_NOT_YET = ("npcache", "sharded_state", "gguf", "bitsandbytes", "layered", "remote")
