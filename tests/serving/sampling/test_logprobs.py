import pytest
import torch
from torch import Tensor

from baton_serving.sampling import logprobs
from baton_serving.sampling.logprobs import measure, measure_prompts
from baton_serving.sampling.params import LogprobRow

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


HEAD = torch.randn((HIDDEN, VOCAB), generator=torch.Generator().manual_seed(99))


@pytest.mark.parametrize("count", [1, 4, 11])
def test_prompt_logprobs_are_measured_in_bounded_chunks(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", 4)
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn((count, HIDDEN), generator=generator)
    targets = torch.randint(VOCAB, (count,), generator=generator)
    seen: list[int] = []

    def head(states: Tensor) -> Tensor:
        seen.append(states.shape[0])
        return states @ HEAD

    asked = [LogprobRow(index % 3, 2, 1, [5]) for index in range(count)]
    measured = measure_prompts(head, hidden, targets, asked)
    expected = (hidden.double() @ HEAD.double()).log_softmax(-1)
    entries = measured.unpack(measured.packed)
    assert max(seen) <= 4
    assert sum(seen) == count
    assert [entry.token_id for entry in entries] == targets.tolist()
    for row, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(expected[row, entry.token_id].item(), abs=1e-5)
        ((chosen, value),) = entry.chosen
        assert chosen == 5
        assert value == pytest.approx(expected[row, 5].item(), abs=1e-5)
        assert [token for token, _ in entry.top] == expected[row].topk(2).indices.tolist()
