"""One worker over two nodes, here two addresses of this machine: alone, and as one leg of a handoff."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import zmq
from safetensors.torch import load_file, save
from support.baton_processes import free_port
from support.local_worker import LocalWorker
from support.worker_process import BATON_TINY, BATON_TINY_V2, PATIENCE, WorkerProcess

from baton_serving.local.service import LocalService
from baton_serving.sampling.params import SamplingParams

pytestmark = pytest.mark.timeout(600)

SIZES = ("--max-total-tokens", "4096", "--chunked-prefill-size", "32")
PROMPT = [(7 * at) % 900 + 20 for at in range(100)]
GREEDY = SamplingParams(max_new_tokens=20, temperature=0.0, ignore_eos=True)
QUESTION = [{"role": "user", "content": "Remember: the code for amber is 4711. What is the code for amber?"}]
TWO_NODES = """
apiVersion: baton.dev/v1alpha1
kind: InferenceService
metadata: {{name: tiny}}
spec:
  model: {{uri: 'file://{model}'}}
  prefill: {{extraArgs: [--device, cpu, --max-total-tokens, "4096"]}}
  decode: {{parallelism: {{tensor: 2, nodes: 2}}, extraArgs: [--device, cpu, --max-total-tokens, "4096"]}}
"""


def node(folder: Path, rank: int, port: int, *flags: str) -> WorkerProcess:
    where = folder / f"node{rank}"
    where.mkdir()
    place = ("--nnodes", "2", "--node-rank", str(rank), "--dist-init-addr", f"127.0.0.1:{port}")
    return WorkerProcess(where, BATON_TINY, *place, "--tp-size", "2", "--host", f"127.0.0.{rank + 1}", *SIZES, *flags)


def lost_with(dying: WorkerProcess, other: WorkerProcess) -> str:
    """Kill the first; the other's log, once it has ended by itself and nothing of the two is left."""
    children = [child for one in (dying, other) for child in psutil.Process(one.process.pid).children(recursive=True)]
    dying.process.kill()
    assert other.ended() == 1
    assert psutil.wait_procs(children, PATIENCE)[1] == []
    return other.log


def undivided(model: Path, prompt: list[int]) -> list[int]:
    """The tokens of a worker of one rank in this process."""
    (answer,) = LocalWorker(model).generate([prompt], GREEDY)
    return answer.token_ids


def key_files(folder: Path) -> Iterator[tuple[str, ...]]:
    """Of two nodes while keys are being renewed: each uses another of the same two."""
    secrets = [zmq.curve_keypair()[1].decode() for _ in range(2)]
    for name, order in (("first", secrets), ("second", secrets[::-1])):
        (folder / name).write_text("\n".join(order))
        yield "--disaggregation-curve-key-file", str(folder / name)


def test_ranks_on_two_nodes_are_one_worker(tmp_path: Path) -> None:
    """Same tokens as undivided, weights change everywhere, and without node 1 node 0 ends too."""
    port, (first, second) = free_port(), key_files(tmp_path)
    with node(tmp_path, 0, port, *first) as leader, node(tmp_path, 1, port, *second) as follower:
        with httpx.Client(base_url=leader.announced()["url"], timeout=PATIENCE) as http:

            def answer() -> list[int]:
                sampling = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 20}
                reply = http.post("/generate", json={"input_ids": PROMPT, "sampling_params": sampling})
                ids: list[int] = reply.json()["output_ids"]
                return ids

            before, after = undivided(BATON_TINY, PROMPT), undivided(BATON_TINY_V2, PROMPT)
            assert answer() == before
            assert http.post("/update_weights_from_disk", json={"model_path": str(BATON_TINY_V2)}).json()["success"]
            assert answer() == after
            tensors = save(load_file(BATON_TINY / "model.safetensors"))
            headers = {"content-type": "application/octet-stream"}
            changed = http.post("/update_weights_from_tensor", content=tensors, headers=headers)
            assert changed.json()["success"], changed.text
            assert answer() == before
        log = lost_with(follower, leader)
        assert "node 1 was lost" in log
        assert "the worker goes down with it" in log


def test_without_node_0_the_others_end(tmp_path: Path) -> None:
    """A node that was told something else is refused before, and the worker waits for one that fits."""
    port = free_port()
    apart = tmp_path / "odd"
    apart.mkdir()
    with node(tmp_path, 0, port) as leader, node(apart, 1, port, "--page-size", "8") as odd:
        assert odd.ended() == 2
        assert "--page-size is not given on node 0 and 8 on node 1: give all nodes the same" in odd.log
        with node(tmp_path, 1, port) as follower:
            assert follower.announced()["node_rank"] == 1
            assert "node 0 was lost" in lost_with(leader, follower)


def test_a_decode_worker_over_two_nodes_takes_over_from_prefill(tmp_path: Path) -> None:
    """As a manifest says it: the pages go to the ranks of each node."""
    manifest = tmp_path / "service.yaml"
    manifest.write_text(TWO_NODES.format(model=BATON_TINY))
    body: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    own = psutil.Process()
    before = own.children(recursive=True)
    with LocalService(manifest, restart=False) as service, httpx.Client(timeout=PATIENCE) as http:
        assert sum(child.name() == "baton-link" for child in own.children(recursive=True)) == 1
        reply = http.post(f"{service.url}/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        assert "4711" in reply.json()["choices"][0]["message"]["content"]
    left = [child for child in own.children(recursive=True) if child not in before]
    assert [child.name() for child in left if child.name().startswith("baton")] == []
