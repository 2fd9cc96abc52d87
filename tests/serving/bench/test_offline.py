import json
from pathlib import Path

import pytest
from support.tiny_models import write_tiny_checkpoint

from baton_serving.bench import offline
from baton_serving.config.parser import OneLineParser


def test_the_engine_generates_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny_checkpoint("llama", tmp_path / "model")
    output = tmp_path / "figures.json"
    parser = OneLineParser("baton bench offline", "")
    offline.add_arguments(parser)
    requests = ["--num-prompts", "6", "--input-len", "20", "--output-len", "5", "--output-json", str(output)]
    argv = ["--model-path", str(model), "--device", "cpu", "--skip-tokenizer-init", *requests]
    assert offline.run(parser.parse(argv)) == 0
    figures = json.loads(output.read_text())
    assert (figures["requests"], figures["prompt_tokens"], figures["completion_tokens"]) == (6, 120, 30)
    assert "output tokens per second" in capsys.readouterr().out
