"""The shape of the demo models, and their loss on a batch."""

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from train.batches import ANSWER, CONTEXT, PAD
from train.tokenizer import SPECIAL_TOKENS

CONTEXT_LENGTH = 4096
_CONTEXT_WEIGHT = 0.05


def build(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A freshly initialised model in float32. Its four KV heads split evenly over 1, 2 and 4 ranks."""
    # The tokenizer's trainer numbers the special tokens first, in their order.
    end_of_text, start, _, end_of_turn = range(len(SPECIAL_TOKENS))
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT_LENGTH,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=start,
        eos_token_id=[end_of_turn, end_of_text],
        pad_token_id=end_of_text,
    )
    return LlamaForCausalLM(config)


def hidden_states(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Last hidden states [rows, length, hidden] of rows without padding in front: plain causal attention, no cache."""
    body = model.model
    hidden = body.embed_tokens(ids).to(torch.bfloat16 if ids.is_cuda else torch.float32)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    rotary = body.rotary_emb(hidden, position_ids=positions)
    for layer in body.layers:
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, position_ids=positions)
    normed: Tensor = body.norm(hidden)
    return normed


def answer_loss(hidden: Tensor, output: Tensor, ids: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean cross entropy of the next token, and the share of answer tokens whose best guess is right.

    `output` is the output matrix [vocabulary, hidden]; ids and marks are [rows, length]. Answers count fully,
    context a little, which speeds up learning to look back.
    """
    logits = nn.functional.linear(hidden, output.to(hidden.dtype)).float()
    # Every position predicts its right neighbour; the last one has none, so what rolls round to it does not count.
    targets, marks = ids.roll(-1, dims=1), marks.roll(-1, dims=1)
    marks[:, -1] = PAD
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    answers = marks == ANSWER
    weights = answers + _CONTEXT_WEIGHT * (marks == CONTEXT)
    right = ((logits.argmax(-1) == targets) & answers).sum() / answers.sum()
    return (losses * weights).sum() / weights.sum(), right
