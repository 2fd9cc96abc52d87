from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from baton_serving.config import ServerConfig
from baton_serving.config.docs import command_section, flags_page
from baton_serving.config.flags import group_titles, option, settings


@dataclass(frozen=True)
class Group:
    """A group. With more to say."""

    sizes: tuple[int, ...] | None = option("--sizes", default=None, help="Sizes.")
    share: float = option("--share", default=0.5, help="Share.", unit="fraction")


@dataclass(frozen=True)
class Tree:
    group: Group = field(default_factory=Group)


def test_settings_carry_kind_and_default() -> None:
    sizes, share = settings(Tree)
    assert (sizes.kind, sizes.many, sizes.default, sizes.group) == (int, True, None, "group")
    assert (share.kind, share.many, share.default, share.flag.unit) == (float, False, 0.5, "fraction")


def test_an_option_of_a_type_no_flag_can_have_is_refused() -> None:
    @dataclass(frozen=True)
    class BadGroup:
        mapping: dict[str, int] | None = option("--mapping", default=None, help="A mapping.")

    with pytest.raises(TypeError, match="an option cannot be of type"):
        list(settings(type("BadTree", (), {"__annotations__": {"bad": BadGroup}})))


def test_titles_are_the_first_lines_of_the_groups() -> None:
    assert group_titles(Tree) == {"group": "A group. With more to say"}


def test_every_option_explains_itself() -> None:
    for setting in settings(ServerConfig):
        assert setting.flag.name.startswith("--")
        assert setting.flag.help.endswith("."), setting.flag.name
        assert setting.default is not None or setting.flag.auto or setting.kind is str, setting.flag.name
        assert setting.flag.instead or not setting.flag.not_yet, setting.flag.name


def test_the_page_of_flags_has_a_row_for_each() -> None:
    page = flags_page()
    for setting in settings(ServerConfig):
        assert f"| `{setting.flag.name}`" in page
    assert "| `--page-size` | int, tokens | 64 on cuda, 16 on cpu | Tokens of one KV page. |" in page


def test_a_parser_of_its_own_has_a_row_for_each_flag() -> None:
    parser = ArgumentParser()
    parser.add_argument("--port", type=int, default=80, help="port; 0: any")
    parser.add_argument("--file", "-f", type=Path, help="a file")
    parser.add_argument("--limit", type=int, help="most of it (default: any number)")
    parser.add_argument("--trace", action="store_true", help="say more")
    parser.add_argument("--kind", choices=["a", "b"], default="a", help="gRPC or not (default: --port)")
    assert command_section("baton x", "x.py", parser).partition("|---|---|---|---|\n")[2].splitlines() == [
        "| `--port` | int | `80` | Port; 0: any. |",
        "| `--file` `-f` | path | none | A file. |",
        "| `--limit` | int | any number | Most of it. |",
        "| `--trace` |  | off | Say more. |",
        "| `--kind` | `a`, `b` | `--port` | gRPC or not. |",
    ]
