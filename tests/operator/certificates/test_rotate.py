"""The rotation as pods live it: whatever the moment, every two parts can prove themselves to each other."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product

import pytest
from cryptography import x509
from support.fake_cluster import FakeCluster, service_of

from baton_bootstrap.auth import PEER_NAME
from baton_operator.certificates import KeyMaker, Lifetimes, Stored, rotate
from baton_operator.certificates.secrets import curve_keys, files_of, secrets, stored
from baton_operator.planner import Context, Observed
from baton_operator.planner.objects import ref_of
from baton_operator.planner.pods import CERTIFIED

LIVES = Lifetimes(authority=timedelta(days=9), certificate=timedelta(days=3), spread=timedelta(minutes=10))
START = datetime(2030, 1, 1, tzinfo=UTC)
TLS = "{model: {uri: 'hf://a/b'}, security: {mutualTls: true}}"
MAKER = KeyMaker()


def history(days: int, step: timedelta) -> Iterator[tuple[datetime, Stored]]:
    """Each state that was new."""
    state, now = Stored(), START
    while now < START + timedelta(days=days):
        after = rotate(state, CERTIFIED, now, MAKER, LIVES)
        if after != state:
            state = after
            yield now, state
        now += step


def meets(one: Stored, other: Stored) -> bool:
    """Whether any part with the files of `one` and any with those of `other` trust each other."""
    return all(
        any(_signed(authority, shown.pair.certificate) for authority in trusting.trusted)
        for a, b in product(one.leaves.values(), other.leaves.values())
        for shown, trusting in ((a, b), (b, a))
    )


def _signed(authority: bytes, certificate: bytes) -> bool:
    current = replace(FIRST, certificate=authority)
    return MAKER.signed(current, certificate)


FIRST = MAKER.authority(START, timedelta(days=1))


def test_files_of_one_step_work_with_those_of_the_step_before() -> None:
    """Kubelets bring new files at their own time, but within `spread`."""
    states = list(history(20, timedelta(minutes=11)))
    for (_, before), (_, after) in pairwise(states):
        assert meets(before, after)
    authorities = {state.current.certificate for _, state in states if state.current}
    assert len(authorities) >= 3
    assert not any(leaf.pair.ends <= at for at, state in states for leaf in state.leaves.values())
    assert all(state.current and at < state.current.ends for at, state in states)
    # The first and the last authority have nothing to do with each other.
    assert not meets(states[0][1], states[-1][1])


def test_an_authority_changes_in_four_steps_each_after_the_files_have_spread() -> None:
    seen = list(history(8, timedelta(minutes=4)))
    first = next(index for index, (_, state) in enumerate(seen) if state.following is not None)
    changes = seen[first:]
    trusted = [len(state.leaves["gateway"].trusted) for _, state in changes]
    assert trusted[:3] == [2, 2, 1]
    assert changes[0][1].following is not None
    assert changes[1][1].former is not None
    for (earlier, _), (later, _) in pairwise(changes):
        assert later - earlier >= LIVES.spread


def test_nothing_changes_while_nothing_is_due() -> None:
    state = rotate(Stored(), CERTIFIED, START, MAKER, LIVES)
    assert rotate(state, CERTIFIED, START + timedelta(days=1), MAKER, LIVES) == state


def test_a_lost_certificate_is_made_anew_and_no_other() -> None:
    state = rotate(Stored(), CERTIFIED, START, MAKER, LIVES)
    lost = replace(state, leaves={part: leaf for part, leaf in state.leaves.items() if part != "workers"})
    after = rotate(lost, CERTIFIED, START, MAKER, LIVES)
    assert {part for part in CERTIFIED if after.leaves[part] != state.leaves[part]} == {"workers"}
    assert meets(state, after)


def test_certificates_are_what_openssl_asks_for() -> None:
    state = rotate(Stored(), CERTIFIED, START, MAKER, LIVES)
    leaf = state.leaves["workers"]
    context = ssl.create_default_context(cadata=b"".join(leaf.trusted).decode())
    assert context.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}
    found = x509.load_pem_x509_certificate(leaf.pair.certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [PEER_NAME]


def observed(*items: object) -> Observed:
    return Observed({ref_of(item): item for item in items})  # type: ignore[arg-type, misc]


def test_secrets_hold_the_state_and_an_interrupted_round_goes_on_from_there() -> None:
    context = Context(service_of(TLS))
    state = rotate(Stored(), CERTIFIED, START, MAKER, LIVES)
    made = list(secrets(context, Observed(), state))
    assert [item["metadata"]["name"] for item in made] == [  # type: ignore[index]
        "chat-authority",
        "chat-workers-tls",
        "chat-gateway-tls",
        "chat-bootstrap-tls",
    ]
    assert stored(context, observed(*made)) == state
    again = list(secrets(context, observed(*made), state))
    assert again == made  # the CURVE keys stay
    half = stored(context, observed(*made[:2]))
    after = rotate(half, CERTIFIED, START, MAKER, LIVES)
    assert after.current == state.current
    assert after.leaves["workers"] == state.leaves["workers"]


def test_curve_keys_move_on_with_the_certificate_and_all_know_the_next_one_before() -> None:
    context = Context(service_of(TLS))
    state, now, seen = Stored(), START, Observed()
    files: list[list[bytes]] = []
    while len(files) < 4:
        state = rotate(state, CERTIFIED, now, MAKER, LIVES)
        made = list(secrets(context, seen, state))
        found = files_of(context, made, "workers")["curve.key"].split()
        if not files or found != files[-1]:
            files.append(found)
        seen, now = observed(*made), now + timedelta(days=1)
    assert [len(found) for found in files] == [2, 3, 3, 3]
    for before, after in pairwise(files):
        assert after[0] == before[1]
        assert after[2] == before[0]
        assert after[1] not in before
    assert curve_keys(files[0][:1], renewed=True)[0] == files[0][0]  # a lone key stays until others know the next


@pytest.mark.parametrize("damage", ["", "bm9uc2Vuc2U=", "%"])
def test_a_damaged_secret_counts_as_missing(damage: str) -> None:
    context = Context(service_of(TLS))
    state = rotate(Stored(), CERTIFIED, START, MAKER, LIVES)
    made = [dict(item) for item in secrets(context, Observed(), state)]
    made[2]["data"] = {**made[2]["data"], "tls.key": damage}  # type: ignore[dict-item]
    assert set(stored(context, observed(*made)).leaves) == {"workers", "bootstrap"}


def test_pods_mount_their_own_files_and_probes_need_none() -> None:
    cluster = FakeCluster(TLS)
    cluster.settle()
    for name, item in cluster.of_kind("Deployment").items():
        part = "workers" if "fill-" in name or "decode-" in name else name.split("-")[1]
        pod = item["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        mounted = [volume["secret"]["secretName"] for volume in pod["volumes"] if volume["name"] == "certificates"]
        assert mounted == [f"chat-{part}-tls"]
        flag = "--worker-ssl-certfile" if part == "gateway" else "--ssl-certfile"
        assert container["args"][container["args"].index(flag) + 1] == "/var/run/baton-tls/tls.crt"
        if part == "workers":
            assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
                "https": 30000,
                "http": 30001,
            }
            assert "--disaggregation-curve-key-file" in container["args"]
            assert container["readinessProbe"]["httpGet"]["port"] == "http"
