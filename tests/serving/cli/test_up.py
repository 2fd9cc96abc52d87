"""`baton up` with the quickstart example: real workers, a real transfer, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from support.s3_server import CREDENTIALS, S3Server, s3_server

ROOT = Path(__file__).parents[3]
QUESTION = "The code for amber is 4711. The code for jade is 1188. What is the code for amber?"


def baton(*args: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "baton_serving.cli.main", *args]
    environment = {**os.environ, **variables}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def guarded(folder: Path, server: S3Server) -> Path:
    """The quickstart with its model in a bucket, for clients who have a key."""
    text = (ROOT / "examples/quickstart.yaml").read_text()
    server.empty("models")
    for file in (ROOT / "examples/models/baton-tiny").iterdir():
        server.client.put_object(Bucket="models", Key=f"baton-tiny/{file.name}", Body=file.read_bytes())
    manifest = folder / "quickstart.yaml"
    s3 = f"    s3: {{endpoint: '{server.url}'}}\n    servedName"
    changed = text.replace("file://", "s3://").replace("    servedName", s3)
    manifest.write_text(f"{changed}  gateway: {{apiKeys: {{file: keys}}}}\n")
    (folder / "keys").write_text("alice sk-1\n")
    return manifest


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.mark.timeout(300)  # two real workers start: half a minute of CPU on a busy machine
def test_the_quickstart_serves_and_ctrl_c_leaves_nothing_behind(tmp_path: Path, server: S3Server) -> None:
    ready, manifest = tmp_path / "ready.json", guarded(tmp_path, server)
    variables = {**CREDENTIALS, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    process = baton("up", "-f", str(manifest), "--port", "0", "--ready-file", str(ready), **variables)
    try:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        assert facts == json.loads(ready.read_text())
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{facts['http']}/v1", api_key="none").models.list()
        client = openai.OpenAI(base_url=f"{facts['http']}/v1", api_key="sk-1")
        assert [model.id for model in client.models.list()] == ["baton-tiny"]
        reply = client.chat.completions.with_raw_response.create(
            model="baton-tiny", messages=[{"role": "user", "content": QUESTION}], temperature=0
        )
        assert reply.parse().choices[0].message.content == "The code for amber is 4711."
        assert reply.headers["x-baton-route"] == "prefill-0>decode-0"
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 4
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=15)
        assert process.returncode == 0, stderr
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
    finally:
        process.kill()
        process.communicate()


def test_a_wrong_manifest_is_told_and_exits_2(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("apiVersion: baton.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: a}\nspec: {modle: {}}\n")
    process = baton("up", "-f", str(wrong))
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert "spec.modle: unknown field; did you mean model?" in stderr
