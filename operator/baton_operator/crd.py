"""CustomResourceDefinitions, generated from the manifest types.

Kubernetes wants "structural" schemas: no references, no unions with null, `additionalProperties` only for maps. A part
that may be left out gets the default `{}`, and the API server fills in the defaults below it; a part with rules spells
its default out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from baton_operator.api.fields import GROUP, Part
from baton_operator.api.scaler import WorkerScaler
from baton_operator.api.v1alpha1 import InferenceService

VERSION: Final = "v1alpha1"
Schema = dict[str, JsonValue]

_KEPT = frozenset(
    {
        *("type", "description", "default", "enum", "pattern", "format", "minimum", "maximum", "required"),
        *("minLength", "maxLength", "minItems", "maxItems", "maxProperties"),
        *("x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
    }
)


@dataclass(frozen=True)
class Kind:
    """What a CustomResourceDefinition says besides the schema. Columns are (name, type, JSON path, priority)."""

    part: type[Part]
    plural: str
    short_names: tuple[str, ...]
    columns: tuple[tuple[str, str, str, int], ...]
    scalable: bool = False

    @property
    def kind(self) -> str:
        return self.part.__name__


# KServe's InferenceService goes by isvc; `bisvc` and the category leave that alone.
KINDS: Final = (
    Kind(
        InferenceService,
        "inferenceservices",
        ("bisvc",),
        (
            ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
            ("Pairs", "integer", ".status.readyPairs", 0),
            ("Version", "string", ".status.version", 0),
            ("URL", "string", ".status.url", 0),
            ("Weights", "string", ".status.weights[0].digest", 1),
            ("Reason", "string", '.status.conditions[?(@.type=="Ready")].message', 1),
            ("Age", "date", ".metadata.creationTimestamp", 0),
        ),
    ),
    Kind(
        WorkerScaler,
        "workerscalers",
        ("bws",),
        (
            ("Wanted", "integer", ".spec.replicas", 0),
            ("Workers", "integer", ".status.replicas", 0),
            ("Age", "date", ".metadata.creationTimestamp", 0),
        ),
        scalable=True,
    ),
)


def definition(kind: Kind) -> Schema:
    """The CustomResourceDefinition of a kind, as an object for the API server."""
    subresources: Schema = {"status": {}}
    if kind.scalable:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    columns: list[JsonValue] = [
        {"name": name, "type": type_, "jsonPath": path, **({"priority": priority} if priority else {})}
        for name, type_, path, priority in kind.columns
    ]
    names: Schema = {
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
        "plural": kind.plural,
        "singular": kind.kind.lower(),
        "shortNames": list(kind.short_names),
        "categories": ["baton"],
    }
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": structural_schema(kind.part)},
        "subresources": subresources,
        "additionalPrinterColumns": columns,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def structural_schema(part: type[Part]) -> Schema:
    """The structural OpenAPI v3 schema of a whole object."""
    document = part.model_json_schema(by_alias=True)
    schema = _structural(document, document.get("$defs", {}))
    properties = schema["properties"]
    assert isinstance(properties, dict)
    for name in ("apiVersion", "kind"):
        properties[name] = {"type": "string", "description": _mapping(properties[name])["description"]}
    name_schema = _mapping(_mapping(_mapping(properties["metadata"])["properties"])["name"])
    properties["metadata"] = {"type": "object", "properties": {"name": name_schema}}
    return schema


def _structural(node: Mapping[str, JsonValue], defs: Mapping[str, Schema]) -> Schema:
    node = _resolved(node, defs)
    if node.get("x-kubernetes-preserve-unknown-fields"):
        kept: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        return {**kept, "description": node["description"]}
    schema: Schema = {key: value for key, value in node.items() if key in _KEPT}
    if "const" in node:
        schema["enum"] = [node["const"]]
    if node.get("x-kubernetes-int-or-string"):
        del schema["type"]
        schema |= {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
    properties = node.get("properties")
    if isinstance(properties, dict):
        children = {name: _structural(_mapping(child), defs) for name, child in properties.items()}
        schema["properties"] = {**children}
        if schema.get("default"):
            schema["default"] = _default_of(schema, children)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            schema[key] = _structural(_mapping(node[key]), defs)
    if schema.get("default", "") is None:
        del schema["default"]
    return schema


def _default_of(schema: Schema, children: Mapping[str, Schema]) -> Schema:
    """A part's rules are checked against its default as it stands, before the defaults below it are filled in."""
    if "x-kubernetes-validations" not in schema:
        return {}
    return {name: _filled(child) for name, child in children.items() if "default" in child}


def _filled(schema: Schema) -> JsonValue:
    """The default of a property, and within it those of its own."""
    properties = schema.get("properties")
    if schema["default"] != {} or not isinstance(properties, dict):
        return schema["default"]
    return {name: _filled(_mapping(child)) for name, child in properties.items() if "default" in _mapping(child)}


def _resolved(node: Mapping[str, JsonValue], defs: Mapping[str, Schema]) -> Schema:
    """`node` with its reference, or its one alternative to null, in place; what stands beside them wins."""
    beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
    reference, alternatives = node.get("$ref"), node.get("anyOf")
    if isinstance(reference, str):
        return {**_resolved(defs[reference.rpartition("/")[2]], defs), **beside}
    if isinstance(alternatives, list):
        (only,) = [_mapping(item) for item in alternatives if _mapping(item).get("type") != "null"]
        return {**_resolved(only, defs), **beside}
    return beside


def _mapping(value: JsonValue) -> Schema:
    assert isinstance(value, dict)
    return value
