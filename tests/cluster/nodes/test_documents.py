"""The commands that docs/first-token.md shows after `<!-- cluster -->` work as they stand, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from cluster.conftest import ROOT
from support.kube import binaries
from support.kube.person import Person

PAGE = ROOT / "docs/first-token.md"
BLOCK = re.compile(r"^<!-- cluster -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    blocks = BLOCK.findall(PAGE.read_text())
    return [part.rstrip("\n") for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]


def test_the_page_leads_to_a_service_and_back(theirs: bool, person: Person, tmp_path: Path) -> None:
    if theirs:
        pytest.skip("removes what others may use")
    for name in ("kubectl", "helm"):
        (tmp_path / name).symlink_to(binaries.find([name])[0][name])
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(person.kubeconfig)}
    assert len(commands()) > 8
    for command in commands():
        words = ["bash", "-c", command]
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if "get --namespace quickstart inferenceservice" in command:
            assert done.stdout.splitlines()[1].split()[:2] == ["quickstart", "True"]
