from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from baton_serving.errors import ConfigError
from baton_serving.model.safetensors_file import DTYPES, SafetensorsFile

TENSORS = {
    "matrix": torch.arange(24, dtype=torch.float32).view(6, 4),
    "half": torch.randn(5, 3).bfloat16(),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.empty(0, 4),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "w.safetensors", metadata={"format": "pt"})
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("use_mmap", [True, False])
def test_reads_what_the_safetensors_library_wrote(path: Path, use_mmap: bool) -> None:
    file = SafetensorsFile(path, use_mmap)
    assert {name: (info.dtype, info.shape) for name, info in file.tensors.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()
    }
    for name, tensor in TENSORS.items():
        rows = tensor.shape[0] if tensor.dim() else 1
        assert torch.equal(file.read(name, 0, 0, rows), tensor)
        assert bytes(file.raw(name)) == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("use_mmap", [True, False])
def test_reads_parts_along_either_dimension(path: Path, use_mmap: bool) -> None:
    file = SafetensorsFile(path, use_mmap)
    assert torch.equal(file.read("matrix", 0, 2, 5), TENSORS["matrix"][2:5])
    assert torch.equal(file.read("matrix", 1, 1, 3), TENSORS["matrix"][:, 1:3])
    assert file.read("matrix", 0, 6, 6).shape == (0, 4)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype.itemsize == 1 and dtype != torch.bool])
def test_one_byte_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(8).to(dtype)
    save_file({"t": tensor}, tmp_path / "w.safetensors")
    read = SafetensorsFile(tmp_path / "w.safetensors", True).read("t", 0, 2, 6)
    assert torch.equal(read.float(), tensor[2:6].float())


@pytest.mark.parametrize("keep", [0, 4, 7, 60])
def test_a_file_cut_in_its_header_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"w.safetensors: not a safetensors file, or truncated in its header"):
        SafetensorsFile(path, True)


def test_a_file_cut_in_its_data_names_the_tensor(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 40])
    with pytest.raises(
        ConfigError, match=rf"w.safetensors: truncated: tensor '\w+' ends at byte \d+ of a {size - 40}-"
    ):
        SafetensorsFile(path, True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "has 4 bytes of data, its shape needs 8"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, "tensor 't' has 4 bytes|tensor 't'"),
        ({"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}, "unsupported dtype C64"),
        ({"dtype": "F32", "shape": [1]}, "header is damaged"),
        ({"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}, "header is damaged"),
        ("nonsense", "header is damaged"),
    ],
)
def test_a_damaged_header_is_refused(entry: object, message: str, tmp_path: Path) -> None:
    header = json.dumps({"t": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ConfigError, match=message):
        SafetensorsFile(path, True)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.safetensors: cannot be opened: No such file"):
        SafetensorsFile(tmp_path / "gone.safetensors", True)
