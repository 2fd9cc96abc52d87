"""The control socket of `baton up`: one JSON line asks, one answers. Only its owner may open it."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from baton_serving.errors import BatonError, ConfigError, NotFound
from baton_serving.local.rollout import LocalRollout, RolloutStatus

_LIMIT = 1 << 20
_SECONDS = 10.0


class Ask(msgspec.Struct):
    command: str


class Answer(msgspec.Struct, omit_defaults=True):
    status: RolloutStatus | None = None
    error: str = ""


def socket_path(name: str) -> Path:
    """Where the service called `name` is steered: in a folder that only this user can enter."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"{tempfile.gettempdir()}/baton-{os.getuid()}"
    return Path(base) / "baton" / f"{name}.sock"


class Control:
    """Serves the socket of one service."""

    def __init__(self, name: str, rollout: LocalRollout) -> None:
        self._path = socket_path(name)
        self._rollout = rollout
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises ConfigError when the folder is not this user's alone, or another service of that name runs."""
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ConfigError(f"{folder} must belong to you alone: chmod 700 it, or set XDG_RUNTIME_DIR")
        if self._path.exists() and _answers(self._path):
            raise ConfigError(f"a service called {self._path.stem} is running already")
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_LIMIT)
        self._path.chmod(0o600)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _SECONDS)
            writer.write(msgspec.json.encode(self._answer(line)) + b"\n")
            await writer.drain()
        except (TimeoutError, ValueError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, line: bytes) -> Answer:
        rollout = self._rollout
        commands: dict[str, Callable[[], object]] = {
            "status": rollout.status,
            "pause": rollout.pause,
            "resume": rollout.resume,
            "undo": rollout.undo,
        }
        try:
            command = commands.get(msgspec.json.decode(line, type=Ask).command)
            if command is None:
                raise NotFound(f"the commands are {', '.join(commands)}")
            command()
        except BatonError as error:
            return Answer(error=error.message)
        except msgspec.MsgspecError as error:
            return Answer(error=str(error))
        return Answer(status=rollout.status())


def ask(name: str, command: str) -> RolloutStatus:
    """Ask the running service `name` (ConfigError when there is none, or it refuses)."""
    path = socket_path(name)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_SECONDS)
            client.connect(str(path))
            client.sendall(msgspec.json.encode(Ask(command)) + b"\n")
            with client.makefile("rb") as reader:
                answer = msgspec.json.decode(reader.readline(_LIMIT), type=Answer)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"no service called {name} is running here ({error}); start it with baton up") from error
    if answer.status is None:
        raise ConfigError(answer.error)
    return answer.status


def running_services() -> list[str]:
    """Names of the services that can be asked."""
    return sorted(path.stem for path in socket_path("any").parent.glob("*.sock") if _answers(path))


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def plain(status: RolloutStatus) -> Mapping[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(status)
    return found
