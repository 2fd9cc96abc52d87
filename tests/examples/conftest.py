"""Fixtures of the demo models' tests."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

MODELS = Path(__file__).parents[2] / "examples" / "models"


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the checkpoints."""
    return MODELS


@pytest.fixture(scope="session")
def tokenizer(models: Path) -> Tokenizer:
    """The tokenizer both checkpoints share."""
    return Tokenizer.from_file(str(models / "baton-tiny" / "tokenizer.json"))
