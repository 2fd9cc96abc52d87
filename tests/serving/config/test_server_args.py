"""The command line against the list of flags that SGLang users know: names, types, defaults and choices."""

from __future__ import annotations

import ast
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from baton_serving.config import ServerConfig, add_arguments, config_from_args
from baton_serving.config.flags import Setting, settings
from baton_serving.config.parser import OneLineParser
from baton_serving.config.unsupported import NOT_YET, NotYet
from baton_serving.errors import ConfigError

LIST = Path(__file__).parents[2] / "data" / "server_args.csv"
KINDS = {"str": str, "int": int, "float": float, "flag": bool, "nullable_str": str}
ADDED_BY_BATON = {
    "--announce-file",
    "--custom-logit-processors",
    "--disaggregation-bootstrap-addr",
    "--disaggregation-curve-key-file",
    "--disaggregation-transfer-protocol",
    "--disaggregation-verify",
    "--enable-deterministic-inference",
    "--enable-trace",
    "--grpc-port",
    "--otlp-traces-endpoint",
    "--probe-port",
    "--ssl-ca-certs",
    "--ssl-certfile",
    "--ssl-keyfile",
}


@dataclass(frozen=True)
class Row:
    names: tuple[str, ...]
    kind: type
    many: bool
    default: object
    choices: tuple[object, ...]


def rows() -> list[Row]:
    with LIST.open(newline="") as lines:
        return [
            Row(
                names=tuple(row["flags"].split()),
                kind=KINDS[row["type"]],
                many=row["nargs"] in ("+", "*"),
                default=sys.maxsize if row["default"] == "sys.maxsize" else ast.literal_eval(row["default"] or "''"),
                choices=tuple(ast.literal_eval(row["choices"])) if row["choices"].startswith("[") else (),
            )
            for row in csv.DictReader(lines)
        ]


SETTINGS: dict[tuple[str, ...], Setting] = {setting.flag.names: setting for setting in settings(ServerConfig)}
REFUSED: dict[tuple[str, ...], NotYet] = {not_yet.names: not_yet for not_yet in NOT_YET}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.names[0])
def test_every_listed_flag_is_an_option_with_the_same_facts_or_is_refused(row: Row) -> None:
    if row.names in REFUSED:
        assert row.names not in SETTINGS
        assert REFUSED[row.names].takes_value == (row.kind is not bool)
        return
    setting = SETTINGS[row.names]
    assert setting.kind is row.kind
    assert setting.many == row.many
    assert setting.default == row.default
    if row.choices:
        assert setting.flag.choices == row.choices


def test_beyond_the_list_there_are_only_flags_baton_added() -> None:
    listed = {name for row in rows() for name in row.names}
    ours = {name for names in (*SETTINGS, *REFUSED) for name in names}
    assert ours - listed == ADDED_BY_BATON


def test_no_name_means_two_things() -> None:
    names = [name for group in (*SETTINGS, *REFUSED) for name in group]
    assert len(names) == len(set(names))
    fields = [setting.field for setting in SETTINGS.values()]
    assert len(fields) == len(set(fields))


def parse(*argv: str) -> ServerConfig:
    parser = OneLineParser("baton serve", "")
    add_arguments(parser)
    return config_from_args(parser.parse(argv))


@pytest.mark.parametrize("name", [name for not_yet in NOT_YET for name in not_yet.names])
def test_a_flag_that_does_not_work_yet_says_so(name: str) -> None:
    not_yet = next(entry for entry in NOT_YET if name in entry.names)
    with pytest.raises(ConfigError) as caught:
        parse("--model", "m", name, *(["7"] if not_yet.takes_value else []))
    assert caught.value.message == f"{name} is not supported yet: {not_yet.instead}"


def test_a_value_that_asks_for_nothing_is_let_through() -> None:
    for not_yet in NOT_YET:
        if not_yet.harmless is not None:
            assert parse("--model", "m", not_yet.names[0], not_yet.harmless) == parse("--model", "m")
            assert parse(f"{not_yet.names[0]}={not_yet.harmless}") == parse()


def test_values_of_the_list_that_do_not_work_yet_say_so() -> None:
    for setting in SETTINGS.values():
        for choice in setting.flag.not_yet:
            with pytest.raises(ConfigError, match=f"{setting.flag.name} {choice} is not supported yet: "):
                parse(setting.flag.name, choice)
