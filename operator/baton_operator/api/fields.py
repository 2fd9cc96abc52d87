"""What the manifest types are made of: bounded field types, and rules that hold between fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic.alias_generators import to_camel

GROUP = "baton.dev"
API_VERSION = f"{GROUP}/v1alpha1"

Text = Annotated[str, Field(min_length=1, max_length=512)]
Label = Annotated[str, Field(max_length=253)]
Name = Annotated[str, Field(max_length=50, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
Namespace = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")]
AbsolutePath = Annotated[str, Field(max_length=1024, pattern=r"^/[^\s]*$")]
Port = Annotated[int, Field(ge=1, le=65535)]


def _quantity_text(value: object) -> object:
    return str(value) if type(value) is int else value


_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"
Quantity = Annotated[
    str,
    BeforeValidator(_quantity_text),
    Field(
        max_length=32, pattern=_QUANTITY, json_schema_extra={"pattern": _QUANTITY, "x-kubernetes-int-or-string": True}
    ),
]
Quantities = Annotated[dict[Label, Quantity], Field(max_length=16)]
Labels = Annotated[dict[Label, Label], Field(max_length=64)]
Annotations = Annotated[dict[Label, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
# Whatever Kubernetes takes at that place; the API server checks it when the pod is made.
Freeform = Annotated[
    dict[Label, JsonValue], Field(max_length=64, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
]


@dataclass(frozen=True)
class Rule:
    """One rule between the fields of a part, in CEL for the API server and in Python for everyone else.

    `cel` sees the part as `self`, `holds` gets the part itself. `field` is the JSON path of the culprit below the part.
    Rules with `cluster` are about pods: local runs do not have to keep them. Those with `admission` are about what
    workers of this release cannot do: no manifest gets in, but what definitions of another release let in is planned.
    """

    cel: str
    holds: Callable[[Any], bool]
    message: str
    field: str = ""
    cluster: bool = False
    admission: bool = False

    def to_schema(self) -> dict[str, str]:
        """The rule as an entry of `x-kubernetes-validations`."""
        schema = {"rule": self.cel, "message": self.message}
        return {**schema, "fieldPath": self.field} if self.field else schema


def _with_rules(schema: dict[str, Any], part: type[Part]) -> None:
    fixed = [
        {
            "rule": f"self.{name} == oldSelf.{name}",
            "message": f"{name} cannot be changed: {remedy}",
            "fieldPath": f".{name}",
        }
        for name, remedy in part.fixed.items()
    ]
    if part.rules or fixed:
        schema["x-kubernetes-validations"] = [*(rule.to_schema() for rule in part.rules), *fixed]


class Part(BaseModel):
    """A mapping of the manifest. Subclasses state in `rules` what must hold between their fields.

    `fixed` are fields, each with a default, that cannot be changed later, and what to do instead.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
        json_schema_extra=_with_rules,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()
    fixed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if not (rule.cluster or rule.admission or rule.holds(self))]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    def to_object(self) -> dict[str, JsonValue]:
        """The part as Kubernetes writes it: camelCase, without what is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Metadata(Part):
    """The part of the object metadata that a manifest may set."""

    name: Name
    """Name of the service, unique in its namespace; the names of all its parts begin with it."""
    namespace: Namespace = "default"
    """Namespace that the service and its pods live in. Local runs ignore it."""
    labels: Labels = {}
    """Labels for your own use."""
    annotations: Annotations = {}
    """Annotations for your own use."""


def cluster_problems(part: Part, path: str = "", *, admission: bool = False) -> Iterator[str]:
    """A sentence for each rule about pods that `part`, or a part below it, breaks; each begins with its path.

    With `admission` also for those that only keep manifests out.
    """
    for rule in part.rules:
        if (rule.cluster or (admission and rule.admission)) and not rule.holds(part):
            yield f"{path}{rule.field}: {rule.message}".lstrip(".")
    for name, info in type(part).model_fields.items():
        value = getattr(part, name)
        below = f"{path}.{info.alias or name}"
        if isinstance(value, Part):
            yield from cluster_problems(value, below, admission=admission)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Part):
                    yield from cluster_problems(item, f"{below}[{index}]", admission=admission)
