"""Greedy answers equal those of transformers, token by token, however the scheduler cuts and mixes the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.local_worker import Answer, LocalWorker
from support.references import TOLERANCE, Reference
from support.second_rank import SecondRank
from support.tiny_models import DECODER_KINDS, write_tiny_checkpoint

from baton_serving.sampling.params import SamplingParams, TokenLogprobs
from baton_serving.scheduling.request import LogprobOptions

BATON_TINY = Path(__file__).parents[3] / "examples" / "models" / "baton-tiny"
KINDS = (*DECODER_KINDS, "baton-tiny")
LENGTHS = (1, 600, 2, 130, 17, 64, 257, 9)
NEW = 16
GREEDY = SamplingParams(max_new_tokens=NEW, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True)
class Subject:
    """A checkpoint, prompts of LENGTHS for it, and what transformers makes of them."""

    path: Path
    prompts: list[list[int]]
    reference: Reference

    def check(self, prompts: Sequence[list[int]], answers: Sequence[Answer], new_tokens: int = NEW) -> None:
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer.failure is None
            assert answer.finish is not None
            assert answer.finish.kind == "length"
            self.reference.assert_greedy(prompt, answer.token_ids, new_tokens)


@pytest.fixture(scope="module", params=KINDS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Module-scoped: what transformers answers is computed once per model."""
    kind: str = request.param
    path = BATON_TINY if kind == "baton-tiny" else write_tiny_checkpoint(kind, tmp_path_factory.mktemp(kind), seed=1)
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randint(4, 256, (length,), generator=generator).tolist() for length in LENGTHS]
    return Subject(path, prompts, Reference(path))


@pytest.fixture(scope="module")
def second_rank() -> Iterator[SecondRank]:
    rank = SecondRank()
    yield rank
    rank.close()


def test_one_at_a_time(subject: Subject) -> None:
    worker = LocalWorker(subject.path, overlap=False, chunked_prefill_size=-1, disable_radix_cache=True)
    for prompt in subject.prompts:
        subject.check([prompt], worker.generate([prompt], GREEDY))


@pytest.mark.parametrize("overlap", [False, True], ids=["booked at once", "overlap"])
@pytest.mark.parametrize("mixed", [False, True], ids=["chunked", "mixed chunk"])
def test_eight_together_in_chunks(subject: Subject, overlap: bool, mixed: bool) -> None:
    worker = LocalWorker(subject.path, overlap=overlap, chunked_prefill_size=48, enable_mixed_chunk=mixed)
    answers = [worker.add(prompt, GREEDY) for prompt in subject.prompts]
    longest, both_kinds = 0, False
    while (plan := worker.turn()) is not None or not worker.scheduler.idle:
        if plan is not None:
            longest = max(longest, *plan.lengths)
            both_kinds |= len(set(plan.extend)) == 2
    worker.scheduler.check()
    assert longest <= 48
    assert both_kinds == mixed
    subject.check(subject.prompts, answers)


def test_a_prompt_that_is_cached(subject: Subject) -> None:
    """Hits end inside a page too: the tail page is copied, and both owners go on writing into their own copy."""
    worker = LocalWorker(subject.path, chunked_prefill_size=64, page_size=16)
    base = subject.prompts[1][:260]
    first = worker.generate([base], GREEDY)
    subject.check([base], first)
    again, longer = base, [*base, *subject.prompts[3][:30]]
    branch = [*base[:205], *subject.prompts[5]]  # leaves the cached path in the middle of a page
    prompts = [again, longer, branch]
    answers = worker.generate(prompts, GREEDY)
    subject.check(prompts, answers)
    assert [answer.cached_tokens for answer in answers] == [259, 260, 205]
    conversation = [*base, *first[0].token_ids, 9, 8, 7]  # the whole pages of the answer are found as well
    subject.check([conversation], (answers := worker.generate([conversation], GREEDY)))
    assert answers[0].cached_tokens == (len(base) + NEW - 1) // 16 * 16


def test_prefixes_shared_in_one_batch(subject: Subject) -> None:
    worker = LocalWorker(subject.path, chunked_prefill_size=64, schedule_policy="lpm")
    base = subject.prompts[6]
    prompts = [[*base[:cut], *subject.prompts[3][:cut]] for cut in (40, 41, 100, 101, 180, 199, 257, 257)]
    subject.check(prompts, worker.generate(prompts, GREEDY))


def test_retraction(subject: Subject) -> None:
    """Eight answers outgrow the pool: some are taken off the batch, lose their pages, and are computed again."""
    prompts = [subject.prompts[1][at : at + 12] for at in range(0, 80, 10)]
    new_tokens = 60
    windows = [group.window or 72 for group in LocalWorker(subject.path).rank.pool.groups]
    tokens = sum(min(72, window + 8) for window in windows) // len(windows)  # that one request holds at its end
    worker = LocalWorker(subject.path, max_total_tokens=tokens * 5, schedule_conservativeness=0.1)
    params = SamplingParams(max_new_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    answers = worker.generate(prompts, params)
    assert worker.scheduler.stats()["retractions_total"] > 0
    subject.check(prompts, answers, new_tokens)


def test_two_ranks(subject: Subject, second_rank: SecondRank) -> None:
    """The second rank is a process that does as it is told, step by step, with cached prefixes too."""
    with second_rank.worker(subject.path, chunked_prefill_size=64) as worker:
        subject.check(subject.prompts, worker.generate(subject.prompts, GREEDY))
        again = [subject.prompts[1], [*subject.prompts[1][:300], 5, 6]]
        answers = worker.generate(again, GREEDY)
        subject.check(again, answers)
        assert [answer.cached_tokens for answer in answers] == [599, 300]


def test_logprobs(subject: Subject) -> None:
    """Of answer and prompt, the prompt's across chunk borders, with the best alternatives and asked-for ids."""
    worker = LocalWorker(subject.path, chunked_prefill_size=48)
    options = LogprobOptions(start=0, top=5, token_ids=(3, 200))
    prompts = [subject.prompts[at] for at in (0, 1, 3, 4)]
    answers = [worker.add(prompt, GREEDY, options) for prompt in prompts]
    worker.run()
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = [*prompt, *answer.token_ids]
        expected = subject.reference.logprobs(tokens)
        got = [*(answer.prompt_logprobs or []), *answer.logprobs]
        assert [entry.token_id for entry in got] == tokens[1:]
        for entry, row in zip(got, expected[:-1], strict=True):
            _assert_logprobs(entry, row)


def _assert_logprobs(entry: TokenLogprobs, row: torch.Tensor) -> None:
    named = [(entry.token_id, entry.logprob), *entry.top, *entry.chosen]
    assert [token for token, _ in entry.chosen] == [3, 200]
    ids = torch.tensor([token for token, _ in named])
    torch.testing.assert_close(torch.tensor([value for _, value in named]), row[ids], rtol=0, atol=TOLERANCE)
    best = torch.tensor([value for _, value in entry.top])
    torch.testing.assert_close(best, row.topk(5).values, rtol=0, atol=TOLERANCE)
