"""One safetensors file, read directly: parts of tensors without loading the rest, and raw bytes for hashing.

Format: 8 bytes little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}`, then the data.
Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from baton_serving.errors import ConfigError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER = 100_000_000  # the format's own limit, in bytes


@dataclass(frozen=True)
class TensorInfo:
    """`offset` is in bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
    """An open file. With `use_mmap` tensors are views of the page cache, else each read copies from the file."""

    def __init__(self, path: Path, use_mmap: bool) -> None:
        self.path = path
        try:
            file: BinaryIO = path.open("rb", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be opened: {error.strerror}") from error
        size = path.stat().st_size
        self.tensors = _read_header(file, path, size)
        self._file = file
        # A private writable mapping, since torch wants writable memory; nothing writes to it.
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if use_mmap and size else None

    def raw(self, name: str) -> memoryview:
        """The bytes of a whole tensor."""
        info = self.tensors[name]
        return self._bytes(info.offset, info.nbytes)

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """`tensor[start:stop]` along `dim` on the CPU; possibly a view of the file that must not be written to."""
        info = self.tensors[name]
        if dim != 0 or not info.shape:
            whole = self._tensor(info.dtype, info.shape, info.offset)
            return whole.narrow(dim, start, stop - start) if info.shape else whole
        row_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
        return self._tensor(info.dtype, (stop - start, *info.shape[1:]), info.offset + start * row_bytes)

    def _tensor(self, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._bytes(offset, count * dtype.itemsize), dtype=dtype).view(shape)

    def _bytes(self, offset: int, count: int) -> memoryview:
        if self._map is not None:
            return memoryview(self._map)[offset : offset + count]
        buffer = bytearray(count)
        view, done = memoryview(buffer), 0
        while done < count:
            # Positioned reads: the digest's threads share the file.
            got = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            if not got:
                raise ConfigError(f"{self.path}: truncated while it was read, at byte {offset + done}")
            done += got
        return view


def _read_header(file: BinaryIO, path: Path, size: int) -> dict[str, TensorInfo]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ConfigError(f"{path}: not a safetensors file, or truncated in its header ({size} bytes)")
    try:
        header = json.loads(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _tensor_info(name, entry, 8 + length, size, path) for name, entry in entries.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: the safetensors header is damaged: {error!r}") from error


def _tensor_info(name: str, entry: dict[str, object], data_start: int, size: int, path: Path) -> TensorInfo:
    begin, end = (int(offset) for offset in entry["data_offsets"])  # type: ignore[attr-defined]
    dtype = DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise ConfigError(f"{path}: tensor {name!r} has the unsupported dtype {entry['dtype']}")
    info = TensorInfo(dtype, tuple(int(n) for n in entry["shape"]), data_start + begin)  # type: ignore[attr-defined]
    if begin < 0 or end - begin != info.nbytes:
        raise ConfigError(f"{path}: tensor {name!r} has {end - begin} bytes of data, its shape needs {info.nbytes}")
    if data_start + end > size:
        raise ConfigError(f"{path}: truncated: tensor {name!r} ends at byte {data_start + end} of a {size}-byte file")
    return info
