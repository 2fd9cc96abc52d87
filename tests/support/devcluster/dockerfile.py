"""Reads the part of Dockerfile syntax that this project's Dockerfile uses; anything else is an error."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Words = list[str]


@dataclass(frozen=True)
class Mount:
    """Of a RUN: a folder of another stage, or one that outlives the build when there is none."""

    target: str
    stage: str | None = None
    source: str = "/"


@dataclass(frozen=True)
class Run:
    script: str
    environment: Mapping[str, str]
    folder: str
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True)
class Copy:
    """`sources` are of the stage, or of the build context when there is none; `target` is absolute."""

    sources: tuple[str, ...]
    target: str
    stage: str | None = None


@dataclass
class Config:
    """What an image says of the processes in it."""

    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = ""
    entrypoint: Words = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Config:
        return Config(dict(self.environment), self.folder, self.user, list(self.entrypoint), dict(self.labels))


@dataclass
class Stage:
    """`base` is the name of an earlier stage or of an image."""

    name: str
    base: str
    steps: list[Run | Copy] = field(default_factory=list)
    config: Config = field(default_factory=Config)
    arguments: dict[str, str] = field(default_factory=dict)


def read(text: str, arguments: Mapping[str, str]) -> dict[str, Stage]:
    """The stages by name; `arguments` replace the defaults of ARG. Raises `ValueError` for what is not known here."""
    stages: dict[str, Stage] = {}
    outer: dict[str, str] = {}
    stage: Stage | None = None
    for word, rest in _instructions(text):
        if word == "ARG":
            name, _, default = rest.partition("=")
            (outer if stage is None else stage.arguments)[name] = arguments.get(name, default)
        elif word == "FROM":
            base, _, name = expand(rest, outer).partition(" AS ")
            stage = Stage(name, base)
            if base in stages:
                stage.config = stages[base].config.copy()
            stages[name] = stage
        elif stage is None:
            raise ValueError(f"{word} before the first FROM")
        else:
            _READERS[word](stage, rest) if word in _READERS else _unknown(word)
    return stages


def expand(text: str, values: Mapping[str, str]) -> str:
    """Fills in $NAME and ${NAME}."""
    return re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda found: values.get(found[1] or found[2], ""), text)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def _values(stage: Stage) -> dict[str, str]:
    return {"PATH": PATH, **stage.arguments, **stage.config.environment}


PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _run(stage: Stage, rest: str) -> None:
    mounts: list[Mount] = []
    while rest.startswith("--mount="):
        option, _, rest = rest.partition(" ")
        settings = dict(part.split("=", 1) for part in option.removeprefix("--mount=").split(","))
        kind = settings.pop("type")
        if kind not in ("bind", "cache") or (kind == "bind") != ("from" in settings):
            raise ValueError(f"RUN --mount=type={kind} is not known here")
        mounts.append(Mount(settings["target"], settings.get("from"), settings.get("source", "/")))
    stage.steps.append(Run(rest.strip(), _values(stage), stage.config.folder, tuple(mounts)))


def _copy(stage: Stage, rest: str) -> None:
    words = expand(rest, _values(stage)).split()
    origin = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
    if words[0].startswith("--"):
        raise ValueError(f"COPY {words[0]} is not known here")
    *sources, target = words
    absolute = target if target.startswith("/") else f"{stage.config.folder.rstrip('/')}/{target.removeprefix('./')}"
    stage.steps.append(Copy(tuple(sources), absolute, origin))


def _pairs(stage: Stage, rest: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(expand(rest, _values(stage))))


def _env(stage: Stage, rest: str) -> None:
    stage.config.environment.update(_pairs(stage, rest))


def _label(stage: Stage, rest: str) -> None:
    stage.config.labels.update(_pairs(stage, rest))


def _user(stage: Stage, rest: str) -> None:
    stage.config.user = rest


def _workdir(stage: Stage, rest: str) -> None:
    stage.config.folder = rest


def _entrypoint(stage: Stage, rest: str) -> None:
    stage.config.entrypoint = [word.strip('"') for word in rest.strip("[]").split(", ")]


def _unknown(word: str) -> None:
    raise ValueError(f"{word} is not known here")


_READERS = {
    "RUN": _run,
    "COPY": _copy,
    "ENV": _env,
    "LABEL": _label,
    "USER": _user,
    "WORKDIR": _workdir,
    "ENTRYPOINT": _entrypoint,
}
