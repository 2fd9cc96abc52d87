"""Every record survives the wire; what a stranger sends wrong is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton_bootstrap.errors import Refused
from baton_bootstrap.records import Beat, Delta, Departure, Entry, Load, Role, Snapshot, State, Status, Worker
from baton_bootstrap.wire import codec
from baton_bootstrap.wire.generated import registry_pb2 as pb

small = st.integers(0, 2**32 - 1)
large = st.integers(0, 2**64 - 1)
text = st.text(max_size=8)
workers = st.builds(
    Worker,
    id=text,
    incarnation=text,
    epoch=large,
    role=st.sampled_from(Role),
    http_url=text,
    grpc_url=text,
    control=text,
    keys=st.lists(text, max_size=3).map(tuple),
    model=text,
    weight_digest=text,
    engine_digest=text,
    tp_size=small,
    pp_size=small,
    page_size=small,
    dtype=text,
    max_total_tokens=large,
    detail=st.binary(max_size=8),
)
seconds = st.floats(0, 1e9)
loads = st.builds(
    Load,
    running=small,
    queued_tokens=large,
    free_pages=large,
    total_pages=large,
    prompt_tokens=large,
    prompt_seconds=seconds,
    answer_tokens=large,
    answer_seconds=seconds,
)
statuses = st.builds(Status, state=st.sampled_from(State), load=loads)
entries = st.builds(Entry, worker=workers, status=statuses)
links = st.dictionaries(text, seconds, max_size=3)
own_states = st.sampled_from([State.STARTING, State.READY, State.DRAINING])


@given(st.builds(Beat, state=own_states, load=loads, tick=large, busy_seconds=st.floats(0, 3600), links=links))
def test_beat(beat: Beat) -> None:
    assert codec.beat_from_wire(pb.Beat.FromString(codec.beat_to_wire(beat).SerializeToString())) == beat


@given(
    st.builds(
        Snapshot,
        instance=text,
        revision=large,
        warming=st.booleans(),
        entries=st.lists(entries, max_size=2).map(tuple),
    )
)
def test_snapshot(snapshot: Snapshot) -> None:
    data = codec.snapshot_to_wire(snapshot, 1.5).SerializeToString()
    assert codec.snapshot_from_wire(pb.Snapshot.FromString(data)) == snapshot


@given(
    st.builds(
        Delta,
        base=large,
        revision=large,
        warming=st.booleans(),
        joined=st.lists(entries, max_size=2).map(tuple),
        changed=st.dictionaries(text, statuses, max_size=2),
        removed=st.dictionaries(text, st.sampled_from(Departure), max_size=2),
    )
)
def test_delta(delta: Delta) -> None:
    data = codec.delta_to_wire(delta).SerializeToString()
    assert codec.delta_from_wire(pb.Delta.FromString(data)) == delta


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (pb.Beat(), "state"),
        (pb.Beat.FromString(b"\x08\x63"), "state"),
        (pb.Beat(state=pb.STATE_STALLED), "verdict"),
        (pb.Beat(state=pb.STATE_READY, busy_seconds=-1.0), "busy_seconds"),
        (pb.Beat(state=pb.STATE_READY, busy_seconds=float("nan")), "busy_seconds"),
        (pb.Beat(state=pb.STATE_READY, busy_seconds=1e9), "busy_seconds"),
    ],
)
def test_bad_beats_are_refused(message: pb.Beat, named: str) -> None:
    with pytest.raises(Refused, match=named):
        codec.beat_from_wire(message)


def test_a_worker_without_a_role_is_refused() -> None:
    with pytest.raises(Refused, match=r"worker\.role"):
        codec.worker_from_wire(pb.Worker(id="a"))
