"""What the client of a stream has seen, kept as bytes and read only when another worker must go on.

Workers put the tokens of each event into its `id:` line (docs/internals/stream-ids.md). Beyond `KEPT` bytes at most
those lines are read and the bytes are let go, so a long stream holds a few bytes per token. Where exactly is drawn for
every stream: those of one batch grow in step, and read together they would hold all others up.
"""

from __future__ import annotations

import random
import re
from array import array
from dataclasses import dataclass, field

import orjson

from baton_serving.gateway.http.framing import frame, split_events, unframe

KEPT = 16 * 1024

_ID_LINE = re.compile(rb"\nid: (\[[0-9,]+\])(?![^\n])")  # begins with plain text, which is searched for fast
_DATA_LINE = re.compile(rb"^data: (\{.*\})$", re.MULTILINE)
_FINISH = re.compile(rb'"finish_reason":\s*(?!null)')
_USAGE = re.compile(rb'"choices":\s*\[\]')


class Unreadable(Exception):
    """The stream does not say which tokens it brought: nobody can go on with it."""


@dataclass
class Progress:
    """How far a stream is: per choice its tokens, the choices that are over, and what its events are labelled with."""

    tokens: dict[int, array[int]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    usage_sent: bool = False
    stream_id: str | None = None
    created: int | None = None

    def resume(self, choices: int) -> dict[str, object]:
        """The `baton_resume` field for an answer of so many choices. Raises Unreadable for tokens of any other."""
        if any(index >= choices for index in self.tokens):
            raise Unreadable(f"it brought tokens of choice {max(self.tokens)}, though {choices} were asked for")
        fields: dict[str, object] = {"output_ids": [list(self.tokens.get(index, ())) for index in range(choices)]}
        if self.stream_id is not None:
            fields["id"] = self.stream_id
        if self.created is not None:
            fields["created"] = self.created
        return fields


class Transcript:
    """The chunks that went to a client."""

    __slots__ = ("_limit", "_parts", "_progress", "_size")

    def __init__(self) -> None:
        self._limit = random.randint(KEPT // 2, KEPT)
        self._parts: list[bytes] = []
        self._size = 0
        self._progress: Progress | None = None

    def add(self, chunks: bytes) -> None:
        """Keep whole events, framed as chunks."""
        self._parts.append(chunks)
        self._size += len(chunks)
        if self._size > self._limit:
            self._compact()

    def progress(self) -> Progress:
        """Read all that was kept. Raises Unreadable."""
        self._compact()
        progress = self._progress
        if progress is None or progress.tokens.get(-1) is not None:
            raise Unreadable("its events do not say which tokens they bring")
        return progress

    def _compact(self) -> None:
        payload = unframe(b"".join(self._parts))
        self._parts = []
        self._size = 0
        if self._progress is None:
            self._progress = Progress()
            _read_labels(payload, self._progress)
        _read(payload, self._progress)


def _read(payload: bytes, progress: Progress) -> None:
    """Take in some events. A gap in the positions marks the whole as unreadable, under choice -1."""
    ids: list[list[int]] = orjson.loads(b"[" + b",".join(_ID_LINE.findall(b"\n" + payload)) + b"]")
    for index, position, *tokens in ids:
        known = progress.tokens.setdefault(index, array("q"))
        if position != len(known):
            progress.tokens[-1] = array("q")
        known.extend(tokens)
    if _FINISH.search(payload):
        for event in split_events(payload):
            if _FINISH.search(event):
                progress.finished.update(finished_choices(event))
    if _USAGE.search(payload):
        progress.usage_sent = True
    if not ids and not progress.tokens and payload:
        progress.tokens[-1] = array("q")


def _read_labels(payload: bytes, progress: Progress) -> None:
    data = event_data(payload)
    if data is None:
        return
    meta = data.get("meta_info")
    label = meta.get("id") if isinstance(meta, dict) else data.get("id")
    created = data.get("created")
    progress.stream_id = label if isinstance(label, str) else None
    progress.created = created if isinstance(created, int) else None


def event_data(event: bytes) -> dict[str, object] | None:
    """The JSON object of the first `data:` line; None when there is none that can be read."""
    found = _DATA_LINE.search(event)
    if found is None:
        return None
    try:
        data = orjson.loads(found[1])
    except orjson.JSONDecodeError:
        return None
    return data if isinstance(data, dict) else None


def finished_choices(event: bytes) -> set[int]:
    """The choices that this event ends."""
    data = event_data(event) or {}
    meta = data.get("meta_info")
    if isinstance(meta, dict):
        index = data.get("index", 0)
        return {index} if meta.get("finish_reason") is not None and isinstance(index, int) else set()
    return {choice["index"] for choice in _choices(data) if choice.get("finish_reason") is not None}


class Continuation:
    """Takes from a resumed stream what the client has: choices that were over already, a usage that was sent."""

    def __init__(self, progress: Progress) -> None:
        self._finished = frozenset(progress.finished)
        self._usage_sent = progress.usage_sent

    @property
    def needed(self) -> bool:
        return bool(self._finished) or self._usage_sent

    def filter(self, chunks: bytes) -> bytes:
        """The chunks without those events; may be empty."""
        return frame(b"".join(event for event in split_events(unframe(chunks)) if not self._known(event)))

    def _known(self, event: bytes) -> bool:
        data = event_data(event)
        if data is None:
            return False
        if "meta_info" in data:
            return data.get("index", 0) in self._finished
        choices = _choices(data)
        if not choices:
            return self._usage_sent and "usage" in data
        return all(choice["index"] in self._finished for choice in choices)


def _choices(data: dict[str, object]) -> list[dict[str, int]]:
    choices = data.get("choices")
    if not isinstance(choices, list):
        return []
    return [choice for choice in choices if isinstance(choice, dict) and isinstance(choice.get("index"), int)]
