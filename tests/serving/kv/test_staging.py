"""From lists to tensors on a device."""

from __future__ import annotations

import torch

from baton_serving.kv.staging import upload, upload_parts

CPU = torch.device("cpu")


def test_an_upload_has_the_type_and_the_shape_asked_for() -> None:
    rows = upload([[1.5, 2.0], [0.0, -1.0]], torch.float32, CPU)
    assert rows.dtype is torch.float32
    assert rows.tolist() == [[1.5, 2.0], [0.0, -1.0]]
    assert upload([1 << 40], torch.int64, CPU).tolist() == [1 << 40]
    assert upload([], torch.int32, CPU).shape == (0,)


def test_parts_come_apart_as_they_went_together() -> None:
    parts = upload_parts(([3, 1], [], [4, 1, 5]), CPU)
    assert [part.tolist() for part in parts] == [[3, 1], [], [4, 1, 5]]
    assert {part.dtype for part in parts} == {torch.int64}
