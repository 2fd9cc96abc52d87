"""What transformers answers, in float32: the yardstick for our own worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList

TOLERANCE = 2e-4


class Reference:
    """A checkpoint as transformers runs it, eagerly and without a batch, so that nothing depends on company."""

    def __init__(self, path: Path) -> None:
        factory: Any = AutoModelForCausalLM
        self.model = factory.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        self.model.generation_config.eos_token_id = None  # answers have the length that was asked for
        self._greedy: dict[tuple[tuple[int, ...], int], list[int]] = {}

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], new_tokens: int, processors: Sequence[Any] = ()) -> list[int]:
        """`generate` without sampling: exactly `new_tokens` tokens."""
        known = self._greedy.get((tuple(prompt), new_tokens))
        if known is not None and not processors:
            return known
        ids = torch.tensor([list(prompt)])
        answer = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            logits_processor=LogitsProcessorList(processors),
        )
        tokens: list[int] = answer[0, len(prompt) :].tolist()
        if not processors:
            self._greedy[tuple(prompt), new_tokens] = tokens
        return tokens

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Float32 `[tokens, vocab]`: row i predicts token i + 1."""
        logits: torch.Tensor = self.model(torch.tensor([list(tokens)])).logits[0]
        return logits

    def logprobs(self, tokens: Sequence[int]) -> torch.Tensor:
        """Log-softmax of `logits`."""
        return self.logits(tokens).log_softmax(-1)

    def assert_greedy(self, prompt: Sequence[int], tokens: Sequence[int], new_tokens: int) -> None:
        """`tokens` are what `generate` says, but where the two best logits are closer than the tolerance.

        From such a place on both answers are right in their own way: then every token of ours must be a best one
        after the tokens of ours before it.
        """
        wanted = self.greedy(prompt, new_tokens)
        assert len(tokens) == new_tokens
        if list(tokens) == wanted:
            return
        logits = self.logits([*prompt, *tokens])[len(prompt) - 1 : -1]
        behind = logits.max(-1).values - logits.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
        worst = int(behind.argmax())
        assert behind[worst] < TOLERANCE, (
            f"prompt of {len(prompt)}: token {worst} is {tokens[worst]}, {behind[worst]:.2g} behind the best logit; "
            f"got {list(tokens)}, transformers says {wanted}"
        )
