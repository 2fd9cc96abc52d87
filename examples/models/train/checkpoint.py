"""A checkpoint as a partner in chat: model and tokenizer together, opened, asked and saved through transformers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from train.chats import END_OF_TEXT
from train.heldout import Message
from train.tokenizer import for_transformers

REPLY_TOKENS = 48


class Checkpoint:
    """A stored model and its tokenizer."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.name = path.name
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        self.model = model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps away the signature of .to
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")

    @classmethod
    def save(cls, path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> Self:
        """Write bfloat16 weights, configuration, tokenizer and chat template to `path`, and open what was written."""
        stored = LlamaForCausalLM(model.config).bfloat16()
        stored.load_state_dict(model.state_dict())
        config = model.config
        stored.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        stored.save_pretrained(path)
        for_transformers(tokenizer, config.max_position_embeddings).save_pretrained(path, save_jinja_files=False)
        return cls(path, torch.bfloat16, model.device.type)

    @torch.inference_mode()
    def replies(self, chats: Sequence[list[Message]], *, batch: int, tokens: int = REPLY_TOKENS) -> Iterator[str]:
        """Greedy replies in order, each with the end-of-turn token if it was reached within `tokens` tokens."""
        for start in range(0, len(chats), batch):
            prompts = [
                str(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
                for chat in chats[start : start + batch]
            ]
            inputs = self.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            output = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
            for row in self.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :]):
                yield row.replace(END_OF_TEXT, "")
