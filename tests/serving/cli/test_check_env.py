from __future__ import annotations

import platform
from importlib.metadata import version

import pytest

from baton_serving.cli.check_env import Finding, findings
from baton_serving.cli.main import main


def test_it_reports_machine_packages_and_transfer_libraries() -> None:
    found = {finding.what: finding for finding in findings()}
    assert found["python"].found == platform.python_version()
    assert found["torch"] == Finding("torch", version("torch"))
    assert {"cpu", "memory", "shared memory", "libibverbs", "nixl-cu13", "rdma adapters"} <= set(found)


def test_what_is_missing_comes_with_a_remedy() -> None:
    for finding in findings():
        assert finding.remedy or finding.found not in ("missing", "not installed"), finding.what


def test_the_report_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env"]) == 0
    assert "transformers" in capsys.readouterr().out
