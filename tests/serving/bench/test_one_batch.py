import json
from pathlib import Path

import pytest
from support.tiny_models import write_tiny_checkpoint

from baton_serving.bench import one_batch
from baton_serving.config.parser import OneLineParser
from baton_serving.errors import ConfigError


def run(*argv: str) -> int:
    parser = OneLineParser("baton bench one-batch", "")
    one_batch.add_arguments(parser)
    return one_batch.run(parser.parse(argv))


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_one_batch_runs_steps_of_the_real_executor(kind: str, tmp_path: Path) -> None:
    """Gemma 3 has two kinds of KV, so every row needs pages of several groups."""
    model = write_tiny_checkpoint(kind, tmp_path / "model")
    output = tmp_path / "figures.json"
    sizes = ["--batch-size", "1", "3", "--input-len", "40", "--output-len", "4", "--repeats", "1"]
    assert run("--model-path", str(model), "--device", "cpu", *sizes, "--output-json", str(output)) == 0
    figures = json.loads(output.read_text())
    assert [row["batch"] for row in figures["results"]] == [1, 3]
    for row in figures["results"]:
        assert min(row["prefill_ms"], row["decode_ms"], row["prefill_floor_ms"], row["decode_floor_ms"]) > 0


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = str(write_tiny_checkpoint("llama", tmp_path / "model"))
    with pytest.raises(ConfigError, match="positions"):
        run("--model-path", model, "--device", "cpu", "--input-len", "5000")
    with pytest.raises(ConfigError, match="--tp-size"):
        run("--model-path", model, "--device", "cpu", "--tp-size", "2", "--input-len", "10")


def test_the_scheduler_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    argv = ["--scheduler-overhead", "--batch-size", "2", "--output-len", "1", "--step-ms", "1"]
    assert run(*argv, "--output-json", str(output)) == 0
    assert json.loads(output.read_text())[0]["host"]["count"] == 10
    assert "Scheduler overhead" in capsys.readouterr().out
