"""Where new weights come from, as processes of a worker tell each other."""

from __future__ import annotations

import msgspec


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """A whole tensor by its Hugging Face name."""

    name: str
    dtype: str
    shape: list[int]


class WeightSource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where new weights come from: the checkpoint `path` (a folder, or a name on the hub in `revision`), some tensors
    in the safetensors `file`, or `tensors` broadcast by rank 0 of `group`. For ranks on other nodes its `content`
    comes along.
    """

    path: str = ""
    revision: str | None = None
    load_format: str = "auto"
    file: str = ""
    content: bytes = b""
    group: str = ""
    tensors: list[TensorSpec] = []
