"""Two ranks change their weights together, in this process and the one beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from support.local_worker import LocalWorker
from support.references import Reference
from support.second_rank import SecondRank
from support.tiny_models import write_tiny_checkpoint

from baton_serving.errors import InvalidRequest, Unavailable
from baton_serving.runtime.channels import Addresses
from baton_serving.runtime.control_calls import Later
from baton_serving.runtime.followers import Followers
from baton_serving.runtime.rank_sockets import RankSockets
from baton_serving.runtime.weight_source import WeightSource
from baton_serving.runtime.weight_updates import WeightUpdates
from baton_serving.runtime.weights import RankWeights
from baton_serving.sampling.params import SamplingParams

GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)
PROMPT = list(range(4, 90))
NOBODY = Followers(RankSockets(zmq.Context(), Addresses("", "", "", "", "", (), "", (), "")), timeout=1.0)


@pytest.fixture(scope="module")
def second_rank() -> Iterator[SecondRank]:
    rank = SecondRank()
    yield rank
    rank.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [write_tiny_checkpoint("llama", tmp_path_factory.mktemp(f"v{seed}"), seed=seed) for seed in (1, 2)]


def updates_of(worker: LocalWorker, followers: Followers) -> WeightUpdates:
    return WeightUpdates(RankWeights(worker.rank), followers, worker.scheduler, None, lambda seconds: None)


def settle(updates: WeightUpdates, later: Later) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while not later.done:
        assert time.monotonic() < deadline
        updates.poll()
    if later.error is not None:
        raise later.error
    return later.result


def source(path: Path) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(WeightSource(path=str(path)))
    return plain


def test_all_ranks_switch_between_two_steps(second_rank: SecondRank, paths: list[Path]) -> None:
    old, new = paths
    with second_rank.worker(old) as worker:
        assert worker.followers is not None
        updates = updates_of(worker, worker.followers)
        first = worker.generate([PROMPT], GREEDY)
        Reference(old).assert_greedy(PROMPT, first[0].token_ids, 12)
        digest = settle(updates, updates.stage(source(new)))["digest"]
        assert updates.digest != digest
        running = worker.add(PROMPT, GREEDY)
        worker.turn()
        commit = updates.commit("next", timeout=60.0)
        updates.poll()
        assert not commit.done  # a request holds KV of the old weights
        worker.run()
        assert running.token_ids == first[0].token_ids
        result = settle(updates, commit)
        assert (result["digest"], updates.digest) == (digest, digest)
        again = worker.generate([PROMPT], GREEDY)
        assert again[0].cached_tokens == 0
        Reference(new).assert_greedy(PROMPT, again[0].token_ids, 12)


def test_a_switch_waits_only_so_long_and_retracted_requests_go_on_with_it(paths: list[Path]) -> None:
    old, new = paths
    worker = LocalWorker(old, chunked_prefill_size=32)  # one turn computes a part of the prompt
    updates = updates_of(worker, NOBODY)
    settle(updates, updates.stage(source(new)))
    answer = worker.add(PROMPT, GREEDY)
    worker.turn()
    late = updates.commit("next", timeout=0.0)
    with pytest.raises(Unavailable, match="hold KV"):
        settle(updates, late)
    updates.pause(retract=True)
    assert updates.paused
    worker.book_in_flight()
    settle(updates, updates.commit("next", timeout=5.0))
    updates.go_on()
    worker.run()
    Reference(new).assert_greedy(PROMPT, answer.token_ids, 12)
    worker.scheduler.check()


def test_nothing_staged_nothing_to_switch_to(paths: list[Path], tmp_path: Path) -> None:
    worker = LocalWorker(paths[0])
    updates = updates_of(worker, NOBODY)
    with pytest.raises(InvalidRequest, match="no weights are staged"):
        updates.commit("next", timeout=1.0)
    with pytest.raises(InvalidRequest, match=r"no weights here|config\.json"):
        settle(updates, updates.stage(source(tmp_path)))
    with pytest.raises(InvalidRequest, match="tags"):
        updates.release(["everything"])


def test_released_pages_come_back(paths: list[Path]) -> None:
    worker = LocalWorker(paths[0])
    updates = updates_of(worker, NOBODY)
    first = worker.generate([PROMPT], GREEDY)
    assert updates.release(["kv_cache"])["bytes"] == worker.rank.pool.size_bytes
    updates.resume(["kv_cache"])
    again = worker.generate([PROMPT], GREEDY)
    assert again[0].token_ids == first[0].token_ids
    assert again[0].cached_tokens == 0
