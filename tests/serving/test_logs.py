from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from baton_serving import logs

log = logging.getLogger("baton_serving.tests")


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Put the process's logging back as pytest had set it up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = (*logs._PACKAGES, *logs._SERVERS)
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in names:
        logging.getLogger(name).setLevel(levels[name])


def configured(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure("scheduler", level, stream=stream)
    return stream


def test_a_line_names_level_process_message_and_fields() -> None:
    stream = configured()
    log.info("request ended", extra=logs.fields(tokens=5, seconds=1 / 3, reason="a stop string", empty=""))
    time, rest = stream.getvalue().split(" ", 1)
    assert time.endswith("Z")
    assert rest == 'info    scheduler request ended tokens=5 seconds=0.333333 reason="a stop string" empty=""\n'


def test_every_line_in_a_request_scope_carries_its_id() -> None:
    stream = configured()
    with logs.request_scope("r1"):
        log.info("inside")
    log.info("outside")
    inside, outside = stream.getvalue().splitlines()
    assert inside.endswith("inside rid=r1")
    assert outside.endswith("outside")


def test_a_message_stays_on_its_line_and_a_traceback_follows() -> None:
    stream = configured()
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        log.exception("failed: %s", error)
    first, second = stream.getvalue().splitlines()[:2]
    assert first.endswith("failed: two\\nlines")
    assert second == "Traceback (most recent call last):"


def test_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    stream = configured()
    with logs.request_scope("r2"):
        log.warning("slow", extra=logs.fields(step=3))
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {"level": "warning", "process": "scheduler", "message": "slow", "step": 3, "rid": "r2"}


def test_libraries_are_heard_from_warning_on_and_baton_from_its_level() -> None:
    stream = configured("debug")
    logging.getLogger("transformers").info("chatter")
    logging.getLogger("uvicorn.access").info("GET /")
    log.debug("detail")
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == ["detail"]


def test_calling_again_replaces_the_set_up() -> None:
    first, second = configured(), configured()
    log.info("once")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1
