"""A service with everything closed: TLS on every port, CURVE between workers, and keys for clients."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq
from support.baton_processes import BATON_TINY, BatonProcess, BatonProcesses
from support.certificates import Authority
from support.disaggregation import MODEL, POOL, until
from zmq.utils.monitor import recv_monitor_message

from baton_bootstrap.client import WatchClient
from baton_bootstrap.tls import PEER_NAME, Tls, TlsFiles

KEY = {"authorization": "Bearer sk-1"}
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True}
SHAKEN = zmq.EVENT_HANDSHAKE_SUCCEEDED
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


def flags(files: TlsFiles, prefix: str = "--ssl") -> list[str]:
    named = zip(("certfile", "keyfile", "ca-certs"), files.paths, strict=True)
    return [word for name, path in named for word in (f"{prefix}-{name}", str(path))]


@dataclass
class Service:
    """Its parts, and what one needs to talk to them: certificates by part, the CURVE secret, the public authority."""

    bootstrap: str
    workers: dict[str, BatonProcess]
    gateway: BatonProcess
    files: dict[str, TlsFiles]
    curve: str
    public: Path

    def metrics(self, role: str) -> str:
        """A worker's figures, asked for with the gateway's certificate."""
        with httpx.Client(verify=Tls(self.files["gateway"]).client, timeout=20) as client:
            url = f"{self.workers[role].url}/metrics"
            return client.get(url, extensions={"sni_hostname": PEER_NAME}).raise_for_status().text

    async def control(self) -> str:
        """The endpoint of the prefill worker's control socket, as the bootstrap server tells."""
        async with WatchClient(self.bootstrap, tls=self.files["gateway"]) as watch:
            return (await watch.find(self.workers["prefill"].url.removeprefix("https://"))).worker.control


def start(processes: BatonProcesses, folder: Path) -> Service:
    inside, outside = Authority("inside"), Authority("outside")
    keys, curve = folder / "keys", folder / "curve"
    keys.write_text("alice sk-1\n")
    curve.write_text(zmq.curve_keypair()[1].decode())
    files = {name: inside.write(folder / name) for name in ("bootstrap", "prefill", "decode", "gateway")}
    public = outside.write(folder / "public", name="localhost")
    bootstrap = processes.baton("bootstrap", "bootstrap", "--port", "0", "--http-port", "0", *flags(files["bootstrap"]))
    address = str(bootstrap.wait_announced().facts["grpc"])
    workers = {}
    for mode in ("prefill", "decode"):
        words = ["--disaggregation-mode", mode, "--disaggregation-bootstrap-addr", address, *POOL]
        words += ["--disaggregation-curve-key-file", str(curve), *flags(files[mode])]
        workers[mode] = processes.worker(mode, BATON_TINY, *words)
    for worker in workers.values():
        worker.wait_announced()
    words = ["--api-keys", str(keys), *flags(files["gateway"], "--worker-ssl"), "--policy", "cache_aware"]
    words += ["--ssl-certfile", str(public.certificate), "--ssl-keyfile", str(public.key)]
    gateway = processes.baton("gateway", "gateway", "--port", "0", "--bootstrap-addr", address, *words)
    gateway.wait_announced()
    assert public.authority is not None
    return Service(address, workers, gateway, files, curve.read_text(), public.authority)


def handshake(endpoint: str, secret: str) -> int:
    """How a connection to a control socket begins, with the service's key or (empty) without any: a monitor's event."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        if secret:
            public = zmq.curve_public(secret.encode()).decode()
            dealer.setsockopt_string(zmq.CURVE_PUBLICKEY, public)
            dealer.setsockopt_string(zmq.CURVE_SECRETKEY, secret)
            dealer.setsockopt_string(zmq.CURVE_SERVERKEY, public)
        with dealer.get_monitor_socket(SHAKEN | REFUSED) as monitor:
            dealer.connect(endpoint)
            assert monitor.poll(20_000), "no handshake"
            event = int(recv_monitor_message(monitor)["event"])
            dealer.disable_monitor()
        return event


def figure(text: str, name: str) -> float:
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))
    )


@pytest.mark.deep
@pytest.mark.timeout(500)
def test_a_divided_request_with_everything_closed(processes: BatonProcesses, tmp_path: Path) -> None:
    service = start(processes, tmp_path)
    for worker in service.workers.values():
        assert worker.url.startswith("https://")
        with pytest.raises(httpx.HTTPError):  # no certificate, no answer
            httpx.get(f"{worker.url}/health", verify=False)
    control = asyncio.run(service.control())
    assert handshake(control, "") & REFUSED
    assert handshake(control, service.curve) == SHAKEN
    url = service.gateway.url.replace("127.0.0.1", "localhost")
    with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=service.public), timeout=90) as client:

        def get(path: str) -> Any:
            return client.get(path, headers=KEY).raise_for_status()

        def usable() -> set[str]:
            listed = get("/v1/baton/workers").json()
            return {one["role"] for one in listed if one["state"] == "ready" and one["responsive"]}

        asyncio.run(until(lambda: usable() == {"prefill", "decode"}, "both workers"))
        asyncio.run(until(lambda: figure(get("/metrics").text, "baton_gateway_cache_streams") == 2, "cache events"))
        assert client.post("/v1/chat/completions", json=QUESTION).status_code == 401
        answer = client.post("/v1/chat/completions", json=QUESTION, headers=KEY)
        assert answer.text.endswith("data: [DONE]\n\n")
        told = get(f"/v1/baton/explain/{answer.headers['x-request-id']}").json()
        assert ">" in answer.headers["x-baton-route"], told
        assert figure(service.metrics("decode"), "baton_handoffs_arrived_total") == 1
        assert figure(service.metrics("decode"), "baton_handoff_refused_messages_total") == 0
        delivered = "baton_handoffs_delivered_total"
        asyncio.run(until(lambda: figure(service.metrics("prefill"), delivered) == 1, "the receipt"))
    assert service.gateway.stop() == 0
