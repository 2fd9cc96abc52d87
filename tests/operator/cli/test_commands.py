"""`baton validate`, `render` and `plan` through the `baton` command."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from baton_serving.cli.main import main

MANIFEST = """apiVersion: baton.dev/v1alpha1
kind: InferenceService
metadata: {name: chat}
spec:
  model: {uri: 'hf://a/b'}
  decode: {replicas: 2, parallelism: {tensor: 2}}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "chat.yaml"
    path.write_text(MANIFEST)
    return path


def test_a_good_manifest_is_valid(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-f", str(manifest)]) == 0
    assert capsys.readouterr().out == f"{manifest}: chat is valid\n"


@pytest.mark.parametrize("command", ["validate", "render", "plan"])
def test_what_a_cluster_cannot_do_is_told_with_path_and_remedy(
    command: str, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest.write_text(f"{MANIFEST}  transfer: {{protocol: nvlink}}\n  gateway: {{apiKeys: {{file: keys}}}}\n")
    assert main([command, "-f", str(manifest)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{manifest}: spec.gateway.apiKeys.secret: pods take keys from a Secret alone")
    assert second.startswith(f"{manifest}: spec.transfer.protocol: NVLink does not reach from pod to pod")


def test_the_same_objects_are_rendered_every_time(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "-f", str(manifest)]) == 0
    first = capsys.readouterr().out
    assert main(["render", "-f", str(manifest)]) == 0
    assert capsys.readouterr().out == first
    objects = list(yaml.safe_load_all(first))
    kinds = [item["kind"] for item in objects]
    assert kinds.count("Deployment") == 4
    assert kinds.count("NetworkPolicy") == 3
    assert "ControllerRevision" not in kinds
    assert {item["metadata"]["namespace"] for item in objects} == {"default"}


def test_a_plan_counts_devices_at_the_peak(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = manifest.with_name("after.yaml")
    after.write_text(MANIFEST.replace("hf://a/b", "hf://a/c"))
    assert main(["plan", "-f", str(after), "--from", str(manifest)]) == 0
    out = capsys.readouterr().out
    assert "at the peak 8 devices are taken" in out
    assert out.count("end their requests and leave") == 2


def test_a_plan_says_when_no_worker_is_replaced(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = manifest.with_name("after.yaml")
    text = MANIFEST + "  rollout: {strategy: InPlace}\n"
    manifest.write_text(text.replace("hf://a/b", "pvc://models/b"))
    after.write_text(text.replace("hf://a/b", "pvc://models/c"))
    assert main(["plan", "-f", str(after), "--from", str(manifest)]) == 0
    assert "1. the prefill and decode workers change their weights where they run" in capsys.readouterr().out
    after.write_text(text.replace("hf://a/b", "pvc://others/c"))
    assert main(["plan", "-f", str(after), "--from", str(manifest)]) == 0
    assert "at the peak 8 devices are taken" in capsys.readouterr().out


def test_a_change_of_replicas_restarts_nothing(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = manifest.with_name("after.yaml")
    after.write_text(MANIFEST.replace("replicas: 2", "replicas: 3"))
    assert main(["plan", "-f", str(after), "--from", str(manifest)]) == 0
    out = capsys.readouterr().out
    assert "decode goes from 2 to 3 workers; none restarts" in out
    assert "no worker restarts" in out
