"""Kubernetes objects as plain mappings: how to name them, read them and lay one over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Object = Mapping[str, object]

# Lists whose items are told apart by a key, and merged item by item.
_LIST_KEYS = ("name", "mountPath")


@dataclass(frozen=True, order=True)
class Ref:
    """What tells an object from all others in one namespace."""

    api_version: str
    kind: str
    name: str


def ref_of(item: Object) -> Ref:
    return Ref(text_at(item, "apiVersion"), text_at(item, "kind"), text_at(item, "metadata", "name"))


def value_at(item: object, *path: str) -> object:
    """What lies at `path`, or None when any part of it is absent."""
    for key in path:
        item = item.get(key) if isinstance(item, Mapping) else None
    return item


def text_at(item: object, *path: str) -> str:
    value = value_at(item, *path)
    return value if isinstance(value, str) else ""


def int_at(item: object, *path: str) -> int:
    value = value_at(item, *path)
    return value if isinstance(value, int) else 0


def map_at(item: object, *path: str) -> Object:
    value = value_at(item, *path)
    return value if isinstance(value, Mapping) else {}


def list_at(item: object, *path: str) -> Sequence[object]:
    value = value_at(item, *path)
    return value if isinstance(value, list) else []


def label(item: Object, name: str) -> str:
    return text_at(map_at(item, "metadata", "labels"), name)


def without_empty(item: Object) -> dict[str, object]:
    """`item` without fields that say nothing: None, and empty strings, lists and mappings."""
    return {key: value for key, value in item.items() if value not in (None, "", [], {})}


def merged(base: object, overlay: object) -> object:
    """`overlay` laid over `base`: mappings by key, lists of named items by name; anything else is replaced."""
    if isinstance(base, Mapping) and isinstance(overlay, Mapping):
        both = {key: merged(base[key], overlay[key]) if key in base else overlay[key] for key in overlay}
        return {**base, **both}
    if isinstance(base, list) and isinstance(overlay, list):
        for key in _LIST_KEYS:
            if base and overlay and all(text_at(item, key) for item in (*base, *overlay)):
                return _merged_by(key, base, overlay)
    return overlay


def _merged_by(key: str, base: list[object], overlay: list[object]) -> list[object]:
    over = {text_at(item, key): item for item in overlay}
    result = [merged(item, over.pop(text_at(item, key), {})) for item in base]
    return [*result, *over.values()]
