"""The wheel that people install."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"baton_operator", "baton_serving", "baton_bootstrap", "baton_kernels"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    return ZipFile(next(target.glob("*.whl")))


def test_it_holds_the_four_packages_and_nothing_else(wheel: ZipFile) -> None:
    folders = {name.split("/")[0] for name in wheel.namelist()}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == PACKAGES
    for package in PACKAGES:
        assert f"{package}/py.typed" in wheel.namelist()


def test_its_base_asks_for_no_torch(wheel: ZipFile) -> None:
    path = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    requirements = Parser().parsestr(wheel.read(path).decode()).get_all("Requires-Dist", [])
    base = [requirement for requirement in requirements if "extra ==" not in requirement]
    assert base
    assert not [r for r in base if r.startswith(("torch", "transformers", "numpy", "mooncake", "nixl", "flashinfer"))]
    for extra in ("engine", "cuda", "test"):
        assert [requirement for requirement in requirements if f"extra == '{extra}'" in requirement]


def test_it_brings_the_command_and_the_licence(wheel: ZipFile) -> None:
    scripts = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "baton = baton_serving.cli.main:main" in wheel.read(scripts).decode()
    assert [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]


def test_versions_agree() -> None:
    from baton_serving import __version__

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_every_dependency_is_pinned_and_explained() -> None:
    """Each direct dependency stands in constraints.txt and in docs/dependencies.md (GPU ones only in the latter)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in [*project["dependencies"], *extras["engine"], *extras["test"]]:
        assert name_of(requirement) in pinned
    for requirement in [*project["dependencies"], *extras["engine"], *extras["cuda"], *extras["test"]]:
        assert f"`{name_of(requirement)}`" in explained, requirement


def name_of(requirement: str) -> str:
    """The name at the head of a requirement, as package indexes spell it."""
    end = next((i for i, char in enumerate(requirement) if not (char.isalnum() or char in "-_.")), len(requirement))
    return requirement[:end].lower().replace("_", "-")
