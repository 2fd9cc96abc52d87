"""What a worker does when something breaks: its processes die, its weights are bad, it is told to stop."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import write_tiny_checkpoint
from support.worker_process import BATON_TINY, PATIENCE, WorkerProcess, wait_idle

pytestmark = pytest.mark.timeout(300)

BAD_TOKEN = 77
LONG = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 500, "logit_bias": {str(BAD_TOKEN): -100}}
TINY_FLAGS = ("--skip-tokenizer-init", "--max-total-tokens", "8192", "--chunked-prefill-size", "32")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


class OpenRequest:
    """A long streamed answer that a thread reads to its end, whatever that is."""

    def __init__(self, http: httpx.Client, prompt: list[int], params: dict[str, Any]) -> None:
        self.begun = threading.Event()
        self.events: list[Any] = []
        self.ended_at = 0.0
        self._body = {"input_ids": prompt, "sampling_params": params, "stream": True}
        self._http = http
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self._http.stream("POST", "/generate", json=self._body) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.events.append("[DONE]" if line.endswith("[DONE]") else json.loads(line[6:]))
                    self.begun.set()
        self.ended_at = time.monotonic()

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the stream hangs"


def _client(worker: WorkerProcess) -> httpx.Client:
    return httpx.Client(base_url=worker.announced()["url"], timeout=PATIENCE)


@pytest.mark.parametrize(("name", "tp_size"), [("detokenizer", 1), ("rank1", 2)])
def test_the_death_of_any_process_ends_the_worker(tmp_path: Path, llama: Path, name: str, tp_size: int) -> None:
    """Every open request hears of it within five seconds, the exit status says so, the last requests are on disk."""
    dumps = tmp_path / "dumps"
    flags = (*TINY_FLAGS, "--tp-size", str(tp_size), "--crash-dump-folder", str(dumps))
    with WorkerProcess(tmp_path, llama, *flags) as worker, _client(worker) as http:
        requests = [OpenRequest(http, [5 + at] * 20, LONG) for at in range(4)]
        assert all(request.begun.wait(PATIENCE) for request in requests)
        killed_at = time.monotonic()
        worker.child(name).kill()
        for request in requests:
            request.join()
            assert request.ended_at - killed_at < 5
            assert request.events[-1] != "[DONE]"
            assert name in request.events[-1]["error"]["message"]
        assert worker.ended() == 1
        assert f"{name} ended with exit code -9" in worker.log
        (dump,) = dumps.iterdir()
        head, *lines = [json.loads(line) for line in dump.read_text().splitlines()]
        assert name in head["failure"]["message"]
        assert [line["outcome"] for line in lines if line["route"] == "/generate"] == ["open"] * 4


@pytest.fixture(scope="module")
def with_nan(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerProcess, httpx.Client]]:
    """A worker whose weights hold NaN in the embedding of BAD_TOKEN, so that only prompts with it are poisoned."""
    path = tmp_path_factory.mktemp("nan") / "checkpoint"
    path.mkdir()
    (path / "config.json").write_bytes((llama / "config.json").read_bytes())
    tensors = load_file(llama / "model.safetensors")
    tensors["model.embed_tokens.weight"][BAD_TOKEN] = torch.nan
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    flags = (*TINY_FLAGS, "--enable-nan-detection")
    with WorkerProcess(tmp_path_factory.mktemp("worker"), path, *flags) as worker, _client(worker) as http:
        yield worker, http


def _generate(http: httpx.Client, prompt: list[int]) -> httpx.Response:
    return http.post("/generate", json={"input_ids": prompt, "sampling_params": {**LONG, "max_new_tokens": 8}})


def test_nan_fails_the_request_that_met_it_and_no_other(with_nan: tuple[WorkerProcess, httpx.Client]) -> None:
    _, http = with_nan
    sound = [[3, 4, 5], [9] * 50]
    before = [_generate(http, prompt).json()["output_ids"] for prompt in sound]
    company = OpenRequest(http, [8, 9, 10], LONG)
    assert company.begun.wait(PATIENCE)
    for _ in range(2):  # the second time from the cache, were the poisoned pages kept there
        reply = _generate(http, [*range(3, 40), BAD_TOKEN, 5])
        assert reply.status_code == 500
        assert "not numbers" in reply.json()["error"]["message"]
    company.join()
    assert company.events[-2]["meta_info"]["completion_tokens"] == LONG["max_new_tokens"]
    assert [_generate(http, prompt).json()["output_ids"] for prompt in sound] == before
    figures = wait_idle(http)
    assert figures["baton_kv_pages_free"] + figures["baton_kv_pages_cached"] == figures["baton_kv_pages"]


def test_a_worker_without_tokenizer(with_nan: tuple[WorkerProcess, httpx.Client]) -> None:
    _, http = with_nan
    answer = _generate(http, [3, 4, 5]).json()
    assert len(answer["output_ids"]) == 8
    assert answer["text"] == ""
    for path, body in (("/generate", {"text": "a"}), ("/v1/completions", {"model": "", "prompt": "a"})):
        reply = http.post(path, json=body)
        assert 400 <= reply.status_code < 500
    assert http.get("/health_generate").status_code == 200


def test_sigterm_lets_open_requests_end(with_nan: tuple[WorkerProcess, httpx.Client]) -> None:
    """The last test of this worker: an open stream goes on to its end, the exit status is 0, nothing is left.

    Requests that come meanwhile are sent elsewhere.
    """
    worker, http = with_nan
    request = OpenRequest(http, [5] * 20, LONG)
    assert request.begun.wait(PATIENCE)
    worker.terminate()
    while http.get("/health").status_code == 200:
        assert not request.ended_at, "the drain is not seen"
    refused = _generate(http, [3, 4, 5])
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "shutting down" in refused.json()["error"]["message"]
    assert not request.ended_at
    request.join()
    assert request.events[-1] == "[DONE]"
    assert request.events[-2]["meta_info"]["completion_tokens"] == LONG["max_new_tokens"]
    assert worker.ended() == 0


def _truncated(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _corrupt(path: Path) -> None:
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(8)
        file.write(b"no JSON here")


def _unsupported(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    config.update(architectures=["MambaForCausalLM"], model_type="mamba")
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_truncated, "model.safetensors"),
        (_corrupt, "the safetensors header is damaged"),
        (_unsupported, "MambaForCausalLM"),
    ],
    ids=["truncated weights", "corrupt weights", "unsupported architecture"],
)
def test_a_checkpoint_that_cannot_be_served(
    tmp_path: Path, llama: Path, spoil: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "checkpoint"
    path.mkdir()
    for file in llama.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    spoil(path)
    _refused(tmp_path, path, words, *TINY_FLAGS)


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _refused(tmp_path, BATON_TINY, f"--port {port}", "--port", str(port))


def test_a_grpc_port_in_use(tmp_path: Path) -> None:
    """Whoever has it would share it, as gRPC's servers do."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        _refused(tmp_path, BATON_TINY, f"--grpc-port {port}", "--grpc-port", str(port))


def test_an_unknown_flag(tmp_path: Path) -> None:
    _refused(tmp_path, BATON_TINY, "--max-running-requests", "--max-runing-requests", "4")


def _refused(folder: Path, model: Path, words: str, *flags: str) -> None:
    """Exit status 2, and one line that says what to do."""
    with WorkerProcess(folder, model, *flags) as worker:
        assert worker.ended() == 2
        (line,) = worker.log.splitlines()
        assert line.startswith("baton: ")
        assert words in line
