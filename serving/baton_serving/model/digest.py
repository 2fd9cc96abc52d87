"""Identity of what is served: a Merkle root over the checkpoint's tensors, its tokenizer and its configuration.

Leaves are sorted by name and hashed with SHA-256 under a prefix that tells leaf from node (RFC 6962, section 2.1). A
tensor's leaf holds its name, dtype, shape and bytes, so the root does not depend on how tensors are spread over files,
on tensor parallelism, or on how projections are fused in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from baton_serving.model.checkpoint import Checkpoint

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
# Who wrote config.json and where, not what the model computes.
_VOLATILE_KEYS = frozenset({"_name_or_path", "transformers_version", "use_cache"})


def setting_leaves(
    config: Mapping[str, Any], tokenizer_path: Path, chat_template: str | None = None
) -> dict[str, bytes]:
    """Everything but the tensors, by name. `config` is config.json after overrides; `chat_template` replaces the
    tokenizer's own."""
    stable = {key: value for key, value in config.items() if key not in _VOLATILE_KEYS}
    leaves = {"config": _leaf("config", json.dumps(stable, sort_keys=True).encode())}
    for name in TOKENIZER_FILES:
        file = tokenizer_path / name
        if file.is_file():
            leaves[f"file/{name}"] = _leaf(name, file.read_bytes())
    if chat_template is not None:
        leaves["chat_template"] = _leaf("chat_template", chat_template.encode())
    return leaves


def tensor_leaves(checkpoint: Checkpoint, threads: int = 8) -> dict[str, bytes]:
    """The tensors' leaves by name."""

    def hash_tensor(name: str) -> bytes:
        dtype, shape = checkpoint.header(name)
        return _leaf(name, checkpoint.raw(name), f"{dtype}{list(shape)}")

    names = sorted(checkpoint.names())
    # hashlib releases the interpreter lock, so threads hash in parallel.
    with ThreadPoolExecutor(max_workers=min(threads, os.cpu_count() or 1)) as pool:
        return {f"tensor/{name}": leaf for name, leaf in zip(names, pool.map(hash_tensor, names), strict=True)}


def root_of(leaves: Mapping[str, bytes]) -> bytes:
    """The content digest: the root over tensors' and settings' leaves sorted by name, 32 bytes."""
    return merkle_root([leaves[name] for name in sorted(leaves)])


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Root of a binary tree over leaf hashes; an odd one out moves up unchanged. No leaves: the hash of nothing."""
    level = list(leaves)
    if not level:
        return hashlib.sha256().digest()
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


def _leaf(name: str, content: bytes | memoryview, header: str = "") -> bytes:
    digest = hashlib.sha256(b"\x00" + f"{name}\x00{header}\x00".encode())
    digest.update(content)
    return digest.digest()
