from __future__ import annotations

import msgspec
import pytest

from baton_serving.scheduling.config import SchedulerConfig


def test_refuses_an_unknown_policy() -> None:
    with pytest.raises(ValueError, match="schedule_policy must be one of fcfs, lpm"):
        SchedulerConfig(context_len=10, max_running_requests=1, schedule_policy="best")


@pytest.mark.parametrize("field", ["context_len", "max_running_requests", "max_prefill_tokens", "chunked_prefill_size"])
def test_refuses_sizes_below_one(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, not 0"):
        msgspec.convert({"context_len": 10, "max_running_requests": 1} | {field: 0}, SchedulerConfig)
