"""A service whose certificates the operator's own code makes and changes, authority and all, while requests run."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from support.baton_processes import BATON_TINY, BatonProcess, BatonProcesses, free_port
from support.disaggregation import MODEL, POOL

from baton_bootstrap.auth import PEER_NAME
from baton_bootstrap.tls import Tls, TlsFiles
from baton_operator.certificates import KeyMaker, Lifetimes, Stored, rotate
from baton_operator.certificates.secrets import curve_keys

PARTS = ("bootstrap", "workers", "gateway")
LIVES = Lifetimes(authority=timedelta(hours=12), certificate=timedelta(hours=10), spread=timedelta(minutes=10))
SPEED = (
    150.0  # seconds of the rotation's clock for each of ours: files have four seconds to spread, and are seen in one
)
DELAYS = {"workers": 0.0, "bootstrap": 1.0, "gateway": 2.0}  # seconds
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "stream": True}


class Mounts:
    """Files as kubelets bring them: a link changes over to a new folder, for each part at another time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._serial = itertools.count()
        self._state = Stored()
        self.curve: list[bytes] = []
        self._under_way: list[tuple[float, str, dict[str, bytes]]] = []
        self.began = datetime.now(UTC) - timedelta(hours=9)

    def files(self, part: str) -> TlsFiles:
        folder = self._root / part / "data"
        return TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")

    def rotate(self, now: datetime) -> Stored:
        """Take the next step, if one is due, and have what changed mounted, in the first step at once."""
        before, self._state = self._state, rotate(self._state, PARTS, now, KeyMaker(), LIVES)
        for part, leaf in self._state.leaves.items():
            if before.leaves.get(part) != leaf:
                content = {"tls.crt": leaf.pair.certificate, "tls.key": leaf.pair.key, "ca.crt": b"".join(leaf.trusted)}
                if part == "workers":
                    renewed = part in before.leaves and before.leaves[part].pair != leaf.pair
                    self.curve = curve_keys(self.curve, renewed=renewed)
                    content["curve.key"] = b"\n".join(self.curve)
                delay = DELAYS[part] if part in before.leaves else 0.0
                self._under_way.append((time.monotonic() + delay, part, content))
        self.deliver()
        return self._state

    def deliver(self) -> None:
        """Mount what has arrived by now."""
        arrived = [one for one in self._under_way if one[0] <= time.monotonic()]
        self._under_way = [one for one in self._under_way if one not in arrived]
        for _, part, content in arrived:
            self._mount(self._root / part, content)

    def _mount(self, folder: Path, content: dict[str, bytes]) -> None:
        fresh = folder / str(next(self._serial))
        fresh.mkdir(parents=True)
        for name, data in content.items():
            (fresh / name).write_bytes(data)
        link = folder / "next"
        link.symlink_to(fresh.name)
        os.replace(link, folder / "data")


def flags(files: TlsFiles, prefix: str = "--ssl") -> list[str]:
    named = zip(("certfile", "keyfile", "ca-certs"), files.paths, strict=True)
    return [word for name, path in named for word in (f"{prefix}-{name}", str(path))]


def start_bootstrap(processes: BatonProcesses, port: int, mounts: Mounts) -> BatonProcess:
    words = ["--port", str(port), "--http-port", "0", *flags(mounts.files("bootstrap"))]
    return processes.baton("bootstrap", "bootstrap", *words).wait_announced()


def start(processes: BatonProcesses, port: int, mounts: Mounts) -> tuple[BatonProcess, list[BatonProcess], list[str]]:
    """The gateway, the workers, and the URLs of the workers' probes."""
    workers, probes = [], []
    for mode in ("prefill", "decode"):
        probe = free_port()
        words = ["--disaggregation-mode", mode, "--disaggregation-bootstrap-addr", f"127.0.0.1:{port}", *POOL]
        words += [*flags(mounts.files("workers")), "--probe-port", str(probe)]
        words += ["--disaggregation-curve-key-file", str(mounts.files("workers").key.with_name("curve.key"))]
        workers.append(processes.worker(mode, BATON_TINY, *words))
        probes.append(f"http://127.0.0.1:{probe}")
    words = ["--port", "0", "--bootstrap-addr", f"127.0.0.1:{port}", *flags(mounts.files("gateway"), "--worker-ssl")]
    gateway = processes.baton("gateway", "gateway", *words).wait_announced()
    for worker in workers:
        worker.wait_announced()
    return gateway, workers, probes


