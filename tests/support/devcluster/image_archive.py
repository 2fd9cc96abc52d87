"""Writes a built image as an archive in the layout of the Open Container Initiative, which containerd imports."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from support.devcluster.image_build import Built

_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


class Archive:
    """The image under a name; everything in it has a digest, which containerd knows it by."""

    def __init__(self, name: str, image: Built) -> None:
        self.name = name
        self._layers = {_digest_of(folder): folder for folder in image.layers if any(folder.iterdir())}
        config = image.config
        inner = {
            "User": config.user,
            "Env": [f"{key}={value}" for key, value in config.environment.items()],
            "Entrypoint": config.entrypoint,
            "WorkingDir": config.folder,
            "Labels": config.labels,
        }
        body = {"architecture": "amd64", "os": "linux", "config": inner}
        body["rootfs"] = {"type": "layers", "diff_ids": [digest for digest, _ in self._layers]}
        self._config = json.dumps(body).encode()
        layers = [{"mediaType": _LAYER, "digest": digest, "size": size} for digest, size in self._layers]
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": _entry(_CONFIG, self._config)}
        self._manifest = json.dumps({**manifest, "layers": layers}).encode()
        self.digest = _digest(self._manifest)

    @property
    def layers(self) -> Collection[tuple[str, int]]:
        """Digest and size in bytes of each."""
        return self._layers.keys()

    def write(self, out: IO[bytes], known: Collection[str] = ()) -> None:
        """Without the layers of these digests: the receiver has them."""
        entry = _entry(_MANIFEST, self._manifest)
        names = {"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": self.name}
        index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": names}]}
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            for (digest, size), folder in self._layers.items():
                if digest not in known:
                    header = tarfile.TarInfo(_place(digest))
                    header.size = size
                    with _pipe_of(folder) as content:
                        tar.addfile(header, content)
            for text in (self._config, self._manifest):
                _add(tar, _place(_digest(text)), text)
            _add(tar, "index.json", json.dumps(index).encode())


def _entry(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    tar.addfile(header, io.BytesIO(content))


def _digest_of(folder: Path) -> tuple[str, int]:
    """Digest and size in bytes of a layer as an archive; read once, then kept beside it."""
    note = folder.with_name("digest")
    if not note.exists():
        found, size = hashlib.sha256(), 0
        with _pipe_of(folder) as content:
            while block := content.read(1 << 20):
                found.update(block)
                size += len(block)
        partial = note.with_name(f".digest.{os.getpid()}")
        partial.write_text(json.dumps([f"sha256:{found.hexdigest()}", size]))
        partial.rename(note)
    digest, size = json.loads(note.read_text())
    return digest, size


@contextmanager
def _pipe_of(folder: Path) -> Iterator[IO[bytes]]:
    """The layer as an archive. What overlayfs marks as deleted becomes the empty files that say so in archives."""
    deleted = folder.with_name("deleted")
    if not deleted.exists():
        _write_deleted(folder, deleted)
    names = [f"./{path.relative_to(folder)}" for path in _deleted(folder)]
    command = ["tar", "--create", "--sort=name", "--numeric-owner", "--no-wildcards", "--exclude-from=-"]
    with subprocess.Popen(
        [*command, "-C", str(folder), ".", "-C", str(deleted), "."], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as tar:
        assert tar.stdin is not None
        assert tar.stdout is not None
        tar.stdin.write("\n".join(names).encode())
        tar.stdin.close()
        yield tar.stdout
    if tar.returncode:
        raise subprocess.CalledProcessError(tar.returncode, command)


def _deleted(folder: Path) -> list[Path]:
    found = subprocess.run(
        ["find", str(folder), "-type", "c", "-links", "1", "-print0"], check=True, stdout=subprocess.PIPE
    )
    paths = [Path(os.fsdecode(name)) for name in found.stdout.split(b"\0") if name]
    return [path for path in paths if path.lstat().st_rdev == 0]


def _write_deleted(folder: Path, out: Path) -> None:
    for path in _deleted(folder):
        mark = out / path.relative_to(folder).with_name(f".wh.{path.name}")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    out.mkdir(exist_ok=True)
