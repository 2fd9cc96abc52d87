"""Reading manifests: files, documents, typing errors, unknown fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton_operator.api import load_manifest, parse_manifest
from baton_operator.errors import ManifestError

EXAMPLES = Path(__file__).parents[3] / "examples"
GOOD = b"""
apiVersion: baton.dev/v1alpha1
kind: InferenceService
metadata: {name: demo}
spec: {model: {uri: 'file://m'}}
"""


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    assert load_manifest(path).served_name


def problems(text: bytes) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text)
    return caught.value.problems


def test_other_kinds_in_the_same_file_are_passed_over() -> None:
    assert parse_manifest(b"kind: Secret\n---\n" + GOOD + b"---\n").metadata.name == "demo"


def test_two_services_or_none_are_refused() -> None:
    assert "2 InferenceService objects" in problems(GOOD + b"---" + GOOD)[0]
    assert "0 InferenceService objects" in problems(b"")[0]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"model:", b"modle:", "spec.modle: unknown field; did you mean model?"),
        (b"uri:", b"url:", "spec.model.url: unknown field; did you mean uri?"),
        (b"name:", b"nmae:", "metadata.nmae: unknown field; did you mean name?"),
        (b"spec:", b"sepc:", "sepc: unknown field; did you mean spec?"),
        (b"{uri: 'file://m'}", b"{uri: 'file://m', zzz: 1}", "known here: uri, revision, servedName"),
        (b"{uri: 'file://m'}", b"{uri: 'file://m', served_name: x}", "did you mean servedName?"),
        (b"metadata: {name: demo}", b"", "metadata: missing; it must be given"),
        (b"name: demo", b"name: Demo", "metadata.name: 'Demo' does not have the form"),
        (b"v1alpha1", b"v1", "apiVersion: 'baton.dev/v1' is not known; write one of 'baton.dev/v1alpha1'"),
        (b"kind: InferenceService", b"kind: Pod", "kind: 'Pod' is not known"),
        (b"kind:", b"apiVersion:", "'apiVersion' is written twice"),
        (b"'file://m'", b"'ftp://m'", "spec.model.uri: 'ftp://m' does not have the form"),
    ],
)
def test_mistakes_are_named_with_the_nearest_right_word(old: bytes, new: bytes, expected: str) -> None:
    assert expected in " | ".join(problems(GOOD.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a: [", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- 1\n- 2\n", "is not a mapping"),
        (b"[" * 5000, "is not valid YAML"),
        (b"!!python/object/apply:os.getcwd []", "is not valid YAML"),
        (b"#" * (2 << 20), "bytes; at most"),
    ],
)
def test_what_is_no_manifest_at_all_is_refused(text: bytes, expected: str) -> None:
    assert expected in problems(text)[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"absent\.yaml: cannot be read: No such file"):
        load_manifest(tmp_path / "absent.yaml")


def test_all_problems_are_told_at_once() -> None:
    text = GOOD.replace(b"uri:", b"url:").replace(b"name: demo", b"name: Demo")
    assert len(problems(text)) == 3
