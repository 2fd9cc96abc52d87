"""Write the gRPC code of every .proto file into the folder `generated` beside it, or say with --check what is stale."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("bootstrap", "serving")


def main(check: bool) -> int:
    """Exit status 1 when protoc fails or `check` finds code that differs from what would be written."""
    stale = []
    for source, proto in protos():
        with tempfile.TemporaryDirectory() as scratch:
            if not generate(source, proto, Path(scratch)):
                return 1
            for made in sorted(Path(scratch).rglob("*.py*")):
                target = source / made.relative_to(scratch)
                if not target.exists() or target.read_bytes() != made.read_bytes():
                    stale.append(target)
                    if not check:
                        target.parent.mkdir(exist_ok=True)
                        target.write_bytes(made.read_bytes())
    for path in stale:
        print(f"{path.relative_to(ROOT)} " + ("is stale: run make protos" if check else "written"))
    return int(check and bool(stale))


def protos() -> Iterator[tuple[Path, Path]]:
    """Source folder and path of each .proto file."""
    for source in SOURCES:
        for proto in sorted((ROOT / source).rglob("*.proto")):
            yield ROOT / source, proto


def generate(source: Path, proto: Path, target: Path) -> bool:
    """Run protoc so that the code imports itself by its full package name. False when protoc complained."""
    package = proto.parent.relative_to(source) / "generated"
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    return bool(protoc.main(["protoc", f"-I{package}={proto.parent}", *outputs, str(package / proto.name)]) == 0)


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
