"""New weights and lent memory of a worker on a GPU, whose CUDA graphs must find everything where it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save
from support.worker_process import BATON_TINY, BATON_TINY_V2, PATIENCE, WorkerProcess, wait_idle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FLAGS = ("--device", "cuda", "--max-total-tokens", "8192", "--max-running-requests", "8")
PROMPTS = [[7, 3, 99, 20 + n, 5] * (3 + 9 * n) for n in range(4)]


@pytest.fixture(scope="module", params=[("--dtype", "float32"), ("--dtype", "bfloat16", "--quantization", "fp8")])
def http(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        WorkerProcess(tmp_path_factory.mktemp("worker"), BATON_TINY, *FLAGS, *request.param) as process,
        httpx.Client(base_url=process.announced()["url"], timeout=PATIENCE) as client,
    ):
        yield client


def answers(http: httpx.Client) -> list[list[int]]:
    """Of prompts alone, whose KV nobody cached under other weights, and all together."""
    params = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 24}
    alone = [http.post("/generate", json={"input_ids": p, "sampling_params": params}).json() for p in PROMPTS]
    together = http.post("/generate", json={"input_ids": PROMPTS, "sampling_params": params}).json()
    tokens: list[list[int]] = [answer["output_ids"] for answer in alone]
    assert len(together) == len(tokens)
    return tokens


def changed(http: httpx.Client, path: str, **body: Any) -> str:
    """The digest of what serves now."""
    reply = http.post(path, **body)
    result: dict[str, Any] = reply.json()
    assert result["success"], result
    digest: str = result["weight_digest"]
    assert http.get("/server_info").json()["weight_digest"] == digest
    return digest


def fresh(model: Path, folder: Path, flags: tuple[str, ...]) -> list[list[int]]:
    """What a worker answers that was started with these weights."""
    with (
        WorkerProcess(folder, model, *FLAGS, *flags) as process,
        httpx.Client(base_url=process.announced()["url"], timeout=PATIENCE) as client,
    ):
        return answers(client)


def test_weights_change_in_place_under_the_graphs(http: httpx.Client, request: pytest.FixtureRequest) -> None:
    flags: tuple[str, ...] = request.node.callspec.params["http"]
    expected = fresh(BATON_TINY_V2, request.getfixturevalue("tmp_path"), flags)
    before, digest = answers(http), http.get("/server_info").json()["weight_digest"]
    assert before != expected, "prompts to which both models answer alike show nothing"
    new = changed(http, "/update_weights_from_disk", json={"model_path": str(BATON_TINY_V2)})
    assert new != digest
    assert answers(http) == expected
    headers = {"content-type": "application/octet-stream"}
    old = save(load_file(BATON_TINY / "model.safetensors"))
    assert changed(http, "/update_weights_from_tensor", content=old, headers=headers) == digest
    assert answers(http) == before


def test_lent_memory_comes_back_with_its_graphs(http: httpx.Client) -> None:
    before = answers(http)
    wait_idle(http)
    assert http.post("/pause_generation", json={"mode": "in_place"}).status_code == 200
    free = torch.cuda.mem_get_info()[0]
    lent = http.post("/release_memory_occupation").json()["bytes"]
    assert lent > 0
    assert torch.cuda.mem_get_info()[0] > free
    assert http.post("/resume_memory_occupation").status_code == 200
    assert http.post("/continue_generation").status_code == 200
    assert answers(http) == before
