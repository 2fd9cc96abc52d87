"""The demo's questions, and the demo itself on one undivided worker (`make demo` runs the divided one)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from baton_serving.cli.demo_questions import recall_questions, sum_question

ROOT = Path(__file__).parents[3]


def test_the_text_is_about_1800_tokens_and_holds_each_answer_once() -> None:
    tokenizer = Tokenizer.from_file(str(ROOT / "examples/models/baton-tiny/tokenizer.json"))
    questions = recall_questions(5)
    assert len({question.about for question in questions}) == 5
    for question in questions:
        assert 1_750 <= len(tokenizer.encode(question.prompt).ids) <= 1_850
        assert question.prompt.count(question.answer) == 1
        assert question.prompt.endswith(question.about)
        assert question.long


def test_questions_are_the_same_on_every_run() -> None:
    assert recall_questions(2) == recall_questions(2)


def test_a_sum() -> None:
    question = sum_question(47, 38)
    assert (question.answer, question.long) == ("47 + 38 = 85.", False)


@pytest.mark.timeout(300)  # a real worker starts
def test_the_demo_answers_right_and_shows_a_timeline() -> None:
    command = [sys.executable, "-m", "baton_serving.cli.main", "demo", "--undivided"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 answers right" in done.stdout
    for stage in ("tokenised", "prefilled", "first token", "done"):
        assert f"\n{stage}" in done.stdout
    assert done.stderr == ""


def test_a_missing_manifest_is_named() -> None:
    command = [sys.executable, "-m", "baton_serving.cli.main", "demo", "-f", "absent.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no absent.yaml" in done.stderr
