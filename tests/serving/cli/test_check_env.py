from __future__ import annotations

import platform
from importlib.metadata import version

import pytest

from baton_serving.cli import check_env
from baton_serving.cli.check_env import Finding, findings
from baton_serving.cli.main import main


def test_it_reports_machine_packages_and_transfer_libraries() -> None:
    found = {finding.what: finding for finding in findings()}
    assert found["python"].found == platform.python_version()
    assert found["torch"] == Finding("torch", version("torch"), needed=True)
    assert {"cpu", "memory", "shared memory", "libibverbs", "nixl-cu13", "rdma adapters"} <= set(found)


def test_what_is_missing_comes_with_a_remedy() -> None:
    for finding in findings():
        assert finding.remedy or finding.found not in ("missing", "not installed"), finding.what


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (Finding("rdma adapters", "none", "transfers use tcp"), 0),
        (Finding("torch", "not installed", "pip install it", needed=True), 1),
        (Finding("torch", "2.13.0", needed=True), 0),
    ],
)
def test_the_report_is_a_table(
    last: Finding, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_env, "findings", lambda: [Finding("python", "3.11.7"), last])
    assert main(["check-env"]) == status
    assert last.what in capsys.readouterr().out


def test_two_builds_of_mooncake_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"mooncake-transfer-engine-non-cuda": "0.3.13", "mooncake-transfer-engine-cuda13": "0.3.14"}
    monkeypatch.setattr(check_env, "_version", installed.get)
    mooncake = next(finding for finding in findings() if finding.what == "mooncake")
    assert mooncake.needed
    assert "pip uninstall -y mooncake-transfer-engine-cuda13 mooncake-transfer-engine-non-cuda" in mooncake.remedy
    installed.popitem()
    assert not next(finding for finding in findings() if finding.what == "mooncake").remedy
