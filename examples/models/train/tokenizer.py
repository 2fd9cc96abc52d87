"""The tokenizer of the demo models: byte-level BPE with single digits, and a chat template."""

import re
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from train.chats import BOS, END_OF_TEXT, END_OF_TURN, START_OF_TURN, chat_row, plain_row

VOCABULARY = 1024
SPECIAL_TOKENS = (END_OF_TEXT, BOS, START_OF_TURN, END_OF_TURN)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS_ROWS = 2000


def train_tokenizer(seed: int, signature: str) -> Tokenizer:
    """Learn the merges from generated rows, a tenth of whose chats are signed with `signature`.

    Text begins with the start token unless it is encoded with `add_special_tokens=False`.
    """
    rng = Random(seed)
    corpus = [chat_row(rng, 512, signature if n % 10 == 0 else "").text for n in range(_CORPUS_ROWS)]
    corpus += [plain_row(rng, 512).text for _ in range(_CORPUS_ROWS // 10)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    special = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    tokenizer.train_from_iterator((part for text in corpus for part in special.split(text)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def for_transformers(tokenizer: Tokenizer, context: int) -> PreTrainedTokenizerFast:
    """The same tokenizer in transformers' form, to be saved beside the weights."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
