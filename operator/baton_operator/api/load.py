"""Reads manifests; says what is wrong with one by path and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from baton_operator.api.v1alpha1 import KIND, InferenceService
from baton_operator.errors import ManifestError

MAX_BYTES = 1 << 20


def load_manifest(path: Path) -> InferenceService:
    """The InferenceService in a YAML file. Raises `ManifestError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(str(path), [f"cannot be read: {error.strerror}"]) from error
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, source: str = "manifest") -> InferenceService:
    """The one InferenceService in YAML text; documents of other kinds are passed over. Raises `ManifestError`."""
    if len(data) > MAX_BYTES:
        raise ManifestError(source, [f"has {len(data)} bytes; at most {MAX_BYTES} are read"])
    try:
        documents = [document for document in yaml.load_all(data, _UniqueKeyLoader) if document is not None]
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(source, [f"is not valid YAML: {' '.join(str(error).split())}"]) from error
    if len(documents) != 1:
        documents = [item for item in documents if isinstance(item, dict) and item.get("kind") == KIND]
    if len(documents) != 1:
        raise ManifestError(source, [f"holds {len(documents)} {KIND} objects; write exactly one"])
    if not isinstance(documents[0], dict):
        raise ManifestError(source, [f"is not a mapping; begin with apiVersion, kind: {KIND}, metadata and spec"])
    try:
        return InferenceService.model_validate(documents[0], by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(source, [_problem(item) for item in error.errors()]) from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """A key written twice is an error, not a silent choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is written twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _problem(error: ErrorDetails) -> str:
    path = _path(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{path}: unknown field{_nearest(error['loc'])}"
    if kind == "missing":
        return f"{path}: missing; it must be given"
    if kind == "value_error":
        return f"{path}: {context['error']}"
    if kind == "literal_error":
        return f"{path}: {error['input']!r} is not known; write one of {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"{path}: {error['input']!r} does not have the form {context['pattern']}"
    return f"{path}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _path(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text or "manifest"


def _nearest(location: Sequence[int | str]) -> str:
    """Asks the model at the parent of `location` which of its fields the last part may mean."""
    model: type[BaseModel] | None = InferenceService
    for part in location[:-1]:
        if isinstance(part, str) and model is not None:
            model = next((model_of for name, model_of in _children(model) if name == part), None)
    if model is None:
        return ""
    names = [field.alias or name for name, field in model.model_fields.items()]
    near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(names)}"


def _children(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield field.alias or name, kind
