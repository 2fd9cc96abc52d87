from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_models import tiny_config

from baton_serving.cli.main import main
from baton_serving.cli.warm import cache_folders


def test_a_model_without_weights_is_warmed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_config("qwen3", {"architectures": ["Qwen3ForCausalLM"]}).save_pretrained(tmp_path)
    assert main(["warm", "--model-path", str(tmp_path), "--device", "cpu", "--max-total-tokens", "4096"]) == 0
    out = capsys.readouterr().out
    assert "answers after" in out
    assert str(cache_folders()["Triton"]) in out


def test_caches_are_where_the_libraries_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/kept/triton")
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", "/kept")
    assert cache_folders() == {"Triton": Path("/kept/triton"), "FlashInfer": Path("/kept/.cache/flashinfer")}
