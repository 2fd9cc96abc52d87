import pytest
import torch

from baton_serving.errors import ConfigError
from baton_serving.sampling.processors import apply_processor, disallowed_tokens, load_processors


def test_processors_are_loaded_by_name() -> None:
    loaded = load_processors(["mine=baton_serving.sampling.processors:disallowed_tokens"])
    assert loaded == {"disallowed_tokens": disallowed_tokens, "mine": disallowed_tokens}


@pytest.mark.parametrize(
    "spec", ["", "mine", "mine=", "mine=json", "=json:dumps", "mine=no_such_module:f", "mine=json:no", "mine=math:pi"]
)
def test_a_spec_that_names_no_function_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="custom logit processor"):
        load_processors([spec])


def test_disallowed_tokens_ignores_what_is_no_token() -> None:
    logits = disallowed_tokens(
        torch.zeros((3, 6)), [{"token_ids": [1, 4, 99, -1, "x"]}, {}, {"token_ids": "everything"}]
    )
    assert [torch.isinf(row).nonzero().flatten().tolist() for row in logits] == [[1, 4], [], []]


def test_a_processor_that_raises_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert apply_processor("mine", lambda logits, params: logits / params[5]["x"], torch.zeros((1, 2)), [{}]) is None  # type: ignore[operator]
    assert "mine" in caplog.text
