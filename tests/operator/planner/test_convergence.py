"""Whatever happens in whatever order, the cluster ends as the manifest says, and some version always serves."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_cluster import FakeCluster

from baton_operator.planner import Observed, Service
from baton_operator.planner.observed import ready_pairs

ROLES = st.builds(
    lambda replicas, tensor, memory, args: (
        f"{{replicas: {replicas}, parallelism: {{tensor: {tensor}}}, "
        f"resources: {{limits: {{memory: {memory}Gi}}}}, extraArgs: [{args}]}}"
    ),
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.integers(1, 2),
    st.sampled_from(["", "--disable-radix-cache"]),
)
SPECS = st.builds(
    lambda model, prefill, decode, bootstraps, gateways, policies, divided: (
        f"{{model: {{uri: 'hf://a/{model}'}}, prefill: {prefill if divided else '{replicas: 0}'}, decode: {decode}, "
        f"bootstrap: {{replicas: {bootstraps}}}, gateway: {{replicas: {gateways}}}, "
        f"security: {{networkPolicies: {str(policies).lower()}}}}}"
    ),
    st.sampled_from("mn"),
    ROLES,
    ROLES,
    st.integers(1, 2),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
)


def serving(cluster: FakeCluster) -> set[str]:
    service = Service.from_object(cluster.service)
    pairs = ready_pairs(Observed.of(service, list(cluster.objects.values())).groups())
    return {version for version, count in pairs.items() if count}


def picture(cluster: FakeCluster) -> Any:
    """The state without what only tells how it came about."""
    objects = copy.deepcopy(cluster.objects)
    for item in objects.values():
        item.pop("revision", None)
        item["metadata"].pop("generation")
        item.get("status", {}).pop("observedGeneration", None)
    status = copy.deepcopy(cluster.service["status"])
    for condition in (status, *status["conditions"]):
        condition.pop("observedGeneration")
    return objects, status, cluster.service["metadata"]["finalizers"]


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_random_orders_and_kills_end_in_the_same_state_and_keep_serving(data: st.DataObject) -> None:
    cluster = FakeCluster(data.draw(SPECS))
    cluster.settle()
    for _ in range(data.draw(st.integers(1, 16))):
        match data.draw(st.sampled_from(["round", "killed", "advance", "all advance", "edit"])):
            case "round":
                cluster.round()
            case "killed":
                cluster.round(steps=data.draw(st.integers(0, 25)))
            case "edit":
                cluster.edit(data.draw(SPECS))
            case "advance":
                cluster.advance(data.draw(st.sampled_from(cluster.workloads())))
            case _:
                for ref in cluster.workloads():
                    cluster.advance(ref)
        assert serving(cluster)
    cluster.settle()
    fresh = FakeCluster("{model: {uri: 'hf://a/m'}}")
    fresh.service["spec"] = cluster.service["spec"]
    fresh.settle()
    assert picture(cluster) == picture(fresh)


@settings(deadline=None, max_examples=8)
@given(SPECS)
def test_a_second_round_writes_nothing(spec: str) -> None:
    cluster = FakeCluster(spec)
    cluster.settle()
    writes, before = cluster.writes, copy.deepcopy((cluster.objects, cluster.service))
    made = cluster.round()
    assert cluster.writes == writes
    assert (cluster.objects, cluster.service) == before
    assert (made.delete, made.create, made.status, made.finalizers, made.events) == ((), (), None, None, ())
    assert cluster.condition("Ready")["status"] == "True"
