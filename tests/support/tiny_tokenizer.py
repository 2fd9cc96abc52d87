"""A small byte-level BPE with a chat template, trained on the spot."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from baton_serving.runtime.tokenizer import Tokenizer as BatonTokenizer
from baton_serving.runtime.tokenizer import vocabulary_of

CORPUS = (
    "hello world, how are you today? the quick brown fox jumps over the lazy dog. ",
    "the code for amber is 4711 and the code for teal is 12. one two three four five. ",
    "naïve café déjà vu — ✓ 你好世界 emoji 😀😃👩‍👩‍👧 and more text to merge. ",
)
END = "<|end|>"
START = "<|start|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def train(vocab_size: int = 420) -> PreTrainedTokenizerFast:
    """Trains afresh: milliseconds."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@cache
def tiny_tokenizer() -> BatonTokenizer:
    """One for the whole test run; nothing in it changes."""
    hf = train()
    return BatonTokenizer(hf, vocabulary_of(hf))


def save(folder: Path) -> Path:
    """The tokenizer's files, as a checkpoint folder has them."""
    train().save_pretrained(folder)
    return folder
