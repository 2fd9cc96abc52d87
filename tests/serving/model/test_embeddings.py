"""Embeddings out of the executor against transformers' hidden states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.local_worker import LocalWorker
from support.tiny_models import tiny_model, write_tiny_checkpoint

from baton_serving.sampling.params import SamplingParams

PROMPTS = [[5, 9, 200, 31, 7, 7, 81], [5, 9, 200, 31, 7, 7, 81, 4, 4, 90], list(range(3, 203)), [17]]


@pytest.mark.parametrize("chunk", [4096, 32], ids=["whole", "in chunks"])
def test_the_last_tokens_hidden_state_of_length_one(tmp_path: Path, chunk: int) -> None:
    worker = LocalWorker(write_tiny_checkpoint("qwen3", tmp_path), chunked_prefill_size=chunk)
    answers = [worker.embed(prompt) for prompt in PROMPTS]
    beside = worker.add([1, 2, 3], SamplingParams(max_new_tokens=3, temperature=0.0))
    worker.run()
    again = worker.embed(PROMPTS[2])
    worker.run()
    assert len(beside.token_ids) == 3
    assert again.cached_tokens > 0
    base = tiny_model("qwen3").model
    for prompt, answer in zip([*PROMPTS, PROMPTS[2]], [*answers, again], strict=True):
        with torch.inference_mode():
            hidden = base(torch.tensor([prompt])).last_hidden_state[0, -1]
        assert answer.token_ids == []
        assert answer.embedding is not None
        got = torch.tensor(answer.embedding)
        assert torch.allclose(got, torch.nn.functional.normalize(hidden, dim=0), atol=1e-5)
        assert abs(float(got.norm()) - 1) < 1e-5
