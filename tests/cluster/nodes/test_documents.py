"""The commands that docs/first-token.md shows after `<!-- cluster -->` work as they stand, one after the other.

On a cluster of one node, with nothing on it yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from cluster.conftest import ROOT, SYSTEM
from cluster.nodes.conftest import own_cluster
from support.baton_processes import bound_to_parent
from support.kube import binaries
from support.kube.person import Person

PAGE = ROOT / "docs/first-token.md"
BLOCK = re.compile(r"^<!-- cluster -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    blocks = BLOCK.findall(PAGE.read_text())
    return [part.rstrip("\n") for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]


@pytest.fixture
def kubeconfig(tmp_path: Path, theirs: bool) -> Iterator[Path]:
    if theirs:
        pytest.skip("removes what others may use")
    with own_cluster(tmp_path / "cluster", nodes=1) as layout:
        yield layout.kubeconfig


def test_the_page_leads_to_a_service_and_back(kubeconfig: Path, tmp_path: Path) -> None:
    for name in ("kubectl", "helm"):
        (tmp_path / name).symlink_to(binaries.find([name])[0][name])
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(kubeconfig)}
    assert len(commands()) > 8
    with contextlib.ExitStack() as stack:
        for command in commands():
            if command.endswith(" &"):
                stack.enter_context(in_background(command.removesuffix(" &"), environment))
                continue
            words = ["bash", "-c", command]
            done = subprocess.run(
                words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
            if "get --namespace quickstart inferenceservice" in command:
                assert done.stdout.splitlines()[1].split()[:2] == ["quickstart", "True"]
            if command.startswith("curl"):
                assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "47 + 38 = 85."


def test_the_manifest_for_gpus_is_one(release: Sequence[str], person: Person) -> None:
    """And the chart takes what the page sets for it."""
    [manifest] = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    person.kubectl("apply", "--dry-run=server", "--namespace", SYSTEM, "-f", "-", text=manifest)
    [command] = re.findall(r"^\$ helm install (.*?) --wait \\\n +(--set \S+)$", PAGE.read_text(), re.MULTILINE)
    flags = shlex.split(" ".join(command))
    person.helm("template", *flags[:1], str(ROOT / flags[1]), *flags[2:])


@contextlib.contextmanager
def in_background(command: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Until it has printed a line: what it is for is there then."""
    words = bound_to_parent(["bash", "-c", f"exec {command}"])
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline(), f"{command} ended"
            yield
        finally:
            process.kill()
