"""Who asks: API keys by name, so that limits, metrics and logs know the name and never the key."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from baton_bootstrap.files import Stamp, stamp
from baton_serving.errors import ConfigError, Unauthorized
from baton_serving.gateway.admission.ledger import Limits
from baton_serving.gateway.http.downstream import Incoming
from baton_serving.logs import fields

log = logging.getLogger(__name__)

_AUTHORIZATION = b"authorization"
_SETTINGS = ("requests", "tokens-per-minute")
_NUMBER = re.compile(r"[1-9][0-9]{0,11}")
_FORM = "KEY [requests=N] [tokens-per-minute=N]"


class Access(Protocol):
    def tenant(self, incoming: Incoming) -> str:
        """Whose request this is; "" when nobody has to say. Raises Unauthorized."""
        ...


class OpenAccess:
    """Everybody may ask."""

    def tenant(self, incoming: Incoming) -> str:
        return ""


class KeyFile:
    """Keys from a file with a line `NAME KEY` each, or from a folder with a file of lines `KEY` per name (a mounted
    Secret).

    Behind a key may stand the limits of its name, in the place of those of all: `requests=N`, `tokens-per-minute=N`.
    Keys are looked up by a hash under a secret of this process: how long that takes says nothing about any key. One
    name may have several lines, so that a key can be renewed without a gap.
    """

    def __init__(self, path: Path) -> None:
        """Raises `ConfigError` when the keys cannot be read."""
        self._path = path
        self._secret = secrets.token_bytes(32)
        self._stamp = self._look()
        self._names, self._limits = self._load()

    def limits(self, tenant: str) -> Limits | None:
        """What the file says of this name's; None when it says nothing."""
        return self._limits.get(tenant)

    def tenant(self, incoming: Incoming) -> str:
        """The header is taken off the request: workers never see it. Raises Unauthorized."""
        scheme, _, key = incoming.headers.pop(_AUTHORIZATION, b"").partition(b" ")
        name = self._names.get(self._hash(key.strip())) if scheme.lower() == b"bearer" else None
        if name is None:
            raise Unauthorized("an API key is needed: send the header Authorization: Bearer KEY")
        return name

    def refresh(self) -> bool:
        """Whether renewed keys were taken over; unreadable ones leave the old ones in force."""
        now = self._look()
        if now == self._stamp:
            return False
        try:
            self._names, self._limits = self._load()
        except ConfigError as error:
            log.warning("API keys not taken over", extra=fields(reason=error.message))
            return False
        self._stamp = now
        log.info("API keys taken over", extra=fields(keys=len(self._names)))
        return True

    def _look(self) -> Stamp:
        return stamp([self._path, *(self._files() if self._path.is_dir() else ())])

    def _files(self) -> list[Path]:
        return sorted(one for one in self._path.iterdir() if not one.name.startswith(".") and one.is_file())

    def _load(self) -> tuple[Mapping[bytes, str], Mapping[str, Limits]]:
        names: dict[bytes, str] = {}
        limits: dict[str, Limits] = {}
        try:
            for name, key, own in self._entries():
                if names.setdefault(self._hash(key), name) != name:
                    raise ConfigError(f"--api-keys {self._path}: {name} and another name have the same key")
                if limits.setdefault(name, own) != own:
                    raise ConfigError(f"--api-keys {self._path}: the lines of {name} have different limits")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-keys {self._path}: cannot be read ({error})") from error
        if not names:
            raise ConfigError(f"--api-keys {self._path}: it holds no key; write a line NAME KEY")
        return names, {name: own for name, own in limits.items() if own != Limits()}

    def _entries(self) -> Iterator[tuple[str, bytes, Limits]]:
        if self._path.is_dir():
            for file in self._files():
                lines = list(_lines(file))
                if not lines:
                    raise ConfigError(f"--api-keys {self._path}: the file {file.name} is empty")
                for number, words in lines:
                    complaint = f"line {number} of the file {file.name} is not {_FORM}"
                    yield file.name, words[0].encode(), self._own(words[1:], complaint)
            return
        for number, words in _lines(self._path):
            if len(words) < 2:
                raise ConfigError(f"--api-keys {self._path}: line {number} is not NAME {_FORM}")
            yield words[0], words[1].encode(), self._own(words[2:], f"line {number} is not NAME {_FORM}")

    def _own(self, words: list[str], complaint: str) -> Limits:
        """The limits that these words set; no word is shown, for it may be half a key."""
        found: dict[str, int] = {}
        for word in words:
            name, _, number = word.partition("=")
            if name not in _SETTINGS or name in found or not _NUMBER.fullmatch(number):
                raise ConfigError(f"--api-keys {self._path}: {complaint}")
            found[name] = int(number)
        return Limits(found.get("requests"), found.get("tokens-per-minute"))

    def _hash(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._secret, digest_size=32).digest()


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The words of each line that says something, with its number from 1."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield number, words
