"""The requests of the last minutes, written to a file when the worker fails, so that the failure can be replayed."""

from __future__ import annotations

import logging
import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from baton_serving.runtime.messages import Failure
from baton_serving.runtime.requests import RequestRecord
from baton_serving.sampling.params import SamplingParams

log = logging.getLogger(__name__)

KEPT_SECONDS: Final = 300.0
KEPT_TOKENS: Final = 8_000_000  # of prompts and answers together, 4 bytes each


class DumpedRequest(msgspec.Struct):
    """One line of a dump. `input_ids` (one list per prompt) and `params` (one per choice) replay it at `/generate`.

    `outcome` is "open" for a request that was running when the worker failed.
    """

    rid: str
    route: str
    received: float
    finished: float
    outcome: str
    message: str
    input_ids: list[list[int]]
    prompt_of_choice: list[int]
    params: list[SamplingParams]
    output_ids: list[list[int]]


class _Kept:
    """A request that ended, its tokens packed."""

    def __init__(self, record: RequestRecord) -> None:
        self._prompts = [array("i", prompt) for prompt in record.request.prompts]
        self._outputs = [array("i", ids) for ids in record.output_ids]
        self._line = _line(record, [], [])
        self.finished = record.finished
        self.tokens = sum(map(len, self._prompts)) + sum(map(len, self._outputs))

    def line(self) -> DumpedRequest:
        prompts = [prompt.tolist() for prompt in self._prompts]
        outputs = [ids.tolist() for ids in self._outputs]
        return msgspec.structs.replace(self._line, input_ids=prompts, output_ids=outputs)


class CrashDump:
    """Observer that remembers requests, and writes them into `folder` as JSON lines when the worker fails.

    The first line says what failed and when, and holds `about` (the flags in force).
    """

    def __init__(self, folder: Path, about: Mapping[str, object], clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._about = about
        self._clock = clock
        self._open: dict[str, RequestRecord] = {}
        self._kept: deque[_Kept] = deque()
        self._tokens = 0

    def started(self, record: RequestRecord) -> None:
        self._open[record.request.rid] = record

    def produced(self, record: RequestRecord, index: int, tokens: int, now: float) -> None:
        """The record collects the tokens itself."""

    def finished(self, record: RequestRecord) -> None:
        self._open.pop(record.request.rid, None)
        kept = _Kept(record)
        self._kept.append(kept)
        self._tokens += kept.tokens
        self._forget()

    def failed(self, failure: Failure) -> None:
        """Write the dump, in a thread of its own: open requests must hear of the failure meanwhile."""
        self._forget()
        lines = [kept.line() for kept in self._kept]
        lines += [_line(record, record.request.prompts, record.output_ids) for record in self._open.values()]
        thread = threading.Thread(target=self._write, args=(failure, lines), name="crash-dump")
        thread.start()

    def _forget(self) -> None:
        horizon = self._clock() - KEPT_SECONDS
        while self._kept and (self._kept[0].finished < horizon or self._tokens > KEPT_TOKENS):
            self._tokens -= self._kept.popleft().tokens

    def _write(self, failure: Failure, lines: list[DumpedRequest]) -> None:
        now = self._clock()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        path = self._folder / f"crash-{stamp}-{os.getpid()}.jsonl"
        head = {"failure": failure, "time": now, "requests": len(lines), "about": dict(self._about)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(msgspec.json.Encoder(enc_hook=str).encode_lines([head, *lines]))
        except OSError as error:
            log.error("the crash dump could not be written to %s: %s", path, error)
        else:
            log.error("%d requests of the last minutes were written to %s", len(lines), path)


def _line(record: RequestRecord, prompts: list[list[int]], outputs: list[list[int]]) -> DumpedRequest:
    request = record.request
    return DumpedRequest(
        rid=request.rid,
        route=request.route,
        received=request.received,
        finished=record.finished,
        outcome=record.outcome or "open",
        message=record.message,
        input_ids=[list(prompt) for prompt in prompts],
        prompt_of_choice=[choice.prompt for choice in request.choices],
        params=[choice.params for choice in request.choices],
        output_ids=[list(ids) for ids in outputs],
    )
