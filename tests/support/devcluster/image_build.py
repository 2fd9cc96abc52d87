"""Builds stages of the Dockerfile without a registry: every COPY and RUN is a folder of changes, kept by its inputs.

A RUN works in a chroot on overlayfs, in a mount namespace of its own. Needs root.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.baton_processes import bound_to_parent
from support.devcluster import debian
from support.devcluster.dockerfile import Config, Copy, Mount, Run, Stage, read
from support.kube import binaries

_KEPT_SECONDS = 2 * 86400
_PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")
_CERTIFICATES = "/etc/ssl/certs"


@dataclass(frozen=True)
class Built:
    """An image: the folders of its layers, lowest first, and its configuration."""

    layers: Sequence[Path]
    config: Config


class Builder:
    """`context` is the folder of the Dockerfile."""

    def __init__(self, context: Path, arguments: Mapping[str, str]) -> None:
        self._context = context
        self._stages = read((context / "Dockerfile").read_text(), arguments)
        self._layers = binaries.cache() / "layers"
        self._done: dict[str, list[Path]] = {}

    def build(self, target: str) -> Built:
        """Raises `RuntimeError` when a step fails, `ValueError` when the stage needs a registry."""
        with self._alone():
            return Built(self._stage(self._stages[target]), self._stages[target].config)

    def prune(self) -> None:
        """Removes what no build has used for two days."""
        with self._alone():
            for folder in self._layers.iterdir():
                if folder.is_dir() and folder.stat().st_mtime < time.time() - _KEPT_SECONDS:
                    shutil.rmtree(folder)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._layers.mkdir(parents=True, exist_ok=True)
        with (self._layers / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _stage(self, stage: Stage) -> list[Path]:
        if stage.name not in self._done:
            layers = self._base(stage)
            for step in stage.steps:
                layers = [*layers, self._layer(step, layers)]
            self._done[stage.name] = layers
        return self._done[stage.name]

    def _base(self, stage: Stage) -> list[Path]:
        if stage.base in self._stages:
            return self._stage(self._stages[stage.base])
        if stage.base.startswith("python:"):
            return [debian.base_system()]
        raise ValueError(f"{stage.name} is built on {stage.base}, which is in a registry")

    def _layer(self, step: Run | Copy, below: list[Path]) -> Path:
        text = "\n".join([*(path.parent.name for path in below), repr(step), *self._inputs(step)])
        layer = self._layers / hashlib.sha256(text.encode()).hexdigest()[:24]
        if layer.is_dir():
            os.utime(layer)
            return layer / "changes"
        partial = Path(tempfile.mkdtemp(prefix=".", dir=self._layers))
        try:
            for name in ("changes", "work"):
                (partial / name).mkdir(mode=0o755)
            if isinstance(step, Run):
                self._run(step, below, partial)
            else:
                self._copy(step, partial / "changes")
            shutil.rmtree(partial / "work")
            partial.rename(layer)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return layer / "changes"

    def _inputs(self, step: Run | Copy) -> Iterator[str]:
        """What else the result depends on: files of the context, of another stage a file or all its layers."""
        origins: list[str | None] = []
        if isinstance(step, Run):
            origins += [mount.stage for mount in step.mounts]
        elif step.stage is None:
            for path, name in self._files(step):
                yield f"{name} {path.stat().st_mode & 0o111:o} {_digest(path)}"
        elif (file := self._file_of(step)) is not None:
            yield _digest(file)
        else:
            origins.append(step.stage)
        for origin in filter(None, origins):
            yield from (path.parent.name for path in self._stage(self._stages[origin]))

    def _file_of(self, step: Copy) -> Path | None:
        """What a COPY from another stage copies, if it is a file."""
        assert step.stage is not None
        [source] = step.sources
        layers = reversed(self._stage(self._stages[step.stage]))
        found = next((path for layer in layers if (path := layer / source.strip("/")).exists()), None)
        return found if found is not None and found.is_file() else None

    def _files(self, step: Copy) -> list[tuple[Path, str]]:
        """Files of the context, and where each goes below the target."""
        found: list[tuple[Path, str]] = []
        for source in step.sources:
            path = self._context / source
            if not path.exists():
                raise ValueError(f"COPY {source}: there is no such file")
            if path.is_file():
                found.append((path, path.name if step.target.endswith("/") else ""))
            else:
                inner = (file for file in sorted(path.rglob("*")) if file.is_file())
                found += [(file, str(file.relative_to(path))) for file in inner if not self._ignored(file)]
        return found

    def _ignored(self, path: Path) -> bool:
        name = str(path.relative_to(self._context))
        lines = (self._context / ".dockerignore").read_text().splitlines()
        patterns = [line.removeprefix("**/") for line in lines if line[:1] not in ("", "#", "!") and line != "*"]
        parents = [name, *map(str, Path(name).parents)]
        return any(
            fnmatch.fnmatch(part, p) or fnmatch.fnmatch(Path(part).name, p) for part in parents for p in patterns
        )

    def _copy(self, step: Copy, changes: Path) -> None:
        target = changes / step.target.lstrip("/")
        if step.stage is None:
            for path, name in self._files(step):
                place = target / name if name else target
                _folder(place.parent, changes)
                shutil.copyfile(path, place)
                place.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            return
        if (file := self._file_of(step)) is not None:
            place = target / file.name if step.target.endswith("/") else target
            _folder(place.parent, changes)
            shutil.copy2(file, place)
            return
        [source] = step.sources
        _folder(target, changes)
        for layer in self._stage(self._stages[step.stage]):
            inside = layer / source.strip("/")
            if inside.is_dir():
                # Links, not copies: layers are never written to again.
                subprocess.run(["cp", "-al", "--remove-destination", f"{inside}/.", target], check=True)

    def _run(self, step: Run, below: list[Path], partial: Path) -> None:
        root = partial / "root"
        root.mkdir()
        lines = [_overlay(below, root, partial)]
        for mount in step.mounts:
            lines += self._mount(mount, root, partial)
        for place, kind in (("/dev", "--rbind /dev"), ("/proc", "-t proc proc")):
            lines.append(f"mount {kind} {root}{place}")
        lines += [f"mount --bind {name} {root}{name}" for name in ("/etc/resolv.conf", _CERTIFICATES)]
        bundle = f"{_CERTIFICATES}/ca-certificates.crt"
        variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        variables |= {"HOME": "/root", "PIP_CERT": bundle, "SSL_CERT_FILE": bundle, "DEBIAN_FRONTEND": "noninteractive"}
        variables |= step.environment
        assignments = [shlex.quote(f"{name}={value}") for name, value in variables.items()]
        inner = f"mkdir -p {step.folder} && cd {step.folder} && {step.script}"
        lines.append(f"exec chroot {root} /usr/bin/env -i {' '.join(assignments)} /bin/sh -ec {shlex.quote(inner)}")
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        command = bound_to_parent([*own, "sh", "-ec", "\n".join(lines)])
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"RUN {step.script} ended with {done.returncode}:\n{done.stdout[-3000:]}")
        root.rmdir()

    def _mount(self, mount: Mount, root: Path, partial: Path) -> Iterator[str]:
        yield f"mkdir -p {root}{mount.target}"
        if mount.stage is None:
            kept = binaries.cache().parents[1] / Path(mount.target).name
            kept.mkdir(parents=True, exist_ok=True)
            yield f"mount --bind {kept} {root}{mount.target}"
            return
        view = partial / f"view-{mount.stage}"
        yield f"mkdir {view}"
        yield _overlay(self._stage(self._stages[mount.stage]), view, None)
        yield f"mount --bind {view}{mount.source} {root}{mount.target}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _overlay(below: Sequence[Path], root: Path, partial: Path | None) -> str:
    lower = ":".join(str(path) for path in reversed(below))
    upper = f",upperdir={partial}/changes,workdir={partial}/work" if partial else ""
    return f"mount -t overlay overlay -o lowerdir={lower}{upper},redirect_dir=off,metacopy=off,index=off {root}"


def _folder(path: Path, top: Path) -> None:
    """Makes it with the mode of a folder of the system, whatever the umask says."""
    for part in [*reversed(path.relative_to(top).parents), path.relative_to(top)]:
        (top / part).mkdir(mode=0o755, exist_ok=True)
