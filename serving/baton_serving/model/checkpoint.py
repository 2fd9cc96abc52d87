"""The tensors of a model under their Hugging Face names, wherever they come from: safetensors, torch files, a seed."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from baton_serving.errors import ConfigError
from baton_serving.model.safetensors_file import DTYPES, SafetensorsFile

LOAD_FORMATS = ("auto", "safetensors", "pt", "dummy")
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Checkpoint(Protocol):
    """Read access by tensor name. A name that `names` does not hold raises KeyError."""

    def names(self) -> frozenset[str]: ...

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """`tensor[start:stop]` along `dim`; not to be written to."""

    def file(self, name: str) -> Path:
        """Where the tensor is, for messages."""

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Safetensors dtype name and shape."""

    def raw(self, name: str) -> memoryview:
        """The tensor's bytes, row-major, little-endian."""


class SafetensorsCheckpoint:
    """One or several safetensors files; with an index, the index says which file holds a tensor."""

    def __init__(self, files: Iterable[Path], use_mmap: bool, index: Mapping[str, str] | None = None) -> None:
        opened = [SafetensorsFile(path, use_mmap) for path in files]
        self._home = {name: file for file in opened for name in file.tensors}
        for name, file_name in (index or {}).items():
            if name not in self._home or self._home[name].path.name != file_name:
                raise ConfigError(f"{opened[0].path.parent / file_name}: tensor {name!r} is missing, the index has it")

    def names(self) -> frozenset[str]:
        return frozenset(self._home)

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        return self._home[name].read(name, dim, start, stop)

    def file(self, name: str) -> Path:
        return self._home[name].path

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        info = self._home[name].tensors[name]
        return _DTYPE_NAMES[info.dtype], info.shape

    def raw(self, name: str) -> memoryview:
        return self._home[name].raw(name)


class MemoryCheckpoint:
    """Tensors that are in memory already; `origin` names them in messages."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], origin: str = "memory") -> None:
        self._tensors = dict(tensors)
        self._origin = Path(origin)

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        tensor = self._tensors[name]
        return tensor.narrow(dim, start, stop - start) if tensor.dim() else tensor

    def file(self, name: str) -> Path:
        return self._origin

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        tensor = self._tensors[name]
        return _DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)

    def raw(self, name: str) -> memoryview:
        return self._tensors[name].detach().contiguous().view(-1).view(torch.uint8).numpy().data


class TorchCheckpoint(MemoryCheckpoint):
    """One or several files written by `torch.save`, tensors only (unpickled with `weights_only`)."""

    def __init__(self, files: Iterable[Path], use_mmap: bool) -> None:
        tensors: dict[str, torch.Tensor] = {}
        self._files: dict[str, Path] = {}
        for path in files:
            for name, tensor in _load_torch(path, use_mmap).items():
                tensors[name] = tensor
                self._files[name] = path
        super().__init__(tensors)

    def file(self, name: str) -> Path:
        return self._files[name]


class DummyCheckpoint:
    """Random weights that depend on `seed` and each tensor's name only: the same for every tensor parallel size."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], seed: int, norm_value: float, device: torch.device
    ) -> None:
        self._shapes = dict(shapes)
        self._seed = seed
        self._norm_value = norm_value
        self._device = device

    def names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return torch.full(shape, self._norm_value, device=self._device).narrow(dim, start, stop - start)
        key = hashlib.blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest()
        generator = torch.Generator(self._device).manual_seed(int.from_bytes(key, "little") >> 1)
        whole = torch.randn(shape, generator=generator, device=self._device) / math.sqrt(shape[-1])
        return whole.narrow(dim, start, stop - start)

    def file(self, name: str) -> Path:
        return Path("dummy")

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        return "dummy", self._shapes[name]

    def raw(self, name: str) -> memoryview:
        return memoryview(f"{self._seed}".encode())


def open_checkpoint(path: Path, load_format: str, use_mmap: bool) -> Checkpoint:
    """Open the weights in directory `path`; "auto" prefers safetensors over torch files (ConfigError)."""
    if load_format in ("auto", "safetensors"):
        index = path / "model.safetensors.index.json"
        if index.exists():
            weight_map = _read_index(index)
            names = sorted(set(weight_map.values()))
            return SafetensorsCheckpoint([path / name for name in names], use_mmap, weight_map)
        files = sorted(path.glob("*.safetensors"))
        if files:
            return SafetensorsCheckpoint(files, use_mmap)
    if load_format in ("auto", "pt"):
        files = sorted(path.glob("pytorch_model*.bin")) or sorted([*path.glob("*.pt"), *path.glob("*.pth")])
        if files:
            return TorchCheckpoint(files, use_mmap)
    kinds = {"auto": "*.safetensors or *.bin", "safetensors": "*.safetensors", "pt": "*.bin, *.pt or *.pth"}
    if load_format not in kinds:
        raise ConfigError(f"--load-format {load_format} is not one of {', '.join(LOAD_FORMATS)}")
    raise ConfigError(f"{path}: no weights here ({kinds[load_format]}); check --model-path and --load-format")


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index}: not a safetensors index: {error!r}") from error


def _load_torch(path: Path, use_mmap: bool) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=use_mmap)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{path}: cannot be loaded, truncated or not a torch file: {reason[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConfigError(f"{path}: must hold a dictionary of tensors")
    return state
