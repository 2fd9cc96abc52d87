"""Every field of the manifest is described and bounded; what cannot work is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from baton_operator.api import InferenceService, parse_manifest
from baton_operator.errors import ManifestError

HEAD = "apiVersion: baton.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: demo}\n"


def manifest(spec: str) -> bytes:
    return f"{HEAD}spec: {{model: {{uri: 'hf://a/b'}}, {spec}}}\n".encode()


def schema_nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "type" in node:
            yield path, node
        for key, child in node.items():
            yield from schema_nodes(child, f"{path}.{key}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from schema_nodes(child, f"{path}[{index}]")


def test_every_field_is_described() -> None:
    schema = InferenceService.model_json_schema(by_alias=True)
    models = {"InferenceService": schema, **schema["$defs"]}
    for model, body in models.items():
        for name, field in body.get("properties", {}).items():
            assert field.get("description", "").endswith("."), f"{model}.{name}"


def test_everything_is_bounded() -> None:
    for path, node in schema_nodes(InferenceService.model_json_schema(by_alias=True)):
        if node.get("x-kubernetes-preserve-unknown-fields"):
            continue
        if node["type"] == "string" and "const" not in node and "enum" not in node:
            assert "maxLength" in node, path
        if node["type"] == "array":
            assert "maxItems" in node, path
        if node["type"] == "object" and "properties" not in node:
            assert "maxProperties" in node, path
        if node["type"] == "object" and "properties" in node:
            assert node["additionalProperties"] is False, path


def test_what_is_left_out_has_a_default() -> None:
    service = parse_manifest(manifest("gateway: {port: 80}"))
    assert service.served_name == "demo"
    assert (service.spec.prefill.replicas, service.spec.decode.replicas) == (1, 1)
    assert service.spec.transfer.backend == "mooncake"
    assert service.spec.gateway.port == 80


def test_quantities_are_written_as_kubernetes_writes_them() -> None:
    limits = "limits: {nvidia.com/gpu: 8, cpu: 500m, memory: 1.5Gi}"
    service = parse_manifest(manifest(f"decode: {{resources: {{{limits}}}}}"))
    assert service.spec.decode.resources.limits == {"nvidia.com/gpu": "8", "cpu": "500m", "memory": "1.5Gi"}


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("prefill: {replicas: 1}, decode: {replicas: 0}", "decode.replicas is 0 while prefill.replicas is not"),
        ("prefill: {parallelism: {tensor: 4}}, decode: {parallelism: {tensor: 6}}", "one divides the other"),
        ("transfer: {devices: [mlx5_0]}", "spec.transfer: devices are RDMA devices, but protocol is not rdma"),
        ("decode: {extraArgs: ['--tp-size=2']}", "--tp-size or --tensor-parallel-size; set parallelism.tensor instead"),
        ("decode: {extraArgs: ['--port', '1']}", "Baton wires the ports"),
        ("gateway: {policy: fastest}", "spec.gateway.policy: 'fastest' is not known; write one of 'round_robin'"),
        ("gateway: {port: 0}", "spec.gateway.port: input should be greater than or equal to 1"),
        ("prefill: {replicas: '2'}", "spec.prefill.replicas: input should be a valid integer"),
        ("prefill: {replicas: true}", "spec.prefill.replicas: input should be a valid integer"),
        (
            "decode: {resources: {limits: {cpu: lots}}}",
            "spec.decode.resources.limits.cpu: 'lots' does not have the form",
        ),
        ("decode: {env: [{name: 1x, value: a}]}", "spec.decode.env[0].name: '1x' does not have the form"),
        (
            "decode: {resources: {limits: {cpu: true}}}",
            "spec.decode.resources.limits.cpu: input should be a valid string",
        ),
        ("model: {uri: 'http://a/b'}", "written twice"),
    ],
)
def test_what_cannot_work_is_refused_with_path_and_remedy(spec: str, problem: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(manifest(spec))
    assert problem in str(caught.value)


def test_a_tensor_mismatch_does_not_matter_without_prefill() -> None:
    parse_manifest(manifest("prefill: {replicas: 0, parallelism: {tensor: 4}}, decode: {parallelism: {tensor: 6}}"))
