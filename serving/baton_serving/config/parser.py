"""An argument parser that speaks in one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from baton_serving.errors import ConfigError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are `ConfigError`s of one line; an unknown flag suggests the nearest."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of `argv`; ConfigError on anything wrong."""
        args, unknown = self.parse_known_args(list(argv))
        if not unknown:
            return args
        name = unknown[0].partition("=")[0]
        if not name.startswith("-"):
            raise ConfigError(f"unexpected argument {name!r} (see {self.prog} --help)")
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        raise ConfigError(f"unknown flag {name}; {hint}")
