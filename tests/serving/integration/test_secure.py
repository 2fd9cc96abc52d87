"""A service with everything closed: TLS on every port, CURVE between workers, keys for clients, and traces."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import zmq
from support.baton_processes import BATON_TINY, BatonProcess, BatonProcesses
from support.certificates import Authority
from support.disaggregation import MODEL, POOL

from baton_bootstrap.tls import TlsFiles


def flags(files: TlsFiles, prefix: str = "--ssl") -> list[str]:
    named = zip(("certfile", "keyfile", "ca-certs"), files.paths, strict=True)
    return [word for name, path in named for word in (f"{prefix}-{name}", str(path))]


@pytest.mark.deep
@pytest.mark.timeout(500)
def test_a_divided_request_with_everything_closed(processes: BatonProcesses, tmp_path: Path) -> None:
    inside, outside = Authority("inside"), Authority("outside")
    keys = tmp_path / "keys"
    keys.write_text("alice sk-1\n")
    curve = tmp_path / "curve"
    curve.write_text(zmq.curve_keypair()[1].decode())
    files = {name: inside.write(tmp_path / name) for name in ("bootstrap", "prefill", "decode", "gateway")}
    public = outside.write(tmp_path / "public", name="localhost")
    bootstrap = processes.baton("bootstrap", "bootstrap", "--port", "0", "--http-port", "0", *flags(files["bootstrap"]))
    address = str(bootstrap.wait_announced().facts["grpc"])
    workers = []
    for mode in ("prefill", "decode"):
        words = ["--disaggregation-mode", mode, "--disaggregation-bootstrap-addr", address, *POOL]
        words += ["--disaggregation-curve-key-file", str(curve), *flags(files[mode])]
        workers.append(processes.worker(mode, BATON_TINY, *words))
    for worker in workers:
        worker.wait_announced()
        assert worker.url.startswith("https://")
        with pytest.raises(httpx.HTTPError):  # no certificate, no answer
            httpx.get(f"{worker.url}/health", verify=False)
    words = ["--api-keys", str(keys), *flags(files["gateway"], "--worker-ssl"), "--worker-wait", "30"]
    words += ["--ssl-certfile", str(public.certificate), "--ssl-keyfile", str(public.key)]
    gateway: BatonProcess = processes.baton("gateway", "gateway", "--port", "0", "--bootstrap-addr", address, *words)
    url = gateway.wait_announced().url.replace("127.0.0.1", "localhost")
    with httpx.Client(base_url=url, verify=str(public.authority), timeout=90) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True}
        assert client.post("/v1/chat/completions", json=body).status_code == 401
        answer = client.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer sk-1"})
        assert answer.text.endswith("data: [DONE]\n\n")
        path = f"/v1/baton/explain/{answer.headers['x-request-id']}"
        told = client.get(path, headers={"authorization": "Bearer sk-1"}).json()
        assert ">" in answer.headers["x-baton-route"], told
    assert gateway.stop() == 0
