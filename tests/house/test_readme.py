"""Commands in the documents are run: a ```console block after the line `<!-- run -->` must work as it is shown.

A line that begins with `$ ` is a command, run in the repository's root. The lines below it are what it prints; a line
`…` stands for any number of lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^<!-- run -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """A command and the lines that the document says it prints."""

    page: str
    command: str
    output: tuple[str, ...]


def shown_in(page: str, text: str) -> Iterator[Shown]:
    for block in BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *output = part.rstrip("\n").split("\n")
            yield Shown(page, command, tuple(output))


def all_shown() -> list[Shown]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [shown for page in pages for shown in shown_in(str(page.relative_to(ROOT)), page.read_text())]


def agrees(expected: tuple[str, ...], printed: str) -> bool:
    """Whether `printed` is what is expected, blanks at the ends of lines aside."""
    parts = (".*" if line == "…" else re.escape(line.rstrip()) for line in expected)
    text = "\n".join(line.rstrip() for line in printed.strip("\n").split("\n"))
    return re.fullmatch("\n".join(parts), text, re.DOTALL) is not None if expected else True


@pytest.mark.parametrize("shown", all_shown(), ids=lambda shown: f"{shown.page}: {shown.command}")
def test_shown_commands_work(shown: Shown, tmp_path: Path) -> None:
    baton = tmp_path / "baton"  # works where Baton is on the path of modules, too, without being installed
    baton.write_text(f'#!/bin/sh\nexec {sys.executable} -m baton_serving.cli.main "$@"\n')
    baton.chmod(0o755)
    modules = os.pathsep.join(sys.path)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": modules}
    command = ["bash", "-c", shown.command]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert agrees(shown.output, done.stdout), done.stdout


def test_the_readme_shows_commands_that_are_run() -> None:
    assert [shown for shown in all_shown() if shown.page == "README.md"]


def test_blocks_are_read_and_compared() -> None:
    text = "a\n<!-- run -->\n```console\n$ one\n1\n$ two\n```\n```console\n$ not run\n```\n"
    assert list(shown_in("p", text)) == [Shown("p", "one", ("1",)), Shown("p", "two", ())]
    assert agrees(("a", "…", "d"), "a \nb\nc\nd\n")
    assert not agrees(("a", "d"), "a\nb\nd\n")
    assert not agrees(("…", "a"), "a\nb\n")
