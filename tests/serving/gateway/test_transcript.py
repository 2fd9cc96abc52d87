"""What a stream's transcript says of it, however its bytes came and whenever they were read."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from baton_serving.gateway import transcript
from baton_serving.gateway.http.framing import frame, unframe
from baton_serving.gateway.transcript import KEPT, Transcript, Unreadable


def event(position: int, token: int, *, index: int = 0, finish: str | None = None) -> bytes:
    """An event of `/generate` that brings one token."""
    meta = {"id": "r", "finish_reason": finish and {"type": finish}, "completion_tokens": position + 1}
    data = json.dumps({"index": index, "text": "id: [9,9]", "meta_info": meta}).encode()
    return frame(b"id: [%d,%d,%d]\ndata: %b\n\n" % (index, position, token, data))


def stream(tokens: int) -> Iterator[bytes]:
    return (event(position, 1000 + position) for position in range(tokens))


def test_tokens_are_known_however_often_the_bytes_were_let_go() -> None:
    kept = Transcript()
    size = 0
    for chunks in stream(600):
        kept.add(chunks)
        size += len(chunks)
    assert size > 4 * KEPT
    progress = kept.progress()
    assert progress.tokens[0].tolist() == list(range(1000, 1600))
    assert progress.stream_id == "r"
    assert not progress.finished


def test_several_events_at_once_and_the_end_of_a_choice() -> None:
    kept = Transcript()
    kept.add(frame(b"".join(unframe(chunks) for chunks in stream(3))))
    kept.add(event(0, 7, index=1) + event(1, 8, index=1, finish="length"))
    progress = kept.progress()
    assert {index: tokens.tolist() for index, tokens in progress.tokens.items()} == {0: [1000, 1001, 1002], 1: [7, 8]}
    assert progress.finished == {1}


@pytest.mark.parametrize(
    "chunks", [event(1, 5), frame(b'data: {"text": "no id"}\n\n'), frame(b": valid: [0,0,5]\ndata: {}\n\n")]
)
def test_a_stream_with_a_gap_or_without_ids_is_unreadable(chunks: bytes) -> None:
    kept = Transcript()
    kept.add(chunks)
    with pytest.raises(Unreadable):
        kept.progress()


def test_streams_that_grow_in_step_are_not_read_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def noted(chunks: bytes) -> bytes:
        read.append(len(chunks))
        return unframe(chunks)

    monkeypatch.setattr(transcript, "unframe", noted)
    streams = [Transcript() for _ in range(128)]
    together = []
    for chunks in stream(150):
        read.clear()
        for each in streams:
            each.add(chunks)
        together.append(len(read))
    assert sum(together) >= len(streams)
    assert max(together) < len(streams) / 2
