"""The CustomResourceDefinitions: structural, bounded, small; their CEL rules agree with the Python ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import celpy
import pytest
from celpy.adapter import json_to_cel
from celpy.celtypes import BoolType
from pydantic import ValidationError

from baton_operator.api import InferenceService
from baton_operator.api.fields import Part, cluster_problems
from baton_operator.crd import KINDS, definition, structural_schema

FORBIDDEN = {"$ref", "$defs", "title", "const", "propertyNames", "oneOf", "allOf", "not"}
ALLOWED_ALTERNATIVES = [{"type": "integer"}, {"type": "string"}]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_schema_is_structural_described_and_bounded(kind: Any) -> None:
    for path, node in nodes(structural_schema(kind.part)):
        assert not FORBIDDEN & set(node), path
        assert node.get("anyOf", ALLOWED_ALTERNATIVES) == ALLOWED_ALTERNATIVES, path
        assert ("type" in node) != ("x-kubernetes-int-or-string" in node), path
        if not path.endswith("[]") and "metadata" not in path:
            assert node["description"].endswith("."), path
        if "x-kubernetes-preserve-unknown-fields" in node or path in ("", ".apiVersion", ".kind"):
            continue
        if node.get("type") == "string" and "enum" not in node:
            assert "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_definition_fits_into_etcd_and_a_kubectl_annotation(kind: Any) -> None:
    assert len(json.dumps(definition(kind))) < 256 * 1024


def test_names_do_not_collide_with_those_of_kserve() -> None:
    for kind in KINDS:
        assert "isvc" not in kind.short_names


def test_fields_of_rules_exist() -> None:
    for path, node in nodes(structural_schema(InferenceService)):
        for rule in node.get("x-kubernetes-validations", []):
            place = node
            for name in rule.get("fieldPath", "").split(".")[1:]:
                place = place["properties"][name]
            assert len(rule["message"]) < 1024, path


def defaulted(value: Any, schema: dict[str, Any]) -> Any:
    """What the API server makes of `value` before it looks at the rules."""
    if isinstance(value, dict) and "properties" in schema:
        filled = dict(value)
        for name, child in schema["properties"].items():
            if name not in filled and "default" in child:
                filled[name] = json.loads(json.dumps(child["default"]))
            if name in filled:
                filled[name] = defaulted(filled[name], child)
        return filled
    if isinstance(value, list) and "items" in schema:
        return [defaulted(item, schema["items"]) for item in value]
    return value


def rules_of(schema: dict[str, Any]) -> list[dict[str, str]]:
    """All but those of what cannot be changed, which compare with the object of before."""
    return [rule for rule in schema.get("x-kubernetes-validations", []) if "oldSelf" not in rule["rule"]]


class Cel:
    """Evaluates every rule of the schema on a manifest."""

    def __init__(self) -> None:
        self.schema: dict[str, Any] = structural_schema(InferenceService)
        environment = celpy.Environment()
        rules = {rule["rule"] for _, node in nodes(self.schema) for rule in rules_of(node)}
        self.programs = {rule: environment.program(environment.compile(rule)) for rule in rules}

    def broken(self, value: Any, schema: dict[str, Any] | None = None) -> set[str]:
        """Messages of the rules that the defaulted `value` breaks."""
        schema = self.schema if schema is None else schema
        messages = set()
        for rule in rules_of(schema):
            result = self.programs[rule["rule"]].evaluate({"self": json_to_cel(value)})
            assert isinstance(result, (bool, BoolType)), rule
            if not result:
                messages.add(rule["message"])
        if isinstance(value, dict):
            for name, child in schema.get("properties", {}).items():
                if name in value:
                    messages |= self.broken(value[name], child)
        if isinstance(value, list):
            messages |= {message for item in value for message in self.broken(item, schema["items"])}
        return messages


@pytest.fixture(scope="module")
def cel() -> Cel:
    return Cel()


HF = {"uri": "hf://a/b"}
SPECS: list[dict[str, Any]] = [
    {"model": HF},
    {"model": {"uri": "s3://b/m"}},
    {"model": {"uri": "s3://b/m", "s3": {"credentials": "c"}, "cache": {"claim": "c"}}},
    {"model": {"uri": "s3://b/m", "token": {"name": "a", "key": "b"}}},
    {"model": {**HF, "s3": {"endpoint": "http://minio:9000"}}},
    {"model": {"uri": "file://m"}},
    {"model": {"uri": "file:///m"}},
    {"model": {"uri": "pvc://c/p", "revision": "x"}},
    {"model": {"uri": "pvc://c/p", "token": {"name": "a", "key": "b"}}},
    {"model": {"uri": "oci://c", "cache": {"claim": "c"}}},
    {"model": {**HF, "cache": {}}},
    {"model": {**HF, "cache": {"claim": "c", "nodePath": "/p"}}},
    {"model": {**HF, "cache": {"claim": "c"}, "revision": "main"}},
    {"model": HF, "decode": {"replicas": 0}},
    {"model": HF, "decode": {"replicas": 0}, "prefill": {"replicas": 0}},
    {"model": HF, "prefill": {"parallelism": {"tensor": 4}}, "decode": {"parallelism": {"tensor": 6}}},
    {"model": HF, "prefill": {"parallelism": {"tensor": 4}, "replicas": 0}, "decode": {"parallelism": {"tensor": 6}}},
    {"model": HF, "decode": {"parallelism": {"tensor": 4, "nodes": 3}}},
    *({"model": HF, "decode": {"parallelism": {kind: 2, "tensor": 2}}} for kind in ("pipeline", "data", "expert")),
    *(
        {"model": HF, role: {"parallelism": {"nodes": 2, "tensor": 2}}, "security": security}
        for role in ("prefill", "decode")
        for security in ({}, {"mutualTls": True}, {"token": {"name": "a", "key": "b"}})
    ),
    {"model": HF, "scaling": {"roleFlip": True}},
    {"model": HF, "scaling": {"roleFlip": True}, "prefill": {"parallelism": {"tensor": 2}}},
    {"model": HF, "scaling": {"roleFlip": True}, "decode": {"extraArgs": ["--page-size", "64"]}},
    {"model": HF, "scaling": {"roleFlip": True}, "rollout": {"strategy": "InPlace"}},
    {"model": HF, "decode": {"autoscaling": {"maxReplicas": 2, "minReplicas": 3}}},
    {"model": HF, "decode": {"autoscaling": {"maxReplicas": 2, "minReplicas": 0}}},
    {
        "model": HF,
        "prefill": {"autoscaling": {"maxReplicas": 1, "minReplicas": 0}},
        "decode": {"autoscaling": {"maxReplicas": 2, "minReplicas": 0}},
        "gateway": {"workerWaitSeconds": 60},
    },
    {
        "model": HF,
        "prefill": {"autoscaling": {"maxReplicas": 1, "minReplicas": 0}},
        "decode": {"autoscaling": {"maxReplicas": 2, "minReplicas": 0}},
    },
    {
        "model": HF,
        "security": {"mutualTls": True},
        "rollout": {"gates": {"probe": {"prompt": "p", "expect": "e"}}},
    },
    {"model": HF, "scaling": {"minPrefillPercent": 200, "maxPrefillPercent": 100}},
    {"model": HF, "decode": {"env": [{"name": "A"}]}},
    {"model": HF, "decode": {"env": [{"name": "A", "value": "x", "secret": {"name": "a", "key": "b"}}]}},
    {"model": HF, "decode": {"placement": {"tolerations": [{"operator": "Exists", "value": "v", "key": "k"}]}}},
    {"model": HF, "gateway": {"apiKeys": {"file": "keys"}}},
    {"model": HF, "gateway": {"apiKeys": {"file": "keys", "secret": "clients"}}},
    {"model": HF, "gateway": {"placement": {"tolerations": [{"value": "v"}]}}},
    {"model": HF, "transfer": {"devices": ["mlx5_0"]}},
    {"model": HF, "transfer": {"resource": "rdma/hca"}},
    {"model": HF, "transfer": {"protocol": "rdma"}},
    {"model": HF, "transfer": {"protocol": "rdma", "resource": "rdma/hca", "devices": ["mlx5_0"]}},
    {
        "model": HF,
        "transfer": {"protocol": "rdma"},
        "prefill": {"placement": {"resourceClaims": [{"name": "n", "template": "t"}]}},
    },
    {"model": HF, "transfer": {"protocol": "nvlink"}},
    {"model": HF, "rollout": {"maxSurge": {"prefill": 0}}},
    {"model": HF, "rollout": {"maxSurge": {"decode": 0}, "maxUnavailable": {"decode": 1}}},
    *(
        {"model": HF, "decode": {"extraArgs": [word]}}
        for word in (
            "--tp",
            "--tp=2",
            "--tp-extra",
            "--host",
            "--port=1",
            "--model",
            "x--model",
            "--nnodes",
            "--page-size",
        )
    ),
]


def in_python(spec: dict[str, Any]) -> bool:
    """Whether the Python rules accept it, those for clusters included."""
    document = {"apiVersion": "baton.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": "a"}, "spec": spec}
    try:
        service = InferenceService.model_validate(document, by_alias=True, by_name=False)
    except ValidationError:
        return False
    return not list(cluster_problems(service.spec, admission=True))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_cel_and_python_agree(cel: Cel, spec: dict[str, Any]) -> None:
    document = defaulted({"spec": spec}, cel.schema)
    assert (not cel.broken(document)) == in_python(spec)


def test_every_rule_is_broken_by_some_example(cel: Cel) -> None:
    """Flags have one rule per place, of one form; of those some stand for all."""
    broken = {message for spec in SPECS for message in cel.broken(defaulted({"spec": spec}, cel.schema))}
    rules = {rule["message"] for _, node in nodes(cel.schema) for rule in rules_of(node)}
    assert {message for message in rules - broken if "extraArgs" not in message} == set()
    assert sum("extraArgs" in message for message in broken) >= 4


def test_every_part_that_has_rules_is_in_the_schema(cel: Cel) -> None:
    written = {rule["rule"] for _, node in nodes(cel.schema) for rule in node.get("x-kubernetes-validations", [])}
    parts: list[type[Part]] = list(Part.__subclasses__())
    while parts:
        part = parts.pop()
        parts += part.__subclasses__()
        assert {rule.cel for rule in part.rules} <= written, part
