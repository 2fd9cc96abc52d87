"""What can be said of the Dockerfile without building it: stages, user, labels, and what reaches the build."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.devcluster.dockerfile import read

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
TARGETS = ("operator", "gateway", "worker", "worker-cpu")


def stages() -> dict[str, tuple[str, str]]:
    """Base and instructions of each stage by name."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", TEXT, flags=re.MULTILINE)[1:]
    return {name: (base, body) for base, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def instructions(name: str) -> str:
    """What a stage does, and before it the stages it is built on."""
    base, body = stages()[name]
    return (instructions(base) if base in stages() else "") + body


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_nobody_and_says_what_it_is(target: str) -> None:
    text = instructions(target)
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["65532:65532"]
    assert 'ENTRYPOINT ["baton"]' in text
    for name in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in text


@pytest.mark.parametrize("target", ["operator", "gateway"])
def test_only_workers_have_the_engine(target: str) -> None:
    assert "[cuda]" not in instructions(target)
    assert "[engine]" not in instructions(target)
    assert "cpu-environment" not in instructions(target)
    assert "[cuda]" in instructions("worker")
    assert "cpu-environment" in instructions("worker-cpu")


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.*)$", TEXT, re.MULTILINE)]
    names = {name for line in copied for name in line}
    assert names == admitted
    assert all((ROOT / name).exists() for name in names)


@pytest.mark.parametrize("target", TARGETS)
def test_the_development_cluster_reads_it_as_docker_does(target: str) -> None:
    config = read(TEXT, {})[target].config
    assert (config.user, config.folder, config.entrypoint) == ("65532:65532", "/tmp", ["baton"])
    assert config.environment["PATH"].startswith("/opt/baton/bin:/usr/")
    assert config.labels["org.opencontainers.image.version"] == "0.1.0"
    assert read(TEXT, {"VERSION": "9"})[target].config.labels["org.opencontainers.image.version"] == "9"


@pytest.mark.parametrize(
    "line",
    ["VOLUME /x", "COPY --chown=1 a b", "RUN --mount=type=secret,id=a true", "RUN --mount=type=bind,target=/a true"],
)
def test_what_the_development_cluster_cannot_do_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="not known here"):
        read(f"FROM a AS b\n{line}\n", {})
