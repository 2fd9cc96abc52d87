"""How one field of the configuration tree describes itself: its flags, choices, unit and sentence of help.

The command line, `docs/flags.md` and the checks are all generated from this metadata, so each fact stands once.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_KEY = "flag"


@dataclass(frozen=True)
class Flag:
    """What a field says of itself. `names[0]` is the name that messages use; the others are spellings of the same.

    `choices` are all values that mean something (empty: any); `not_yet` those of them that Baton refuses for now, and
    `instead` what to use then. `auto` says what the default becomes when it stands for "decide for me".
    """

    names: tuple[str, ...]
    help: str
    unit: str = ""
    choices: tuple[str | int, ...] = ()
    not_yet: tuple[str, ...] = ()
    instead: str = ""
    auto: str = ""

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def supported(self) -> tuple[str | int, ...]:
        return tuple(choice for choice in self.choices if choice not in self.not_yet)


@dataclass(frozen=True)
class Setting:
    """One field as the generators see it: `kind` is str, int, float or bool; `many` a tuple of them."""

    group: str
    field: str
    flag: Flag
    kind: type[str] | type[int] | type[float] | type[bool]
    many: bool
    default: object


def option(
    *names: str,
    default: T,
    help: str,  # noqa: A002 - the word argparse and its readers use
    unit: str = "",
    choices: tuple[str | int, ...] = (),
    not_yet: tuple[str, ...] = (),
    instead: str = "",
    auto: str = "",
) -> T:
    """Declare a field of an options group; see `Flag` for the arguments."""
    flag = Flag(names, help, unit, choices, not_yet, instead, auto)
    return dataclasses.field(default=default, metadata={_KEY: flag})


def settings(tree: type) -> Iterator[Setting]:
    """Every setting of a tree: a dataclass whose fields are options groups, in order of declaration."""
    for group, options in typing.get_type_hints(tree).items():
        hints = typing.get_type_hints(options)
        for field in dataclasses.fields(options):
            kind, many = _kind(hints[field.name])
            yield Setting(group, field.name, field.metadata[_KEY], kind, many, field.default)


def group_titles(tree: type) -> dict[str, str]:
    """Group name -> title, which is the first line of the group's docstring without its full stop."""
    return {
        group: (options.__doc__ or group).splitlines()[0].rstrip(".")
        for group, options in typing.get_type_hints(tree).items()
    }


def _kind(hint: object) -> tuple[type[str] | type[int] | type[float] | type[bool], bool]:
    """`int | None` -> (int, False); `tuple[int, ...]` -> (int, True)."""
    if isinstance(hint, types.UnionType):
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    if hint not in (str, int, float, bool):
        raise TypeError(f"an option cannot be of type {hint}")
    return typing.cast("type[str]", hint), False
