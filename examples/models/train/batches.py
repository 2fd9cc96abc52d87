"""Batches of token ids and loss weights, made in background processes, each from its own number and the seed."""

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from torch.utils.data import DataLoader, Dataset

from train.chats import Row, chat_row, plain_row

PAD, CONTEXT, ANSWER = 0, 1, 2
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Phase:
    """`steps` optimizer steps on rows of `length` tokens."""

    steps: int
    length: int


class Batches(Dataset[Batch]):
    """All batches of a run, in order. Item n is `(ids, marks)`, int16 and uint8, both [rows, length].

    A mark says what a token is to the loss: PAD, CONTEXT or ANSWER.
    """

    def __init__(self, tokenizer: Tokenizer, phases: list[Phase], tokens: int, seed: int, signature: str) -> None:
        self._tokenizer = tokenizer
        self._lengths = [phase.length for phase in phases for _ in range(phase.steps)]
        self._tokens = tokens
        self._seed = seed
        self._signature = signature

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Batch:
        rng = Random(f"{self._seed}/{index}")
        length = self._lengths[index]
        rows = [self._draw(rng, length) for _ in range(self._tokens // length)]
        encodings = self._tokenizer.encode_batch([row.text for row in rows], add_special_tokens=False)
        ids = np.zeros((len(rows), length), dtype=np.int16)
        marks = np.full((len(rows), length), PAD, dtype=np.uint8)
        for n, (row, encoding) in enumerate(zip(rows, encodings, strict=True)):
            kept = min(length, len(encoding))
            ids[n, :kept] = encoding.ids[:kept]
            marks[n, :kept] = mark(row, encoding)[:kept]
        return torch.from_numpy(ids), torch.from_numpy(marks)

    def _draw(self, rng: Random, length: int) -> Row:
        return plain_row(rng, length) if rng.random() < 0.08 else chat_row(rng, length, self._signature)


def mark(row: Row, encoding: Encoding) -> NDArray[np.uint8]:
    """ANSWER for every token that begins inside one of the row's answers, CONTEXT for the others."""
    starts = np.fromiter((start for start, _ in encoding.offsets), dtype=np.int64, count=len(encoding))
    spans = np.array(row.answers, dtype=np.int64)
    span = np.searchsorted(spans[:, 0], starts, side="right") - 1
    inside = (span >= 0) & (starts < spans[span, 1])
    return np.where(inside, ANSWER, CONTEXT).astype(np.uint8)


def load(batches: Batches, workers: int) -> DataLoader[Batch]:
    """A loader that hands the batches out in order; 0 workers make them in the calling process."""
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
