"""Puts the training program of the demo models on the import path: it is run from its folder, not installed."""

import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

MODELS = Path(__file__).parents[2] / "examples" / "models"
sys.path.insert(0, str(MODELS))


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the checkpoints."""
    return MODELS


@pytest.fixture(scope="session")
def tokenizer(models: Path) -> Tokenizer:
    """The tokenizer both checkpoints share."""
    return Tokenizer.from_file(str(models / "baton-tiny" / "tokenizer.json"))
