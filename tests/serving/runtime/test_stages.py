"""The log of start-up's stages."""

from __future__ import annotations

import logging

import pytest

from baton_serving.runtime.stages import Stages


@pytest.mark.parametrize("shown", [True, False])
def test_each_stage_is_logged_with_its_time_if_asked_for(shown: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "baton_serving"):
        stages = Stages(shown)
        stages.over("loading")
        stages.over("warming up")
    names = [record.getMessage().split(" took ")[0] for record in caplog.records]
    assert names == (["start-up: loading", "start-up: warming up"] if shown else [])
