"""What the scheduler must know, resolved: no "auto" left."""

from __future__ import annotations

import msgspec

from baton_serving.scheduling.policy import POLICIES


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Fields carry the names of the command-line flags where one exists.

    `context_len` bounds prompt plus output of a request, in tokens. `max_running_requests` is also the number of
    slots. `chunked_prefill_size` None: prompts are never cut. `schedule_conservativeness` scales the share of its
    possible output for which a running request is expected to need pages. `num_reserved_decode_tokens` is kept free
    per running request when room for arrivals from peers is given out.
    """

    context_len: int
    max_running_requests: int
    max_queued_requests: int | None = None
    max_prefill_tokens: int = 16384
    chunked_prefill_size: int | None = None
    enable_mixed_chunk: bool = False
    schedule_policy: str = "fcfs"
    schedule_conservativeness: float = 1.0
    disable_radix_cache: bool = False
    allow_auto_truncate: bool = False
    num_reserved_decode_tokens: int = 512
    random_seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule_policy not in POLICIES:
            raise ValueError(f"schedule_policy must be one of {', '.join(POLICIES)}, not {self.schedule_policy!r}")
        for name in ("context_len", "max_running_requests", "max_prefill_tokens", "chunked_prefill_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
