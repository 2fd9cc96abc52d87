"""The native routes' bodies, named as SGLang names them."""

from __future__ import annotations

from typing import Any

import msgspec

from baton_serving.api.protocol.common import CommonFields


class GenerateBody(CommonFields, kw_only=True):
    """`/generate`: either `text` or `input_ids`; a list of either is a batch, lists elsewhere have an item for each."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    stream: bool | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None
    token_ids_logprob: list[int | list[int]] | None = None
    return_text_in_logprobs: bool | None = None


class AbortBody(msgspec.Struct):
    rid: str = ""
    abort_all: bool = False


class MoveBody(msgspec.Struct):
    """`transfer_id` and `attempt` name the transfer by which another worker takes choice `choice` of `rid` over.

    `withdraw`: nobody will, after all.
    """

    rid: str
    transfer_id: str
    choice: int = 0
    attempt: int = 0
    withdraw: bool = False


class TokenizeBody(msgspec.Struct):
    prompt: str | list[str]
    add_special_tokens: bool = True


class DetokenizeBody(msgspec.Struct):
    tokens: list[int | list[int]]
    skip_special_tokens: bool = True
