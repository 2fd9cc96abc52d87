"""Where a worker's processes meet."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from baton_serving.errors import ConfigError
from baton_serving.runtime.channels import Addresses


def test_too_long_a_path_for_sockets_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(ConfigError, match="set TMPDIR to a shorter one"):
        Addresses.create(1)
    assert list(folder.iterdir()) == []
