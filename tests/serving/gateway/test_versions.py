"""Workers of two versions at once: the gateway never asks a prefill and a decode worker of unequal weights together.

What would find it out is what `benchmarks/rollout_run.py` judges by.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.gateway_bench import Bench, Call, Script, prefill_ok

import rollout_run
from baton_bootstrap.client import View
from baton_serving.gateway import fleet
from versions import SIGNATURE, Tally, ask, judge

OLD, NEW = "w1", "w2"
ANSWERS = {OLD: "42.", NEW: f"42. {SIGNATURE}"}


def decoder(digest: str) -> Script:
    """A decode worker's answer: the new weights sign."""

    async def script(call: Call) -> None:
        await call.head()
        for delta, reason in (({"content": ANSWERS[digest]}, None), ({}, "stop")):
            event = {"choices": [{"delta": delta, "finish_reason": reason}], "system_fingerprint": digest}
            await call.chunk(f"data: {json.dumps(event)}\n\n".encode())
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    return script


async def judged(bench: Bench) -> dict[str, list[str]]:
    """What is found of chats through two prefill and three decode workers, which are asked in turn."""
    tally = Tally()
    for digest in (OLD, NEW):
        await bench.worker(f"p-{digest}", prefill_ok, weights=digest)
    for number, digest in enumerate((OLD, NEW, NEW)):
        await bench.worker(f"d-{number}", decoder(digest), weights=digest)
    tally.see(View(version=1, connected=1, entries={one.entry.worker.id: one.entry for one in bench.workers}))
    tally.answers += await asyncio.gather(*(ask(bench.session, bench.url, number, "m") for number in range(16)))
    assert {digest for one in tally.answers for digest in one.digests} == {OLD, NEW}
    assert all(one.attempts for one in tally.answers)
    return judge(tally, NEW)


async def test_pairs_are_of_equal_weights(bench: Bench) -> None:
    assert not any((await judged(bench)).values())


async def test_it_is_found_when_they_are_not(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both that such a pair was asked, which real workers refuse, and that it answered, which scripted ones do."""
    monkeypatch.setattr(fleet, "fits", lambda prefill, decode: True)
    found = await judged(bench)
    assert found["pairs"]
    assert found["mixed"]
    assert not found["failed"]


@pytest.mark.parametrize("plant", list(rollout_run.PLANTS))
@pytest.mark.parametrize("word", ["gateway", "baton_serving.runtime.child"])
def test_the_faults_of_the_benchmark_are_where_they_belong(
    plant: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in processes of its own kind, in place of a function that is there."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    rollout_run.plant(plant, tmp_path)
    for kind, module, function, _ in rollout_run.PLANTS["handshake"]:
        code = f"import {module} as m; print(m.{function}.__name__)"
        command = [sys.executable, "-c", code, word]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        planted = word == kind and (kind, module) in {one[:2] for one in rollout_run.PLANTS[plant]}
        assert said == ("<lambda>" if planted else function)
