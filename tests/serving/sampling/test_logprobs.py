import math

import pytest
import torch
from torch import Tensor

from baton_serving.sampling import logprobs
from baton_serving.sampling.logprobs import PromptLogprobs, PromptSpan, measure
from baton_serving.sampling.params import LogprobRow, TokenLogprobs

VOCAB, HIDDEN = 30, 8


def random_logits(rows: int) -> Tensor:
    return torch.randn((rows, VOCAB), generator=torch.Generator().manual_seed(rows)) * 3


def test_output_logprobs_are_the_log_softmax() -> None:
    logits, tokens = random_logits(3), torch.tensor([4, 29, 0])
    asked = [LogprobRow(0, 2), LogprobRow(5, 0, -1, [7, 3]), LogprobRow(9, 4, -1, [1])]
    measured = measure(logits, tokens, asked)
    expected = logits.double().log_softmax(-1)
    for row, entry in enumerate(measured.unpack(measured.packed)):
        assert entry.token_id == tokens[row]
        assert entry.logprob == pytest.approx(expected[row, entry.token_id].item(), abs=1e-5)
        best = expected[row].topk(asked[row].top)
        assert [token for token, _ in entry.top] == best.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-5)
        ids = asked[row].token_ids
        assert [token for token, _ in entry.chosen] == ids
        assert [value for _, value in entry.chosen] == pytest.approx(expected[row, ids].tolist(), abs=1e-5)


class Prompt:
    """A prompt of random hidden states and tokens, measured whole in float64."""

    def __init__(self, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn((length, HIDDEN), generator=generator)
        self.tokens = torch.randint(VOCAB, (length,), generator=generator)
        self.slot = seed

    def span(self, start: int, length: int, offset: int, wanted_from: int) -> PromptSpan:
        asked = LogprobRow(self.slot, 2, -1 if wanted_from >= start + length else max(wanted_from, start), [5])
        return PromptSpan(self.slot, start, offset, length, start + length == len(self.tokens), asked)

    def expected(self, wanted_from: int) -> list[float]:
        table = (self.hidden.double() @ HEAD.double()).log_softmax(-1)
        known = table[:-1].gather(1, self.tokens[1:].unsqueeze(1)).squeeze(1).tolist()
        return [math.nan, *known][wanted_from:]


HEAD = torch.randn((HIDDEN, VOCAB), generator=torch.Generator().manual_seed(99))


def head(states: Tensor) -> Tensor:
    assert states.shape[0] <= logprobs.CHUNK_ROWS
    return states @ HEAD


def run_chunked(prompts: list[tuple[Prompt, int]], chunk: int) -> dict[int, list[TokenLogprobs]]:
    """All prompts in steps of `chunk` tokens each, several prompts in a step."""
    measurer = PromptLogprobs(head)
    found: dict[int, list[TokenLogprobs]] = {}
    for start in range(0, max(len(prompt.tokens) for prompt, _ in prompts), chunk):
        hidden, tokens, spans, offset = [], [], [], 0
        for prompt, wanted_from in prompts:
            length = min(chunk, len(prompt.tokens) - start)
            if length > 0:
                hidden.append(prompt.hidden[start : start + length])
                tokens.append(prompt.tokens[start : start + length])
                spans.append(prompt.span(start, length, offset, wanted_from))
                offset += length
        measured = measurer.measure(torch.cat(hidden), torch.cat(tokens), spans)
        if measured is not None:
            for row, entries in measured.unpack(measured.measured.packed).items():
                found.setdefault(row, []).extend(entries)
    assert measurer.kept_slots == 0
    return found


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_prompt_logprobs_do_not_depend_on_the_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", 4)
    prompts = [(Prompt(17, 1), 0), (Prompt(9, 2), 6), (Prompt(1, 3), 0), (Prompt(12, 4), 7)]
    found = run_chunked(prompts, chunk)
    for prompt, wanted_from in prompts:
        entries = found[prompt.slot]
        assert [entry.token_id for entry in entries] == prompt.tokens[wanted_from:].tolist()
        values = [entry.logprob for entry in entries]
        assert values == pytest.approx(prompt.expected(wanted_from), abs=1e-5, nan_ok=True)
        assert all(
            len(entry.top) == 2 and entry.chosen[0][0] == 5 for entry in entries if entry.logprob == entry.logprob
        )


def test_a_slot_given_away_leaves_no_state_behind() -> None:
    old, new = Prompt(8, 5), Prompt(8, 5)
    measurer = PromptLogprobs(head)
    assert measurer.measure(old.hidden[:4], old.tokens[:4], [old.span(0, 4, 0, 8)]) is None
    measurer.forget(5)
    measured = measurer.measure(new.hidden[4:], new.tokens[4:], [new.span(4, 4, 0, 4)])
    assert measured is not None
    entries = measured.unpack(measured.measured.packed)[5]
    assert math.isnan(entries[0].logprob)
    assert [entry.logprob for entry in entries[1:]] == pytest.approx(new.expected(5), abs=1e-5)
