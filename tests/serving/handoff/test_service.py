"""Whole transfers between services in one process, on every backend."""

from __future__ import annotations

import socket
import time

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import zmq
from support.handoff_workers import LAYOUT, Cluster, Worker, eventually, send_whole

from baton_serving.errors import ConfigError, InternalError, InvalidRequest
from baton_serving.handoff.backends.base import BackendError, TransferBackend
from baton_serving.handoff.backends.fake import Script
from baton_serving.handoff.events import Arrived, Begun, Delivered, ReceiveFailed, ReceiveQuiet, SendFailed, SendQuiet
from baton_serving.handoff.protocol import Heartbeat, Hello, HelloRefused, Join, Key, PageSpan, Started, decode, encode
from baton_serving.handoff.ranks import CloseEpochs, PostWrites, RankFailed
from baton_serving.handoff.rim import Limits, PeerAddress
from baton_serving.kv.layout import KVGroup

Pair = tuple[Worker, Worker]


def settled(*workers: Worker) -> bool:
    """No transfer open, no page in quarantine."""
    return all(
        not (s.open_sends or s.open_receives or s.quarantined_source_pages or s.quarantined_target_pages)
        for s in (worker.service.stats() for worker in workers)
    )


def test_pages_and_snapshot_arrive(pair: Pair) -> None:
    sender, receiver = pair
    source, target = [5, 6, 7, 20, 3], [9, 10, 40, 41, 2]

    send_whole(sender, receiver, "whole", source, target)

    arrived = receiver.wait(Arrived, "whole")
    sender.wait(Delivered, "whole")
    assert arrived.snapshot == b"snapshot of whole"
    assert arrived.pages == 5
    assert arrived.nbytes == 5 * sender.pools[0].pages.shape[1]
    np.testing.assert_array_equal(receiver.pools[0].pages[target], sender.pools[0].pages[source])
    untouched = np.setdiff1d(np.arange(300), target)
    assert not receiver.pools[0].pages[untouched].any()
    eventually(lambda: settled(sender, receiver))


def test_a_request_moves_on_from_the_worker_that_received_it(cluster: Cluster) -> None:
    first, second, third = cluster.worker("p"), cluster.worker("d1"), cluster.worker("d2")
    first.fill(2)
    send_whole(first, second, "leg-1", [1, 2, 3, 4], [11, 12, 13, 14])
    second.wait(Arrived, "leg-1")

    send_whole(second, third, "leg-2", [11, 12, 13, 14], [21, 5, 6, 9])
    third.wait(Arrived, "leg-2")
    send_whole(third, second, "leg-3", [21, 5, 6, 9], [1, 2, 3, 4])
    second.wait(Arrived, "leg-3")

    np.testing.assert_array_equal(second.pools[0].pages[[1, 2, 3, 4]], first.pools[0].pages[[1, 2, 3, 4]])


def test_one_rank_writes_to_two(cluster: Cluster) -> None:
    _move_between_sizes(cluster, 1, 2)


@pytest.mark.parametrize(("prefill_tp", "decode_tp"), [(2, 1), (2, 2), (1, 4), (4, 1)])
def test_tensor_parallel_sizes_may_differ(fake_cluster: Cluster, prefill_tp: int, decode_tp: int) -> None:
    _move_between_sizes(fake_cluster, prefill_tp, decode_tp)


