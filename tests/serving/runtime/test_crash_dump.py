"""What a crash dump remembers and how it reads."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from baton_serving.runtime import crash_dump
from baton_serving.runtime.crash_dump import CrashDump, DumpedRequest
from baton_serving.runtime.messages import Failure
from baton_serving.runtime.requests import Choice, GenerateRequest, RequestRecord
from baton_serving.sampling.params import SamplingParams

NOW = 1_000_000.0
FAILURE = Failure("internal_error", "rank0 ended with exit code -9")


def record(rid: str, finished: float = 0.0) -> RequestRecord:
    choices = [Choice(0, SamplingParams(seed=3)), Choice(0, SamplingParams(seed=4))]
    made = RequestRecord.of(GenerateRequest(rid, [[1, 2, 3]], choices, received=NOW - 1))
    made.output_ids = [[7], [8, 9]]
    made.finished = finished
    made.outcome = "stop" if finished else ""
    return made


def read(folder: Path) -> tuple[dict[str, object], list[DumpedRequest]]:
    for thread in threading.enumerate():
        if thread.name == "crash-dump":
            thread.join()
    (path,) = folder.iterdir()
    head, *lines = path.read_bytes().splitlines()
    return msgspec.json.decode(head), [msgspec.json.decode(line, type=DumpedRequest) for line in lines]


def test_open_and_recent_requests_are_written(tmp_path: Path) -> None:
    dump = CrashDump(tmp_path / "dumps", {"tp_size": 2}, lambda: NOW)
    for rid, finished in (("old", NOW - 301), ("recent", NOW - 10)):
        dump.started(record(rid))
        dump.finished(record(rid, finished))
    dump.started(record("running"))
    dump.failed(FAILURE)
    head, lines = read(tmp_path / "dumps")
    assert head["failure"] == {"code": FAILURE.code, "message": FAILURE.message}
    assert head["about"] == {"tp_size": 2}
    assert [(line.rid, line.outcome) for line in lines] == [("recent", "stop"), ("running", "open")]
    assert all((line.input_ids, line.output_ids) == ([[1, 2, 3]], [[7], [8, 9]]) for line in lines)
    assert [params.seed for params in lines[0].params] == [3, 4]


def test_memory_is_bounded_by_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_dump, "KEPT_TOKENS", 15)
    dump = CrashDump(tmp_path, {}, lambda: NOW)
    for number in range(10):
        dump.finished(record(str(number), NOW))
    dump.failed(FAILURE)
    assert [line.rid for line in read(tmp_path)[1]] == ["8", "9"]


def test_a_folder_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    dump = CrashDump(blocked, {}, lambda: NOW)
    dump.failed(FAILURE)
    for thread in threading.enumerate():
        if thread.name == "crash-dump":
            thread.join()
    assert "could not be written" in caplog.text
