"""Command lines generated from trees of options, `baton serve`'s above all."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from baton_serving.config.check import check_value
from baton_serving.config.flags import Setting, group_titles, settings
from baton_serving.config.options import ServerConfig
from baton_serving.config.unsupported import NOT_YET, NotYet
from baton_serving.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Tree = TypeVar("Tree", bound="DataclassInstance")


class _Refuse(argparse.Action):
    """A flag that is recognised and refused, unless its value asks for nothing."""

    def __init__(self, option_strings: Sequence[str], dest: str, not_yet: NotYet) -> None:
        self.not_yet = not_yet
        nargs = "*" if not_yet.takes_value else 0
        super().__init__(option_strings, dest, nargs=nargs, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        if self.not_yet.harmless is None or values != [self.not_yet.harmless]:
            raise ConfigError(f"{option} is not supported yet: {self.not_yet.instead}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` every flag of `baton serve`, by group, and the recognised ones that are refused."""
    add_tree_arguments(parser, ServerConfig)
    for not_yet in NOT_YET:
        parser.add_argument(*not_yet.names, action=_Refuse, dest=argparse.SUPPRESS, not_yet=not_yet)


def config_from_args(args: argparse.Namespace) -> ServerConfig:
    """The options of a worker that parsed arguments ask for (ConfigError on a value outside the choices)."""
    return tree_from_args(ServerConfig, args)


def config_from_values(values: Mapping[str, object]) -> ServerConfig:
    """The options of a worker from field names and values, as in `Engine(model_path=..., tp_size=2)`.

    Raises ConfigError for a name that is no field, a value of another type, or one outside the choices.
    """
    return tree_from_values(ServerConfig, values)


def add_tree_arguments(parser: argparse.ArgumentParser, tree: type) -> None:
    """Give `parser` every flag of `tree`, a dataclass of options groups. A flag not typed leaves no trace."""
    groups = {name: parser.add_argument_group(title) for name, title in group_titles(tree).items()}
    for setting in settings(tree):
        _add(groups[setting.group], setting)


def tree_from_args(tree: type[Tree], args: argparse.Namespace) -> Tree:
    """The options that parsed arguments ask for; names in `args` that are no fields are other people's."""
    names = {setting.field for setting in settings(tree)}
    return tree_from_values(tree, {name: value for name, value in vars(args).items() if name in names})


def tree_from_values(tree: type[Tree], values: Mapping[str, object]) -> Tree:
    """The options from field names and values; ConfigError as in `config_from_values`."""
    known = {setting.field: setting for setting in settings(tree)}
    grouped: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else ""))
        grouped.setdefault(known[name].group, {})[name] = check_value(known[name], value)
    config = tree()
    for group, chosen in grouped.items():
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **chosen)})
    return config


def _add(group: argparse._ArgumentGroup, setting: Setting) -> None:
    flag = setting.flag
    help_text = describe(setting).replace("%", "%%")
    if setting.kind is bool:
        group.add_argument(
            *flag.names, dest=setting.field, action="store_true", default=argparse.SUPPRESS, help=help_text
        )
        return
    metavar = "{" + ",".join(map(str, flag.supported)) + "}" if flag.choices else setting.kind.__name__.upper()
    group.add_argument(
        *flag.names,
        dest=setting.field,
        type=setting.kind,
        nargs="+" if setting.many else None,
        default=argparse.SUPPRESS,
        metavar=metavar,
        help=help_text,
    )


def describe(setting: Setting) -> str:
    """The sentence of help with unit and default."""
    notes = [setting.flag.unit] if setting.flag.unit else []
    if setting.flag.auto:
        notes.append(f"default: {setting.flag.auto}")
    elif setting.default not in (None, False, ""):
        notes.append("default: no limit" if setting.default == sys.maxsize else f"default: {setting.default}")
    return setting.flag.help + (f" ({'; '.join(notes)})" if notes else "")