async def shake_hands(mounts: Mounts, workers: list[BatonProcess]) -> None:
    """A new connection to each worker with the gateway's files of this moment, as the gateway may need one any time."""
    async with httpx.AsyncClient(verify=Tls(mounts.files("gateway")).client, timeout=30) as peer:
        for worker in workers:
            answer = await peer.get(f"{worker.url}/health", extensions={"sni_hostname": PEER_NAME})
            assert answer.status_code == 200


async def divided(client: httpx.AsyncClient) -> bool:
    """Whether both workers are in the gateway's view and answer it."""
    listed = (await client.get("/v1/baton/workers")).json()
    return {one["role"] for one in listed if one["state"] == "ready" and one["responsive"]} == {"prefill", "decode"}


async def load(client: httpx.AsyncClient, stopped: Callable[[], bool], answers: list[str]) -> None:
    while not stopped():
        answer = await client.post("/v1/chat/completions", json=QUESTION)
        answers.append(answer.text if answer.status_code == 200 else f"HTTP {answer.status_code}: {answer.text}")


async def change_authority(
    mounts: Mounts, client: httpx.AsyncClient, workers: list[BatonProcess], probes: list[str]
) -> list[str]:
    """What clients were answered while the authority changed; probes are asked all along."""
    began, done = time.monotonic(), False
    answers: list[str] = []
    first, key = mounts.rotate(mounts.began).current, mounts.curve[0]
    loads = [asyncio.create_task(load(client, lambda: done, answers)) for _ in range(4)]
    async with httpx.AsyncClient() as plain:
        while True:
            now = mounts.began + timedelta(hours=8.5, seconds=SPEED * (time.monotonic() - began))
            state = mounts.rotate(now)
            await shake_hands(mounts, workers)
            for url in probes:
                assert (await plain.get(f"{url}/health", timeout=30)).status_code == 200
            settled = all(now >= leaf.since + LIVES.spread for leaf in state.leaves.values())
            if state.current != first and state.former is None and settled:
                break
            await asyncio.sleep(0.2)
    done = True
    assert mounts.curve[0] != key
    await asyncio.gather(*loads)
    return answers


@pytest.mark.deep
@pytest.mark.timeout(500)
async def test_an_authority_changes_under_load_and_no_request_fails(processes: BatonProcesses, tmp_path: Path) -> None:
    mounts, port = Mounts(tmp_path), free_port()
    mounts.rotate(mounts.began)
    shutil.copytree(tmp_path / "gateway" / "data", tmp_path / "former")
    bootstrap = start_bootstrap(processes, port, mounts)
    gateway, workers, probes = start(processes, port, mounts)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=90) as client:
        await usable(client)
        answers = await change_authority(mounts, client, workers, probes)
        assert "baton_gateway_lost_legs_total{" not in (await client.get("/metrics")).text
        assert len(answers) > 20
        assert [answer for answer in answers if not answer.endswith("data: [DONE]\n\n")] == []
        # Whoever comes anew meets the new authority alone: every worker registers again.
        bootstrap.kill()
        start_bootstrap(processes, port, mounts)
        await usable(client)
        answer = await client.post("/v1/chat/completions", json=QUESTION)
        assert ">" in answer.headers["x-baton-route"]
        assert answer.text.endswith("data: [DONE]\n\n")
    former = tmp_path / "former"
    stale = Tls(TlsFiles(former / "tls.crt", former / "tls.key", mounts.files("gateway").authority))
    for files, welcome in ((Tls(mounts.files("gateway")), True), (stale, False)):
        async with httpx.AsyncClient(verify=files.client) as peer:
            asked = peer.get(f"{workers[0].url}/health", extensions={"sni_hostname": PEER_NAME}, timeout=30)
            if welcome:
                assert (await asked).status_code == 200
            else:
                with pytest.raises(httpx.HTTPError):
                    await asked


async def usable(client: httpx.AsyncClient) -> None:
    """Return once the gateway can divide requests."""
    while True:
        if await divided(client):
            return
        await asyncio.sleep(0.1)
