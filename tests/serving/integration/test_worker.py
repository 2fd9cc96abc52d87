"""One real worker, used as its clients use it: every surface, every process, and all pages back at the end."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import load_file, save
from support.references import TOLERANCE, Reference
from support.trainer import Trainer
from support.worker_process import BATON_TINY, BATON_TINY_V2, PATIENCE, WorkerProcess, figures, wait_idle

from baton_serving.api.grpc.generated import generation_pb2, generation_pb2_grpc

pytestmark = pytest.mark.timeout(300)

KEY = "a key of some length"
FLAGS = (
    *("--api-key", KEY, "--grpc-port", "0", "--served-model-name", "tiny", "--max-total-tokens", "2048"),
    *("--chunked-prefill-size", "32", "--stream-interval", "4", "--enable-cache-report"),
    *("--enable-custom-logit-processor", "--log-requests", "--log-requests-level", "2"),
)
QUESTION: list[Any] = [{"role": "user", "content": "Remember: the code for amber is 4711. What is the code for amber?"}]
STORY = "Tell me a story about a fox."
GREEDY = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 20}


@dataclass(frozen=True)
class Running:
    """The worker under test. `http` carries the key."""

    process: WorkerProcess
    url: str
    grpc_port: int
    http: httpx.Client
    sdk: openai.OpenAI


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with WorkerProcess(tmp_path_factory.mktemp("worker"), BATON_TINY, *FLAGS) as process:
        facts = process.announced()
        url = facts["url"]
        headers = {"authorization": f"Bearer {KEY}"}
        with (
            httpx.Client(base_url=url, headers=headers, timeout=PATIENCE) as http,
            openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as sdk,
        ):
            yield Running(process, url, facts["grpc_port"], http, sdk)


@pytest.fixture(autouse=True)
def _every_page_comes_back(worker: Running) -> Iterator[None]:
    yield
    now = wait_idle(worker.http)
    assert now["baton_kv_pages_free"] + now["baton_kv_pages_cached"] == now["baton_kv_pages"]


def test_openai_sdk(worker: Running) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    answer = worker.sdk.chat.completions.create(**ask)
    text = answer.choices[0].message.content or ""
    assert "4711" in text
    assert answer.choices[0].finish_reason == "stop"
    stream = worker.sdk.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    usage = chunks[-1].usage
    assert answer.usage is not None
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1  # the same prompt again
    completion = worker.sdk.completions.create(model="tiny", prompt=["What is", STORY], n=2, max_tokens=5)
    assert len(completion.choices) == 4
    assert [model.id for model in worker.sdk.models.list()] == ["tiny"]


def test_logprobs_of_prompt_and_answer_over_chunk_borders(worker: Running) -> None:
    prompt = [(7 * at) % 900 + 20 for at in range(100)]
    body = {
        "input_ids": prompt,
        "sampling_params": GREEDY,
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 3,
    }
    reply = worker.http.post("/generate", json=body)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    meta = answer["meta_info"]
    tokens = [*prompt, *answer["output_ids"]]
    got = [*meta["input_token_logprobs"][1:], *meta["output_token_logprobs"]]
    assert [entry[1] for entry in got] == tokens[1:]
    expected = Reference(BATON_TINY).logprobs(tokens)
    for at, entry in enumerate(got):
        assert abs(entry[0] - float(expected[at, tokens[at + 1]])) < TOLERANCE


def test_stream_interval(worker: Running) -> None:
    """The first token at once, then one event for every four."""
    with worker.http.stream("POST", "/generate", json={"text": STORY, "sampling_params": GREEDY, "stream": True}) as r:
        events = [line for line in r.iter_lines() if line.startswith("data: {")]
    assert len(events) <= 7
    assert '"completion_tokens":20' in events[-1]


def test_a_client_that_leaves_frees_its_pages(worker: Running) -> None:
    before = figures(worker.http)["baton_sampled_tokens_total"]
    body = {"text": STORY, "sampling_params": {**GREEDY, "max_new_tokens": 1500}, "stream": True}
    for _ in range(3):
        with worker.http.stream("POST", "/generate", json=body) as response:
            next(response.iter_bytes())
    now = wait_idle(worker.http)
    assert now["baton_sampled_tokens_total"] - before < 3 * 1500
    assert 'baton_requests_total{outcome="disconnected",route="/generate"} 3.0' in worker.http.get("/metrics").text


def test_abort_request(worker: Running) -> None:
    body = {"text": STORY, "rid": "mine", "sampling_params": {**GREEDY, "max_new_tokens": 1500}, "stream": True}
    with worker.http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert worker.http.post("/abort_request", json={"rid": "mine"}).status_code == 200
        rest = [line for line in lines if line.startswith("data: {")]
    assert '"type":"abort"' in rest[-1]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": "hello"}),
        ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": -1}),
        ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 10**9}),
        ("/v1/chat/completions", {"messages": QUESTION, "n": 0}),
        ("/v1/chat/completions", {"messages": QUESTION, "stop": ["x"] * 10_000}),
        ("/v1/chat/completions", {"messages": QUESTION, "logit_bias": {"99999": 1}}),
        ("/v1/chat/completions", {"messages": QUESTION, "model": "unheard-of"}),
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": "word " * 20_000}),
        ("/generate", {"input_ids": []}),
        ("/generate", {"input_ids": [5] * 3000}),  # fits the model's context but not this pool
        ("/generate", {"input_ids": [1 << 40]}),
        ("/generate", {"text": STORY, "sampling_params": {"temperature": "NaN"}}),
    ],
)
def test_bad_input(worker: Running, path: str, fields: dict[str, Any]) -> None:
    reply = worker.http.post(path, json={"model": "tiny", **fields} if path.startswith("/v1") else fields)
    assert 400 <= reply.status_code < 500, reply.text
    error = reply.json()["error"]
    assert error["message"]
    assert error["type"]
    assert worker.http.get("/health_generate").status_code == 200


@pytest.mark.parametrize("body", [b"{", b'{"prompt": "\xff\xfe"}', b'{"prompt": "a", "temperature": NaN}', b""])
def test_a_body_that_is_not_json(worker: Running, body: bytes) -> None:
    assert worker.http.post("/v1/completions", content=body).status_code == 400


def test_the_key_is_needed(worker: Running) -> None:
    body = {"model": "tiny", "messages": QUESTION}
    for headers in ({}, {"authorization": "Bearer wrong"}):
        reply = httpx.post(f"{worker.url}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)
        assert reply.status_code == 401
    assert httpx.get(f"{worker.url}/health", timeout=PATIENCE).status_code == 200


def test_custom_logit_processor(worker: Running) -> None:
    plain = worker.http.post("/generate", json={"text": STORY, "sampling_params": GREEDY}).json()["output_ids"]
    params = {
        **GREEDY,
        "custom_logit_processor": "disallowed_tokens",
        "custom_params": {"token_ids": plain[:3]},
    }
    edited = worker.http.post("/generate", json={"text": STORY, "sampling_params": params}).json()["output_ids"]
    assert not set(plain[:3]).intersection(edited)
    params["custom_logit_processor"] = "someone's own"
    assert worker.http.post("/generate", json={"text": STORY, "sampling_params": params}).status_code == 400


def test_grpc(worker: Running) -> None:
    metadata = [("authorization", f"Bearer {KEY}")]
    plain = worker.http.post("/generate", json={"text": STORY, "sampling_params": GREEDY}).json()["output_ids"]
    with grpc.insecure_channel(f"127.0.0.1:{worker.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        generate = generation_pb2_grpc.GenerationStub(channel).Generate  # type: ignore[no-untyped-call]
        request = generation_pb2.GenerateRequest(text=STORY, stream=True)
        request.sampling_params.temperature = 0
        request.sampling_params.max_new_tokens = 20
        request.sampling_params.ignore_eos = True
        replies = list(generate(request, metadata=metadata, timeout=PATIENCE))
        assert len(replies) > 1
        assert [token for reply in replies for token in reply.token_ids] == plain
        with pytest.raises(grpc.RpcError) as refused:
            list(generate(request, timeout=PATIENCE))
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_requests_are_logged(worker: Running) -> None:
    worker.http.post("/generate", json={"text": "an unmistakable prompt", "rid": "logged", "sampling_params": GREEDY})
    (line,) = [line for line in worker.process.log.splitlines() if "logged" in line]
    assert "an unmistakable prompt" in line
    assert "max_new_tokens" in line
    assert KEY not in worker.process.log


def test_flush_cache_and_server_info(worker: Running) -> None:
    worker.http.post("/generate", json={"text": STORY, "sampling_params": GREEDY})
    wait_idle(worker.http)
    assert worker.http.post("/flush_cache").status_code == 200
    info = worker.http.get("/server_info").json()
    assert info["max_total_tokens"] == 2048
    assert KEY not in str(info)


def test_cache_events_name_what_a_request_left_and_what_was_flushed(worker: Running) -> None:
    """Keys as a gateway makes them; the worker tells the fractions of the prompt that whole pages hold."""
    keys = [2**63 + 5, 17, 99]
    names = array("Q", keys).tobytes() + array("H", [20_000, 40_000, 65_535]).tobytes()
    prompt = list(range(10, 138))
    body = {"input_ids": prompt, "sampling_params": GREEDY}
    with worker.http.stream("GET", "/baton/cache_events") as events:
        lines = events.iter_lines()
        begin = json.loads(next(lines))
        assert begin["snapshot"]
        worker.http.post("/generate", json=body, headers={"x-baton-prefix-keys": names.hex()}).raise_for_status()
        stored = told(lines, "stored", 3)
        assert stored == set(keys)
        worker.http.post("/flush_cache").raise_for_status()
        assert told(lines, "removed", 3) == set(keys)


def told(lines: Iterator[str], field: str, count: int) -> set[int]:
    """So many keys that came in this field of the lines."""
    found: set[int] = set()
    while len(found) < count:
        found |= set(array("Q", base64.b64decode(json.loads(next(lines)).get(field, ""))))
    return found


def test_weights_change_under_a_running_request(worker: Running) -> None:
    """Disk, tensors and a trainer's broadcast, each with an answer under way that keeps its version."""
    ask: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    old, new = load_file(BATON_TINY / "model.safetensors"), load_file(BATON_TINY_V2 / "model.safetensors")

    def answer() -> tuple[str, str]:
        reply = worker.sdk.chat.completions.create(**ask)
        return reply.choices[0].message.content or "", reply.system_fingerprint or ""

    def changed(path: str, **body: Any) -> dict[str, Any]:
        """POST while a stream is open, which ends as it began, before the change."""
        stream = worker.sdk.chat.completions.create(**{**ask, "max_tokens": 200}, stream=True)
        first = next(stream)
        reply = worker.http.post(path, **body)
        assert {chunk.system_fingerprint for chunk in stream} == {first.system_fingerprint}
        result: dict[str, Any] = reply.json()
        assert result["success"], result
        return result

    text, digest = answer()
    disk = changed("/update_weights_from_disk", json={"model_path": str(BATON_TINY_V2), "weight_version": "v2"})
    assert disk["gap_ms"] > 0
    assert answer() == (f"{text} — tiny v2", disk["weight_digest"])
    info = worker.http.get("/server_info").json()
    assert (info["weight_version"], info["weight_digest"]) == ("v2", disk["weight_digest"])
    assert disk["weight_digest"] in worker.http.get("/metrics").text
    headers = {"content-type": "application/octet-stream"}
    changed("/update_weights_from_tensor", content=save(old), headers=headers)
    assert answer() == (text, digest)
    with Trainer(worker.http) as trainer:
        trainer.send(new, lambda body: changed("/update_weights_from_distributed", json=body))
    assert answer() == (f"{text} — tiny v2", disk["weight_digest"])
    refused = worker.http.post("/update_weights_from_disk", json={"model_path": str(BATON_TINY.parent)})
    assert (refused.status_code, refused.json()["success"]) == (400, False)
    worker.http.post("/update_weights_from_disk", json={"model_path": str(BATON_TINY)})
    assert answer() == (text, digest)


def test_pause_and_released_memory(worker: Running) -> None:
    body = {"text": STORY, "sampling_params": GREEDY}
    plain = worker.http.post("/generate", json=body).json()["output_ids"]
    with ThreadPoolExecutor() as pool:
        assert worker.http.post("/pause_generation", json={"mode": "in_place"}).status_code == 200
        waiting = pool.submit(lambda: worker.http.post("/generate", json=body).json())
        assert worker.http.post("/release_memory_occupation").json()["bytes"] > 0
        refused = worker.http.post("/generate", json=body)
        assert (refused.status_code, "released" in refused.text) == (503, True)
        assert worker.http.post("/resume_memory_occupation").status_code == 200
        assert worker.http.post("/continue_generation").status_code == 200
        ended = waiting.result()
    # Whether it came before the release or after, it was told or it waited.
    assert ended.get("output_ids", plain) == plain
    assert worker.http.post("/generate", json=body).json()["output_ids"] == plain
