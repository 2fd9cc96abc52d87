from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from baton_serving import __version__
from baton_serving.cli.main import COMMANDS, main, usage

BLOCK_ENGINE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "tokenizers", "safetensors", "numpy", "openai"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from baton_serving.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_every_command_has_its_module() -> None:
    assert [name for name, command in COMMANDS.items() if importlib.util.find_spec(command.module) is None] == []


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == main(["help"]) == 0
    assert capsys.readouterr().out == 3 * f"{usage()}\n"
    for name, command in COMMANDS.items():
        assert f"  {name}" in usage()
        assert command.help in usage()


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"baton {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sreve"], "there is no command 'sreve'; did you mean serve?"),
        (["xyzzy"], "there is no command 'xyzzy'; see baton --help"),
        (["bench"], "say which one: baton bench serving, baton bench offline, baton bench one-batch"),
        (["bench", "all"], "say which one: baton bench serving, baton bench offline, baton bench one-batch"),
        (["serve", "--enable-lora"], "--enable-lora is not supported yet: merge the adapter into the checkpoint"),
        (["serve", "--prot", "1"], "unknown flag --prot; did you mean --port?"),
        (["check-env", "--json"], "unknown flag --json; see baton check-env --help"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err == f"baton: {message}\n"
    assert captured.out == ""


def test_help_of_a_command_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    assert "--model-path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["serve", "--model-path", "m"], "serve needs torch: pip install 'baton[engine]'"),
        (["demo"], "demo needs openai: pip install openai"),
    ],
)
def test_a_missing_package_is_told_in_one_line(argv: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCK_ENGINE, *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, f"baton: {message}\n")


def test_wrong_flags_are_told_without_the_engine_and_without_loading_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCK_ENGINE, "serve", "--page-sise", "16"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "baton: unknown flag --page-sise; did you mean --page-size?\n")


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    """As with `baton --help | head -1`."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "baton_serving.cli.main", "--help"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, stdout=writes, stderr=subprocess.PIPE, text=True, env=environment, timeout=60, check=False
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")
