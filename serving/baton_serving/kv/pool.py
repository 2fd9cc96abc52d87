"""One rank's page pool: one tensor `[pages + 1, kv_heads, layers, (K, V), page_size, dim]`, page 0 never allocated.

A page is one contiguous block, and each (page, head, layer) cell in it is K `[page_size, k_dim]` followed by V
`[page_size, v_dim]`. All KV groups of a model share the pool; layer i of a group uses cell i of the group's pages.
The pool knows nothing of who owns a page: that is the allocator's business.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
import xxhash

from baton_serving.errors import ConfigError
from baton_serving.kv.layout import KVGroup, PageShape
from baton_serving.kv.staging import upload

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


class KVPool:
    """`pages` usable pages (ids 1 to `pages`), zeroed, on `device`. On the CPU the memory is page-aligned.

    `layer_kv` views stay valid for the life of the pool; none of its memory ever moves.
    """

    def __init__(self, shape: PageShape, groups: Sequence[KVGroup], pages: int, device: torch.device) -> None:
        self.shape = shape
        self.groups = tuple(groups)
        self.pages = pages
        self.device = device
        size = (pages + 1) * shape.page_bytes
        if device.type == "cpu":
            # Anonymous memory is aligned to the system's pages, zeroed, and touched only when written.
            self._bytes = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
        else:
            self._bytes = torch.zeros(size, dtype=torch.uint8, device=device)
        self._blocks = self._bytes.view(pages + 1, shape.page_bytes)
        self._values = self._bytes.view(TORCH_DTYPES[shape.dtype])
        self._slots = {layer: slot for group in self.groups for slot, layer in enumerate(group.layers)}

    @property
    def base_address(self) -> int:
        """Address of page 0, for registration with a transfer engine; page p starts `p * shape.page_bytes` further."""
        return self._bytes.data_ptr()

    @property
    def size_bytes(self) -> int:
        return self._bytes.numel()

    def layer_kv(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of model layer `layer` as views `[pages + 1, kv_heads, page_size, k_dim or v_dim]`."""
        shape = self.shape
        cell = shape.page_size * (shape.k_dim + shape.v_dim)
        head = cell * shape.layers
        offset = cell * self._slots[layer]

        def view(dim: int, start: int) -> torch.Tensor:
            size = (self.pages + 1, shape.kv_heads, shape.page_size, dim)
            return self._values.as_strided(size, (head * shape.kv_heads, head, dim, 1), start)

        return view(shape.k_dim, offset), view(shape.v_dim, offset + shape.page_size * shape.k_dim)

    def copy_pages(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages `(source, target)`; all sources are read before any target is written."""
        if pairs:
            index = upload(pairs, torch.int64, self.device)
            self._blocks[index[:, 1]] = self._blocks[index[:, 0]]

    def read(self, offset: int, nbytes: int) -> bytes:
        """A copy of `nbytes` bytes of the pool from `offset` on (ValueError outside of it)."""
        if not 0 <= offset <= offset + nbytes <= self.size_bytes:
            raise ValueError(f"{nbytes} bytes at {offset} lie outside the pool of {self.size_bytes}")
        return self._bytes[offset : offset + nbytes].cpu().numpy().tobytes()

    def page_bytes(self, page: int) -> torch.Tensor:
        """The block of one page as a uint8 view `[page_bytes]`."""
        return self._blocks[page]

    def page_hash(self, page: int) -> str:
        """XXH3-128 of the page's block in hex, for comparing a page with its copy elsewhere; not cryptographic."""
        return xxhash.xxh3_128_hexdigest(self._blocks[page].cpu().numpy().data)


def memory_info(device: torch.device) -> tuple[int, int]:
    """Free and total bytes that this process may use on `device`; on the CPU a container's limit counts."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free, total
    memory = psutil.virtual_memory()
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return memory.available, memory.total
    return min(memory.available, limit - used), min(memory.total, limit)


def pages_for_tokens(tokens: int, page_size: int, groups: int) -> int:
    """Pages that hold `tokens` tokens in every one of `groups` KV groups, however they are spread over requests'
    windows; the last page of each further request comes on top."""
    return -(-tokens // page_size) * groups


def pages_for_memory(page_bytes: int, free: int, total: int, fraction: float) -> int:
    """Pages that fit when weights and pool together may take `fraction` of `total` bytes (ConfigError if none do).

    `free` is measured after the weights are loaded, so what is in use then counts against the fraction.
    """
    pages = int(free - total * (1.0 - fraction)) // page_bytes - 1
    if pages < 1:
        raise ConfigError(
            f"No memory is left for the KV cache: {free / 2**30:.2f} of {total / 2**30:.2f} GiB are free and "
            f"--mem-fraction-static {fraction:g} keeps {total * (1.0 - fraction) / 2**30:.2f} GiB aside; raise it, or "
            "use a smaller model or more ranks"
        )
    return pages
