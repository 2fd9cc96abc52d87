"""A decoder's weights in host memory while their device memory is lent out."""

from __future__ import annotations

import torch
from torch import nn

from baton_serving.errors import ConfigError


class LentWeights:
    """The parameters of `model`, which keep their identity: only the storage behind them goes and comes back."""

    def __init__(self, model: object) -> None:
        if not isinstance(model, nn.Module) or not all(parameter.is_cuda for parameter in model.parameters()):
            raise ConfigError("these weights are not on a GPU: there is no device memory of theirs to release")
        self._parameters = list(model.parameters())
        self._kept: list[torch.Tensor] = []

    @property
    def size_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self._parameters)

    def release(self) -> None:
        """Copy them to host memory and free their storage."""
        for parameter in self._parameters:
            self._kept.append(
                torch.empty(parameter.shape, dtype=parameter.dtype, pin_memory=True).copy_(parameter.data)
            )
        for parameter in self._parameters:
            parameter.data.untyped_storage().resize_(0)
        torch.cuda.empty_cache()

    def restore(self) -> None:
        """Allocate the storage again and copy them back; its address may be another."""
        for parameter, kept in zip(self._parameters, self._kept, strict=True):
            parameter.data.untyped_storage().resize_(kept.nbytes)
            parameter.data.copy_(kept)
        self._kept.clear()