def _move_between_sizes(cluster: Cluster, prefill_tp: int, decode_tp: int) -> None:
    sender = cluster.worker("p", tp=prefill_tp, verify=True)
    receiver = cluster.worker("d", tp=decode_tp, verify=True)
    sender.fill(3)
    source, target = [5, 6, 7, 20, 3], [9, 10, 40, 41, 2]
    if prefill_tp == 4:  # two kv-heads over four ranks: each head on two of them, alike
        for rank in (0, 2):
            sender.pools[rank + 1].pages[:] = sender.pools[rank].pages

    send_whole(sender, receiver, "t1", source, target)
    receiver.wait(Arrived, "t1")

    def heads(worker: Worker, pages: list[int], replicas: int) -> npt.NDArray[np.uint8]:
        ranks = [pool.pages[pages] for pool in worker.pools[::replicas]]
        return np.concatenate([part.reshape(len(pages), -1) for part in ranks], axis=1)

    sent = heads(sender, source, max(1, prefill_tp // LAYOUT.kv_heads))
    got = heads(receiver, target, max(1, decode_tp // LAYOUT.kv_heads))
    np.testing.assert_array_equal(got, sent)
    if decode_tp == 4:
        np.testing.assert_array_equal(receiver.pools[0].pages[target], receiver.pools[1].pages[target])


def test_only_missing_pages_and_windows_move(fake_cluster: Cluster) -> None:
    layout = msgspec.structs.replace(LAYOUT, groups=(KVGroup((0, 1)), KVGroup((2, 3), 16)))
    sender, receiver = fake_cluster.worker("p", layout=layout), fake_cluster.worker("d", layout=layout)
    sender.fill(4)
    sender.service.open("t")
    receiver.service.expect("t", 0, "p")
    sender.service.started("t", 64)
    assert receiver.wait(Begun, "t").kv_tokens == 64
    # The receiver holds the first page of the full kind; of the window kind it wants the last page only.
    receiver.service.announce("t", [PageSpan(0, 1, [31, 32, 33]), PageSpan(1, 2, [0, 34])], 16)
    sender.service.chunk_ready("t", [PageSpan(0, 0, [1, 2, 3, 4]), PageSpan(1, 0, [0, 0, 7, 8])])
    sender.service.finish("t", b"s")

    assert receiver.wait(Arrived, "t").pages == 4
    got, sent = receiver.pools[0].pages, sender.pools[0].pages
    np.testing.assert_array_equal(got[[31, 32, 33, 34]], sent[[2, 3, 4, 8]])
    assert np.count_nonzero(got.any(axis=1)) == 4


def test_nothing_is_written_for_a_prompt_that_is_there_already(pair: Pair) -> None:
    sender, receiver = pair
    send_whole(sender, receiver, "empty", [], [])
    arrived = receiver.wait(Arrived, "empty")
    assert (arrived.pages, arrived.nbytes) == (0, 0)
    sender.wait(Delivered, "empty")


def test_a_long_snapshot_arrives(fake_cluster: Cluster) -> None:
    sender, receiver = fake_cluster.worker("p"), fake_cluster.worker("d")
    snapshot = np.random.default_rng(0).bytes(30_000_000)
    sender.service.open("t")
    receiver.service.expect("t", 0, "p")
    sender.service.started("t", 1)
    receiver.wait(Begun, "t")
    receiver.service.announce("t", [], 1)
    sender.service.finish("t", snapshot)
    assert receiver.wait(Arrived, "t").snapshot == snapshot


def test_prefill_may_be_done_before_anyone_joins(fake_cluster: Cluster) -> None:
    sender, receiver = fake_cluster.worker("p"), fake_cluster.worker("d")
    sender.fill(5)
    sender.service.open("t")
    sender.service.started("t", 32)
    sender.service.chunk_ready("t", [PageSpan(0, 0, [1, 2])])
    sender.service.finish("t", b"s")
    receiver.service.expect("t", 0, "p")
    receiver.wait(Begun, "t")
    receiver.service.announce("t", [PageSpan(0, 0, [8, 9])], 0)
    receiver.wait(Arrived, "t")
    np.testing.assert_array_equal(receiver.pools[0].pages[[8, 9]], sender.pools[0].pages[[1, 2]])


def test_many_transfers_at_once(pair: Pair) -> None:
    sender, receiver = pair
    order = np.random.default_rng(1).permutation(np.arange(1, 281)).tolist()
    transfers = {f"many{n}": (list(range(1 + 7 * n, 8 + 7 * n)), order[7 * n : 7 * n + 7]) for n in range(40)}
    for name in transfers:
        sender.service.open(name)
        receiver.service.expect(name, 0, "p")
        sender.service.started(name, 7 * 16)
    for name, (source, target) in transfers.items():
        receiver.wait(Begun, name)
        receiver.service.announce(name, [PageSpan(0, 0, target)], 0)
        sender.service.chunk_ready(name, [PageSpan(0, 0, source)])
        sender.service.finish(name, name.encode())
    for name, (source, target) in transfers.items():
        assert receiver.wait(Arrived, name).snapshot == name.encode()
        np.testing.assert_array_equal(receiver.pools[0].pages[target], sender.pools[0].pages[source])
    eventually(lambda: settled(sender, receiver))


@pytest.mark.parametrize("side", ["sender", "receiver"])
def test_an_abort_while_pages_are_written_ends_both_legs(pair: Pair, side: str) -> None:
    _abort(*pair, side, "writing")


@pytest.mark.parametrize("side", ["sender", "receiver"])
@pytest.mark.parametrize("moment", ["opened", "joined", "begun"])
def test_an_abort_ends_both_legs(fake_cluster: Cluster, side: str, moment: str) -> None:
    sender, receiver = fake_cluster.worker("p"), fake_cluster.worker("d")
    sender.fill(7)
    _abort(sender, receiver, side, moment)


def _abort(sender: Worker, receiver: Worker, side: str, moment: str) -> None:
    transfer = f"{moment} {side}"
    sender.service.open(transfer)
    receiver.service.expect(transfer, 0, "p")
    if moment == "joined":
        eventually(lambda: sender.service.stats().peers == 1)
    if moment in ("begun", "writing"):
        sender.service.started(transfer, 64)
        receiver.wait(Begun, transfer)
    if moment == "writing":
        receiver.service.announce(transfer, [PageSpan(0, 0, [1, 2, 3, 4])], 0)
        sender.service.chunk_ready(transfer, [PageSpan(0, 0, [1, 2])])
        eventually(lambda: bool(receiver.pools[0].pages[2].any()))

    (sender if side == "sender" else receiver).service.abort(transfer, "the client went away")

    send_failed, receive_failed = sender.wait(SendFailed, transfer), receiver.wait(ReceiveFailed, transfer)
    assert "the client went away" in send_failed.failure.message
    assert "the client went away" in receive_failed.failure.message
    assert send_failed.failure.code == receive_failed.failure.code == "cancelled"
    if not send_failed.quiet:
        sender.wait(SendQuiet, transfer)
    if not receive_failed.quiet:
        receiver.wait(ReceiveQuiet, transfer)
    assert sender.service.stats().fences == receiver.service.stats().fences == 0, "a clean abort needs no fence"
    eventually(lambda: settled(sender, receiver))
    send_whole(sender, receiver, f"after {transfer}", [5, 6], [1, 2])
    receiver.wait(Arrived, f"after {transfer}")
    np.testing.assert_array_equal(receiver.pools[0].pages[[1, 2]], sender.pools[0].pages[[5, 6]])


def test_verification_names_the_page_that_differs(fake_cluster: Cluster) -> None:
    sender, receiver = fake_cluster.worker("p", verify=True), fake_cluster.worker("d", verify=True)
    sender.fill(8)
    landed = fake_cluster.fabric.landed
    sender.service.open("t")
    receiver.service.expect("t", 0, "p")
    sender.service.started("t", 32)
    receiver.wait(Begun, "t")
    receiver.service.announce("t", [PageSpan(0, 0, [8, 9])], 0)
    sender.service.chunk_ready("t", [PageSpan(0, 0, [1, 2])])
    eventually(lambda: fake_cluster.fabric.landed > landed)
    receiver.pools[0].pages[9, 100] ^= 1
    sender.service.finish("t", b"s")

    failed = receiver.wait(ReceiveFailed, "t")
    assert "page 1 of KV group 0 differs" in failed.failure.message
    assert failed.quiet
    sender.wait(SendFailed, "t")
    assert receiver.service.stats().mismatched_pages == 1


def test_a_peer_of_another_layout_or_weights_is_refused(fake_cluster: Cluster) -> None:
    cluster = fake_cluster
    sender = cluster.worker("p")
    other = cluster.worker("d", layout=msgspec.structs.replace(LAYOUT, page_size=32))
    newer = cluster.worker("e", weights="w2")
    for receiver, said in ((other, "KV page_size"), (newer, "weight digest")):
        receiver.service.expect("t", 0, "p")
        failed = receiver.wait(ReceiveFailed, "t")
        assert said in failed.failure.message
        assert failed.failure.code == "unavailable"
        for name in ("p", receiver.name):
            assert f"{name} (incarnation" in failed.failure.message
    fitting = cluster.worker("f")
    sender.fill(9)
    send_whole(sender, fitting, "t2", [1], [2])
    fitting.wait(Arrived, "t2")


def test_an_unknown_or_unreachable_peer_fails_the_transfer(fake_cluster: Cluster) -> None:
    receiver = fake_cluster.worker("d", limits=Limits(connect=0.3))
    receiver.service.expect("t1", 0, "nobody")
    assert "no worker is registered as 'nobody'" in receiver.wait(ReceiveFailed, "t1").failure.message
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for number, endpoint in enumerate((f"tcp://127.0.0.1:{port}", "tcp://no-such-host.invalid:1", "nonsense")):
        fake_cluster.registry[f"gone{number}"] = PeerAddress(endpoint)
        receiver.service.expect(f"g{number}", 0, f"gone{number}")
        failed = receiver.wait(ReceiveFailed, f"g{number}")
        assert failed.quiet
        assert f"cannot reach 'gone{number}'" in failed.failure.message


def test_a_look_up_that_raises_fails_the_transfer(fake_cluster: Cluster) -> None:
    class Broken(dict[str, PeerAddress]):
        def get(self, key: str, default: object = None) -> PeerAddress:
            raise OSError("no bootstrap server")

    fake_cluster.registry = Broken()
    receiver = fake_cluster.worker("d")
    receiver.service.expect("t", 0, "p")
    assert receiver.wait(ReceiveFailed, "t").quiet


def test_a_transfer_id_is_used_once_per_attempt(fake_cluster: Cluster) -> None:
    worker = fake_cluster.worker("p")
    worker.service.open("t", 1)
    for attempt in (0, 1):
        with pytest.raises(InvalidRequest, match="used before"):
            worker.service.open("t", attempt)
        with pytest.raises(InvalidRequest, match="used before"):
            worker.service.expect("t", attempt, "d")
    worker.service.open("t", 2)


def test_a_join_that_no_prefill_answers_is_turned_away(fake_cluster: Cluster) -> None:
    fake_cluster.worker("p", limits=Limits(early_join=0.3))
    receiver = fake_cluster.worker("d")
    receiver.service.expect("t", 0, "p")
    failed = receiver.wait(ReceiveFailed, "t")
    assert "heard nothing of this transfer" in failed.failure.message
    assert failed.quiet


def test_a_finished_prefill_waits_for_its_join_only_so_long(fake_cluster: Cluster) -> None:
    sender = fake_cluster.worker("p", limits=Limits(join=0.3))
    sender.service.open("t")
    sender.service.started("t", 4)
    sender.service.chunk_ready("t", [PageSpan(0, 0, [1])])
    sender.service.finish("t", b"s")
    failed = sender.wait(SendFailed, "t")
    assert failed.failure.code == "deadline_exceeded"
    assert failed.quiet


def test_a_replaced_peer_is_a_stranger(fake_cluster: Cluster) -> None:
    first = fake_cluster.worker("p")
    receiver = fake_cluster.worker("d")
    first.fill(1)
    send_whole(first, receiver, "t1", [1], [1])
    receiver.wait(Arrived, "t1")
    fake_cluster.registry["p"] = PeerAddress(first.service.endpoint, "another-incarnation")

    receiver.service.expect("t2", 0, "p")

    assert "in place of the registered worker" in receiver.wait(ReceiveFailed, "t2").failure.message
    eventually(lambda: receiver.service.stats().refused.get("stale incarnation") == 1)


class Intruder:
    """Anyone who reaches the control socket."""

    def __init__(self, endpoint: str) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    def __enter__(self) -> Intruder:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close(0)


def test_noise_and_lies_on_the_control_socket_are_counted_and_survived(fake_cluster: Cluster) -> None:
    sender, receiver = fake_cluster.worker("p"), fake_cluster.worker("d")
    sender.fill(1)
    mine = receiver.service._core.links.mine
    assert mine is not None
    hello = Hello(incarnation=receiver.incarnation, descriptor=mine)
    rng = np.random.default_rng(0)
    with Intruder(sender.service.endpoint) as intruder:
        for length in range(60):
            intruder.socket.send(rng.bytes(length))
        intruder.socket.send_multipart([b"", b"two", b"three"])
        intruder.socket.send(encode(hello)[:-5])
        eventually(lambda: sender.service.stats().refused.get("malformed", 0) == 62)
        key = Key("t", 0)
        intruder.socket.send(encode(Join(incarnation="x", key=key)))
        eventually(lambda: sender.service.stats().refused.get("stranger", 0) == 1)
        assert isinstance(decode(intruder.socket.recv()), HelloRefused)
        intruder.socket.send(encode(hello))
        eventually(lambda: sender.service.stats().peers == 1)
        intruder.socket.send(encode(hello))
        intruder.socket.send(encode(Heartbeat(incarnation="x", tick=1)))
        eventually(lambda: sender.service.stats().refused.get("stale incarnation", 0) == 2)
        intruder.socket.send(encode(Started(incarnation=receiver.incarnation, key=key, kv_tokens=1)))
        eventually(lambda: sender.service.stats().refused.get("unknown transfer", 0) == 1)
    send_whole(sender, receiver, "t", [1, 2], [3, 4])
    receiver.wait(Arrived, "t")


def test_announced_pages_outside_the_pool_fail_that_transfer_only(fake_cluster: Cluster) -> None:
    sender, receiver = fake_cluster.worker("p"), fake_cluster.worker("d")
    for number, span in enumerate((PageSpan(0, 0, [64]), PageSpan(3, 0, [1]), PageSpan(0, 0, [1, 1]))):
        name = f"t{number}"
        sender.service.open(name)
        receiver.service.expect(name, 0, "p")
        sender.service.started(name, 16)
        receiver.wait(Begun, name)
        receiver.service.announce(name, [span], 0)
        assert "announced page" in sender.wait(SendFailed, name).failure.message
        receiver.wait(ReceiveFailed, name)
    assert sender.service.stats().refused["bad pages"] == 3
    eventually(lambda: settled(sender, receiver))


def test_a_page_that_was_asked_for_but_never_computed_fails_the_transfer(fake_cluster: Cluster) -> None:
    sender, receiver = fake_cluster.worker("p"), fake_cluster.worker("d")
    send = "t"
    sender.service.open(send)
    receiver.service.expect(send, 0, "p")
    sender.service.started(send, 32)
    receiver.wait(Begun, send)
    receiver.service.announce(send, [PageSpan(0, 0, [1, 2])], 0)
    sender.service.chunk_ready(send, [PageSpan(0, 0, [1])])
    sender.service.finish(send, b"s")
    assert "page 1 of KV group 0 was asked for but not computed" in sender.wait(SendFailed, send).failure.message
    assert receiver.wait(ReceiveFailed, send).failure.code == "internal_error"


def test_a_scheduler_that_stands_still_is_suspected_unless_it_said_so(fake_cluster: Cluster) -> None:
    limits = Limits(stall=0.8, heartbeat=0.05)
    sender, receiver = fake_cluster.worker("p", limits=limits), fake_cluster.worker("d", limits=limits)
    sender.service.open("t")
    receiver.service.expect("t", 0, "p")
    sender.service.started("t", 16)
    receiver.wait(Begun, "t")
    sender.beating = False
    sender.service.beat(10_000, busy=2.0)
    quiet_until = time.monotonic() + 1.5
    while time.monotonic() < quiet_until:
        assert not any(isinstance(event, ReceiveFailed) for event in receiver.service.events())
        time.sleep(0.05)
    failed = receiver.wait(ReceiveFailed, "t")
    assert "scheduler stood still" in failed.failure.message
    sender.wait(SendFailed, "t")


def test_where_closing_keeps_nobody_out_only_the_death_of_the_writer_frees(fake_cluster: Cluster) -> None:
    """As over NVLink within a host: a suspected writer's pages wait for the end of its control connection."""
    fake_cluster.fenced_by_close = False
    fake_cluster.fabric.director = lambda source, target, blocks: Script([[3600.0]] * blocks)
    limits = Limits(stall=0.5, heartbeat=0.05)
    sender, receiver = fake_cluster.worker("p", limits=limits), fake_cluster.worker("d", limits=limits)
    sender.service.open("t")
    receiver.service.expect("t", 0, "p")
    sender.service.started("t", 16)
    receiver.wait(Begun, "t")
    receiver.service.announce("t", [PageSpan(0, 0, [1, 2])], 0)
    sender.service.chunk_ready("t", [PageSpan(0, 0, [1, 2])])
    sender.beating = False
    assert not receiver.wait(ReceiveFailed, "t").quiet
    sender.wait(SendFailed, "t")

    time.sleep(2 * limits.grace)
    assert not any(isinstance(event, ReceiveQuiet) for event in receiver.service.events())
    assert receiver.service.stats().quarantined_target_pages == 2
    assert receiver.service.stats().fences == 0
    fake_cluster.workers.remove(sender)
    sender.close()

    receiver.wait(ReceiveQuiet, "t")
    eventually(lambda: settled(receiver))


def test_a_fault_in_a_thread_ends_the_worker_loudly(fake_cluster: Cluster) -> None:
    worker = fake_cluster.worker("p")
    worker.service.report(RankFailed(0, "segment lost"))
    with pytest.raises(InternalError, match="transfers of rank 0 failed: segment lost"):
        worker.service.events()


def test_a_rank_that_cannot_do_its_work_says_so(fake_cluster: Cluster) -> None:
    worker = fake_cluster.worker("p")
    worker.ranks[0].submit(CloseEpochs(1))
    worker.ranks[0].submit(PostWrites(1, Key("t", 0), 0, []))  # no engine is left
    assert worker.woken.wait(10)
    with pytest.raises(InternalError, match="transfers of rank 0 failed"):
        worker.service.events()


def test_a_backend_that_does_not_start_is_a_configuration_error() -> None:
    def broken(name: str) -> TransferBackend:
        raise BackendError("no such device: name one with --disaggregation-ib-device")

    with pytest.raises(ConfigError, match="the transfer engine does not start: no such device"):
        Worker("p", broken, {})
