"""`baton fetch` from a hub and a bucket on this machine, seen from a real bootstrap server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from support.s3_server import reads_from, s3_server

from baton_bootstrap.records import State
from baton_bootstrap.server import BootstrapServer, ServerConfig
from baton_serving.cli.fetch import plan
from baton_serving.cli.main import main

COMMIT = "c" * 40
FILES = {"config.json": b"{}", "model.safetensors": os.urandom(24 << 20), "notes.md": b"not for workers"}
HALF = 12 << 20


class Hub(ThreadingHTTPServer):
    """Holds back the second half of the weights until `go` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.go = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if re.match(r"/api/models/owner/tiny/revision/", self.path):
            siblings = [{"rfilename": name} for name in FILES]
            self._answer(json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif re.match(r"/api/models/owner/tiny/tree/", self.path):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": digest(data)} for name, data in FILES.items()
            ]
            self._answer(json.dumps(tree).encode())
        elif (found := re.match(r"/owner/tiny/resolve/[^/]+/([\w.]+)$", self.path)) and found[1] in FILES:
            data = FILES[found[1]]
            size = str(len(data))
            self._answer(data, **{"ETag": f'"{digest(data)}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": size})
        else:
            self.send_error(404)

    def _answer(self, content: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:HALF])
            if len(content) > HALF:
                assert isinstance(self.server, Hub)
                self.server.go.wait(60)
                self.wfile.write(content[HALF:])

    def log_message(self, *_: object) -> None:
        pass


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.go.set()
        hub.shutdown()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def fetch(hub: Hub, home: Path, *words: str) -> asyncio.subprocess.Process:
    variables = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "BATON_WORKER_ID": "chat-prefill-1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "baton_serving.cli.main", "fetch", *words]
    return await asyncio.create_subprocess_exec(*command, env={**os.environ, **variables}, stdout=pipe, stderr=pipe)


async def test_it_says_how_far_it_is_and_leaves_what_a_worker_reads(hub: Hub, tmp_path: Path) -> None:
    server = BootstrapServer(ServerConfig())
    await server.start()
    try:
        process = await fetch(hub, tmp_path, "owner/tiny", "--bootstrap-addr", f"127.0.0.1:{server.port}")
        total = len(FILES["config.json"]) + len(FILES["model.safetensors"])
        async with asyncio.timeout(60):
            while not any(0 < entry.status.progress.done < total for entry in server.registry.find("chat-prefill-1")):
                assert process.returncode is None
                await asyncio.sleep(0.02)
        (entry,) = server.registry.find("chat-prefill-1")
        assert (entry.status.state, entry.status.progress.total) == (State.STARTING, total)
        hub.go.set()
        stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, stderr
        wanted = {name: data for name, data in FILES.items() if name != "notes.md"}
        assert contents(Path(stdout.decode().strip())) == wanted
        assert server.registry.find("chat-prefill-1") == ()
    finally:
        await server.stop()


def test_from_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    with s3_server() as server:
        reads_from(server, monkeypatch)
        server.empty("models")
        for name, data in FILES.items():
            server.client.put_object(Bucket="models", Key=f"tiny/{name}", Body=data)
        download = plan("s3://models/tiny", None)
        download.folder.mkdir(parents=True)
        (download.folder / ".model.safetensors").write_bytes(FILES["model.safetensors"][:1000])
        progress = download.progress()
        assert (progress.done, progress.total) == (1000, 2 + len(FILES["model.safetensors"]))
        assert main(["fetch", "s3://models/tiny"]) == 0
        wanted = {name: data for name, data in FILES.items() if name != "notes.md"}
        assert contents(Path(capsys.readouterr().out.strip())) == wanted
        progress = plan("s3://models/tiny", None).progress()
        assert progress.done == progress.total


async def test_a_model_that_is_not_there_is_named_in_the_last_line(hub: Hub, tmp_path: Path) -> None:
    """Which becomes the sentence in the service's status; a bootstrap server that is away changes nothing."""
    process = await fetch(hub, tmp_path, "owner/other", "--bootstrap-addr", "127.0.0.1:9")
    _, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    last = stderr.decode().strip().splitlines()[-1]
    assert "owner/other" in last
    assert "404" in last or "not found" in last.lower()
