"""Rollouts as the operator drives them, on workers that follow their assignments."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rolling_cluster import RollingCluster, digest_of

from baton_operator.planner.context import PROMOTED, UNDONE
from baton_operator.rollout import Memory

FLAG = "--disable-radix-cache"


def spec(model: str, strategy: str = "Surge", prefill: int = 1, decode: int = 1, **more: object) -> str:
    rollout = {"strategy": strategy, **more}
    words = ", ".join(f"{name}: {value}" for name, value in rollout.items())
    return (
        f"{{model: {{uri: 'pvc://models/{model}', servedName: m}}, prefill: {{replicas: {prefill}}}, "
        f"decode: {{replicas: {decode}}}, rollout: {{{words}}}}}"
    )


def path(model: str) -> str:
    return f"/models/{model}"


def running(strategy: str = "Surge", prefill: int = 1, decode: int = 1, seed: int = 0) -> RollingCluster:
    cluster = RollingCluster(spec("a", strategy, prefill, decode), seed)
    cluster.round()
    while cluster.condition("Ready")["status"] != "True" or len(cluster.weights) < prefill + decode:
        cluster.round()
        cluster.live()
    return cluster


def settle(cluster: RollingCluster) -> None:
    for _ in range(25):
        cluster.round()
        cluster.live(1.0)
    assert cluster.condition("Progressing")["status"] == "False", cluster.condition("Progressing")


def test_in_place_no_pod_is_replaced() -> None:
    cluster = running("InPlace")
    before, workloads = set(cluster.weights), cluster.replicas()
    cluster.edit(spec("b", "InPlace"))
    cluster.until("Done")
    settle(cluster)
    assert set(cluster.weights) == before
    assert set(cluster.weights.values()) == {digest_of(path("b"))}
    assert cluster.replicas() == workloads
    assert {"RolloutStaging", "RolloutMoving", "RolloutDone"} <= set(cluster.events)
    assert cluster.condition("Ready")["status"] == "True"


def test_pods_that_come_after_a_change_in_place_begin_with_the_new_weights() -> None:
    """Their workload still names those that it was made with."""
    cluster = running("InPlace")
    cluster.edit(spec("b", "InPlace"))
    cluster.until("Done")
    cluster.kill(next(iter(cluster.weights)))
    cluster.edit(spec("b", "InPlace", decode=3))
    seen: set[str] = set()
    for _ in range(60):
        cluster.round()
        cluster.live()
        seen |= set(cluster.weights.values())
    assert (len(cluster.weights), seen) == (4, {digest_of(path("b"))})


@pytest.mark.parametrize("strategy", ["Surge", "InPlace"])
def test_silence_moves_nobody_after_a_change_in_place(strategy: str) -> None:
    """Nor does it make the service less than ready: what served before is believed to serve on."""
    cluster = running("InPlace")
    cluster.edit(spec("b", "InPlace"))
    cluster.until("Done")
    cluster.edit(spec("b", strategy))
    settle(cluster)
    before, workloads = set(cluster.weights), cluster.replicas()
    cluster.reachable = False
    settle(cluster)
    assert (set(cluster.weights), cluster.replicas()) == (before, workloads)
    assert cluster.condition("Ready")["status"] == "True"
    cluster.reachable = True
    cluster.kill(min(before))
    settle(cluster)
    assert (set(cluster.weights), cluster.replicas()) == (before, workloads)
    assert set(cluster.weights.values()) == {digest_of(path("b"))}


def test_flags_take_new_pods_also_in_place() -> None:
    cluster = running("InPlace")
    before = set(cluster.weights)
    cluster.edit(spec("a", "InPlace").replace("replicas: 1", "replicas: 1, extraArgs: [--disable-radix-cache]"))
    cluster.until("Done")
    settle(cluster)
    assert not before & set(cluster.weights)


def test_new_workers_that_alone_serve_outlive_a_change_of_mind() -> None:
    """Also when no operator has had the time to note that they ever served."""
    cluster = running()
    old = set(cluster.weights)
    cluster.edit(spec("a").replace("replicas: 1", "replicas: 1, extraArgs: [--disable-radix-cache]"))
    cluster.round()
    while len(cluster.weights) < 4:
        cluster.live()
    for name in old:
        cluster.kill(name)
    cluster.edit(spec("a"))
    for _ in range(10):
        cluster.round()
        assert cluster.serving(), cluster.rollout
        cluster.live()
    settle(cluster)
    assert is_as_the_manifest_says(cluster)


@pytest.mark.parametrize("strategy", ["Surge", "InPlace"])
def test_broken_weights_are_rolled_back_and_stay_so_until_the_manifest_changes(strategy: str) -> None:
    cluster = running(strategy)
    cluster.broken.add(path("b"))
    cluster.edit(spec("b", strategy))
    cluster.until("Failed")
    settle(cluster)
    assert set(cluster.weights.values()) == {digest_of(path("a"))}
    assert "damaged" in cluster.condition("Degraded")["message"]
    assert cluster.condition("Stalled")["status"] == "True"
    for _ in range(5):
        assert cluster.round().status is None, "it is left alone"
    cluster.edit(spec("c", strategy))
    cluster.until("Done")
    settle(cluster)
    assert set(cluster.weights.values()) == {digest_of(path("c"))}


def say(cluster: RollingCluster, annotation: str, generation: int) -> None:
    """What `baton rollout` does for a person."""
    cluster.service["metadata"]["annotations"] = {annotation: str(generation)}


@pytest.mark.parametrize("strategy", ["Surge", "InPlace"])
def test_a_canary_waits_until_somebody_promotes_this_very_change(strategy: str) -> None:
    cluster = running(strategy, 2, 2)
    cluster.edit(spec("b", strategy, 2, 2, canaryPercent=50))
    cluster.until("Paused")
    say(cluster, PROMOTED, cluster.generation - 1)
    for _ in range(10):
        cluster.round()
        cluster.live()
    assert cluster.rollout["phase"] == "Paused"
    assert set(cluster.weights.values()) == {digest_of(path("a")), digest_of(path("b"))}
    say(cluster, PROMOTED, cluster.generation)
    cluster.until("Done")
    settle(cluster)
    assert set(cluster.weights.values()) == {digest_of(path("b"))}


@pytest.mark.parametrize("strategy", ["Surge", "InPlace"])
def test_a_change_that_somebody_undoes_is_rolled_back_and_may_come_again(strategy: str) -> None:
    cluster = running(strategy, 2, 2)
    cluster.edit(spec("b", strategy, 2, 2, canaryPercent=50))
    cluster.until("Paused")
    say(cluster, UNDONE, cluster.generation)
    cluster.until("Failed")
    settle(cluster)
    assert set(cluster.weights.values()) == {digest_of(path("a"))}
    assert "undone by hand" in cluster.condition("Degraded")["message"]
    cluster.edit(spec("a", strategy, 2, 2))
    settle(cluster)
    cluster.edit(spec("b", strategy, 2, 2))
    cluster.until("Done")
    settle(cluster)
    assert set(cluster.weights.values()) == {digest_of(path("b"))}


def test_nothing_changes_in_place_while_nobody_says_what_workers_do() -> None:
    cluster = running("InPlace")
    cluster.reachable = False
    cluster.edit(spec("b", "InPlace"))
    for _ in range(5):
        cluster.round()
        cluster.live()
    assert set(cluster.weights.values()) == {digest_of(path("a"))}
    assert len(cluster.replicas()) == 2
    assert "bootstrap" in cluster.rollout["message"]
    cluster.reachable = True
    cluster.until("Done")


def test_old_workers_stay_until_every_gateway_sends_requests_to_the_new() -> None:
    cluster = running()
    before = set(cluster.weights)
    cluster.gateways = [frozenset(before), frozenset(before)]
    cluster.edit(spec("b"))
    for _ in range(30):
        cluster.round()
        cluster.live()
    assert before < set(cluster.weights)
    cluster.gateways = [frozenset(before), frozenset(cluster.weights)]
    cluster.round()
    cluster.live()
    assert before < set(cluster.weights)
    cluster.gateways = [frozenset(cluster.weights)] * 2
    cluster.until("Done")


def test_the_only_worker_that_serves_outlives_a_workload_that_shrinks() -> None:
    """Nobody knows which of its pods go, so it shrinks no further before those have gone."""
    cluster = running()
    (old,) = [name for name in cluster.weights if "decode" in name]
    known = {pod["metadata"]["name"] for pod in cluster.pods}
    cluster.edit(spec("c", decode=3))
    cluster.round()
    for ref in cluster.workloads():
        cluster.advance(ref)
    new = sorted(pod["metadata"]["name"] for pod in cluster.pods if pod["metadata"]["name"] not in known)
    decodes = [name for name in new if "decode" in name]
    cluster.start(decodes[0])
    cluster.kill(old)
    cluster.edit(spec("c", decode=3).replace("replicas:", f"extraArgs: [{FLAG}], replicas:"))
    for _ in range(4):
        cluster.round()
        assert cluster.replicas()[decodes[0].rpartition("-")[0]] > 0
    settle(cluster)
    assert is_as_the_manifest_says(cluster)


@pytest.mark.parametrize("strategy", ["Surge", "InPlace"])
def test_a_newcomer_that_began_with_a_change_goes_back_with_it(strategy: str) -> None:
    """Those that come while weights change in place begin with the new ones, though nobody else has them yet."""
    cluster = running()
    known = set(cluster.weights)
    cluster.edit(spec("b", "InPlace", decode=2))
    cluster.round()
    for ref in cluster.workloads():
        cluster.advance(ref)
    (new,) = [pod["metadata"]["name"] for pod in cluster.pods if pod["metadata"]["name"] not in known]
    while cluster.told.get(new, {}).get("goal") != "switch":
        cluster.round()
        cluster.obey(*known)
    cluster.start(new)
    assert cluster.weights[new] == digest_of(path("b"))
    cluster.edit(spec("a", strategy, decode=2))
    settle(cluster)
    assert is_as_the_manifest_says(cluster)


@settings(deadline=None, max_examples=10)
@given(st.data())
def test_whatever_happens_something_serves_and_the_right_weights_in_the_end(data: st.DataObject) -> None:
    everything_in_any_order(data)


@pytest.mark.deep
@pytest.mark.timeout(3600)
@settings(deadline=None, max_examples=1500)
@given(st.data())
def test_whatever_happens_in_very_many_orders(data: st.DataObject) -> None:
    everything_in_any_order(data)


PLANTS: dict[str, dict[str, Callable[..., object]]] = {
    "the_status_is_not_read_back": {"planner.rollout.recall": lambda status: Memory()},
    "nobody_need_report": {"planner.rollout._Planning._unseen": lambda planning, desired: planning._asleep(desired)},
    "new_ones_need_not_stand": {
        "rollout.surge._share": lambda *_: 1.0,
        "rollout.surge._as_far_as_safe": lambda stops, seen: frozenset(one.id for one in stops),
    },
    "all_change_at_once": {
        "rollout.in_place._candidates": lambda old, everyone: old,
        "rollout.in_place.serving": lambda *_, **__: True,
    },
}


@pytest.mark.deep
@pytest.mark.parametrize("plant", list(PLANTS))
def test_a_planted_fault_is_found(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wrong in PLANTS[plant].items():
        monkeypatch.setattr(f"baton_operator.{name}", wrong)
    once = settings(max_examples=3000, deadline=None, database=None, phases=[hypothesis.Phase.generate])
    with pytest.raises((AssertionError, hypothesis.errors.FlakyFailure)):  # the same steps need not fail twice
        once(given(st.data())(everything_in_any_order))()


def everything_in_any_order(data: st.DataObject) -> None:
    """Kills of operator and workers, edits of weights and flags, scaling, silence of the bootstrap server."""
    strategies = st.sampled_from(["Surge", "InPlace"])
    counts = st.integers(1, 3)
    flags = st.sampled_from(["", f"extraArgs: [{FLAG}], "])
    cluster = running(data.draw(strategies), data.draw(counts), data.draw(counts), data.draw(st.integers(0, 999)))
    for _ in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(["round", "killed", "live", "live", "edit", "silence", "worker"])):
            case "round":
                cluster.round()
            case "killed":
                cluster.round(steps=data.draw(st.integers(0, 25)))
            case "live":
                cluster.live()
            case "silence":
                cluster.reachable = not cluster.reachable
            case "worker":
                name = data.draw(st.sampled_from(sorted(cluster.weights)))
                if cluster.spares(name):
                    cluster.kill(name)
            case _:
                model = data.draw(st.sampled_from("abc"))
                edited = spec(model, data.draw(strategies), data.draw(counts), data.draw(counts))
                cluster.edit(edited.replace("replicas:", data.draw(flags) + "replicas:"))
        assert cluster.serving(), cluster.rollout
    cluster.reachable = True
    for _ in range(250):
        cluster.round()
        cluster.live()
        assert cluster.serving(), cluster.rollout
        if is_as_the_manifest_says(cluster):
            break
    settle(cluster)
    assert is_as_the_manifest_says(cluster), (cluster.rollout, cluster.weights)


def is_as_the_manifest_says(cluster: RollingCluster) -> bool:
    wanted = cluster.service["spec"]
    flag = FLAG in wanted["decode"].get("extraArgs", [])
    if any((FLAG in pod["spec"]["containers"][0]["args"]) is not flag for pod in cluster.pods):
        return False
    model = str(wanted["model"]["uri"]).removeprefix("pvc://models/")
    count = wanted["prefill"]["replicas"] + wanted["decode"]["replicas"]
    served = list(cluster.weights.values()) == [digest_of(path(model))] * count
    return served and len(cluster.pods) == count and cluster.rollout["phase"] == "Done"
