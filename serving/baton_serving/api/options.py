"""What the API of a worker says about itself and how it guards itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MAX_BODY_BYTES: Final = 32 * 1024 * 1024  # a million token ids in JSON take 7 MB


@dataclass(frozen=True)
class AppOptions:
    """Facts and switches of one worker's API.

    `server_args` are the flags in force, shown by `/server_info`. `stream_output` makes the native route stream
    disjoint pieces; else each event holds all text so far. `is_embedding`: it embeds and generates nothing.
    `tool_call_parser` names how the model spells tool calls (None: their text comes unparsed). `page_size` is in
    tokens, `created` in unix time. `memory_tags` name all memory that can be released here.
    """

    served_model_name: str
    tokenizer_path: str
    api_key: str | None = None
    enable_cache_report: bool = False
    stream_output: bool = False
    max_body_bytes: int = MAX_BODY_BYTES
    server_args: Mapping[str, object] = field(default_factory=dict)
    is_embedding: bool = False
    tool_call_parser: str | None = None
    page_size: int = 1
    memory_tags: list[str] = field(default_factory=lambda: ["kv_cache"])
    created: int = field(default_factory=lambda: int(time.time()))
