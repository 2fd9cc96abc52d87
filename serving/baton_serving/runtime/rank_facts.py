"""What rank 0 tells the API process of its model and pool."""

from __future__ import annotations

from typing import Any

import msgspec


class RankFacts(msgspec.Struct, frozen=True):
    """Sizes in tokens, pages and bytes. `logit_processors` are the names that requests may ask for."""

    weight_digest: str
    engine_digest: str
    architecture: str
    vocab_size: int
    eos_token_ids: list[int]
    dtype: str
    kv_dtype: str
    page_size: int
    kv_groups: int
    pages: int
    max_total_tokens: int
    pool_bytes: int
    logit_processors: list[str]
    handoff_endpoint: str = ""
    handoff_key: str = ""

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> RankFacts:
        return msgspec.convert(plain, cls)
