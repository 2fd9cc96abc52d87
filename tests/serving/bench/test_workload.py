import json
import random
from pathlib import Path

import pytest

from baton_serving.bench.workload import TRACE_BLOCK, Lengths, random_items, shared_prefix_items, trace_items
from baton_serving.errors import ConfigError


def test_lengths_stay_in_their_range() -> None:
    rng = random.Random(1)
    drawn = [Lengths(100, 10, 0.5).draw(rng) for _ in range(300)]
    assert {prompt for prompt, _ in drawn} <= set(range(50, 101))
    assert {output for _, output in drawn} == set(range(5, 11))
    assert Lengths(1, 1, 0.0).draw(rng) == (1, 1)


def test_the_same_seed_gives_the_same_prompts() -> None:
    lengths = Lengths(20, 5)
    items = random_items(10, lengths, 50, seed=3)
    assert items == random_items(10, lengths, 50, seed=3)
    assert items != random_items(10, lengths, 50, seed=4)
    assert all(len(item.prompt) == 20 and max(item.prompt) < 50 and item.output_tokens == 5 for item in items)
    assert len(items[0].text.split()) == 20


def test_shared_prefixes_are_shared() -> None:
    items = shared_prefix_items(12, 3, 30, Lengths(8, 2), 1000, seed=0)
    assert len({item.prompt[:30] for item in items}) == 3
    assert len({item.prompt for item in items}) == 12
    assert all(len(item.prompt) == 38 for item in items)


def write_trace(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_equal_hash_ids_of_a_trace_are_equal_tokens(tmp_path: Path) -> None:
    row = {"timestamp": 27000, "input_length": 2 * TRACE_BLOCK + 10, "output_length": 3, "hash_ids": [7, 8, 9]}
    longer = {"timestamp": 30500, "input_length": 3 * TRACE_BLOCK + 1, "output_length": 1, "hash_ids": [7, 8, 1, 2]}
    bare = {"timestamp": 31000, "input_length": 40, "output_length": 0}
    first, second, third = trace_items(write_trace(tmp_path / "trace.jsonl", row, longer, bare), 1000)
    assert (len(first.prompt), len(second.prompt), len(third.prompt)) == (1034, 1537, 40)
    assert first.prompt[:1024] == second.prompt[:1024]
    assert first.prompt[1024:] != second.prompt[1024:1034]
    assert (first.due, second.due, third.due) == (0.0, 3.5, 4.0)
    assert [item.output_tokens for item in (first, second, third)] == [3, 1, 1]
    assert len(trace_items(tmp_path / "trace.jsonl", 1000, limit=2)) == 2


def test_a_bad_trace_is_refused_with_its_line(tmp_path: Path) -> None:
    good = {"timestamp": 0, "input_length": 4, "output_length": 3}
    with pytest.raises(ConfigError, match="line 2"):
        trace_items(write_trace(tmp_path / "trace.jsonl", good, {"timestamp": "late"}), 10)
    with pytest.raises(ConfigError, match="no request"):
        trace_items(write_trace(tmp_path / "empty.jsonl"), 10)
    with pytest.raises(ConfigError, match="No such file"):
        trace_items(tmp_path / "missing.jsonl", 10)
