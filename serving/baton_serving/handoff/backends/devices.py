"""Which network adapters the host has."""

from __future__ import annotations

from pathlib import Path

INFINIBAND = Path("/sys/class/infiniband")


def rdma_devices(root: Path = INFINIBAND) -> list[str]:
    """Names of RDMA devices with a port that is up, in name order; empty where there are none."""
    if not root.is_dir():
        return []
    return [device.name for device in sorted(root.iterdir()) if any(map(_is_up, device.glob("ports/*/state")))]


def _is_up(state: Path) -> bool:
    return "ACTIVE" in state.read_text()
