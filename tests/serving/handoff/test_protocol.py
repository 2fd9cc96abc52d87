"""Control frames: what goes out comes back, and nothing else does any harm."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_serving.handoff.layout import PeerDescriptor, rank_slice
from baton_serving.handoff.protocol import (
    HEADER,
    Abort,
    Aborted,
    Ack,
    Control,
    Heartbeat,
    Hello,
    HelloAck,
    HelloRefused,
    Join,
    Key,
    Malformed,
    PageDigest,
    Pages,
    PageSpan,
    Snapshot,
    Started,
    decode,
    encode,
)
from baton_serving.kv.layout import KVGroup, KVLayout

LAYOUT = KVLayout(page_size=16, kv_heads=2, k_dim=8, v_dim=8, dtype="float16", groups=(KVGroup((0, 1)),))
PEER = PeerDescriptor(
    version=1,
    worker="w",
    incarnation="i",
    weights="d",
    engine="e",
    layout=LAYOUT,
    tp_size=1,
    pp_size=1,
    backend="fake",
    epoch=3,
    ranks=(msgspec.structs.replace(rank_slice(LAYOUT, 1, 0), pages=4, address=1 << 47, endpoint=b"\x00\xff"),),
)
KEY = Key("0123456789abcdef0123456789abcdef", 2)
MESSAGES: list[Control] = [
    Hello(incarnation="i", descriptor=PEER),
    HelloAck(incarnation="i", descriptor=PEER, epoch=3),
    HelloRefused(incarnation="i", reason="page size"),
    Heartbeat(incarnation="i", tick=1 << 40, busy=2.5),
    Join(incarnation="i", key=KEY),
    Started(incarnation="i", key=KEY, kv_tokens=100),
    Pages(incarnation="i", key=KEY, spans=[PageSpan(0, 3, [4, 5])], prefix_tokens=48, verify=True),
    Snapshot(
        incarnation="i",
        key=KEY,
        payload=b"x" * 100_000,
        pages=2,
        nbytes=10,
        seconds=0.5,
        digests=[PageDigest(0, 1, 0, 7, 2**64 - 1)],
    ),
    Ack(incarnation="i", key=KEY),
    Abort(incarnation="i", key=KEY, reason="r"),
    Aborted(incarnation="i", key=KEY, quiesced=False, epoch=4, reason="r"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: Control) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_truncated_frame_is_malformed(message: Control) -> None:
    frame = encode(message)
    for length in {*range(min(len(frame), 64)), len(frame) - 1}:
        with pytest.raises(Malformed):
            decode(frame[:length])


@given(st.binary(max_size=200))
def test_random_bytes_are_malformed(noise: bytes) -> None:
    for frame in (noise, HEADER + noise):
        with pytest.raises(Malformed):
            decode(frame)


def test_another_protocol_version_is_malformed() -> None:
    frame = bytearray(encode(MESSAGES[0]))
    frame[3] += 1
    with pytest.raises(Malformed, match="version"):
        decode(bytes(frame))


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(Malformed):
        decode(HEADER + b"\x91" * 100_000)
