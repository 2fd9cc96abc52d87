"""What an S3 service tells of an object's content, and how a file is held against it.

An object may have checksums that its writer chose, such as SHA-256 or CRC32. Its ETag is the MD5 of the content, or of
the parts' MD5s if it was written in parts; where the service encrypts with a key of somebody else's it is neither.
(docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html)
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 4 << 20
_MD5 = re.compile(r"([0-9a-f]{32})(?:-([0-9]+))?")
_PLAIN = (None, "AES256")  # encryption that leaves ETags as they are


@dataclass(frozen=True)
class Checksum:
    """`of` computes from a file what should be `value`."""

    value: str
    of: Callable[[Path], str]

    def fits(self, path: Path) -> bool:
        return self.of(path) == self.value


def checksum_of(client: Any, bucket: str, key: str, etag: str, size: int) -> Checksum | None:
    """The best checksum that the service tells of the object, and Python can compute; None when there is none."""
    head = client.head_object(Bucket=bucket, Key=key, IfMatch=etag, ChecksumMode="ENABLED")
    for name, of in (("ChecksumSHA256", _sha256), ("ChecksumCRC32", _crc32)):
        value = head.get(name, "-")
        if head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT" and "-" not in value:
            return Checksum(value, of)
    found = _MD5.fullmatch(etag.strip('"'))
    if found is None or head.get("ServerSideEncryption") not in _PLAIN:
        return None
    if found[2] is None:
        return Checksum(found[0], _md5)
    part = client.head_object(Bucket=bucket, Key=key, PartNumber=1)["ContentLength"]
    if not part or -(-size // part) != int(found[2]):  # parts of different sizes
        return None
    return Checksum(found[0], lambda path: _md5_of_parts(path, part))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha256").digest()).decode()


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            value = zlib.crc32(data, value)
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _new_md5).hexdigest()


def _md5_of_parts(path: Path, size: int) -> str:
    digests = []
    with path.open("rb") as file:
        while True:
            part, left = _new_md5(), size
            while left and (data := file.read(min(_CHUNK, left))):
                part.update(data)
                left -= len(data)
            if left == size:
                break
            digests.append(part.digest())
    return f"{_new_md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def _new_md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)
