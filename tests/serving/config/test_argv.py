from __future__ import annotations

import pytest

from baton_serving.config import ServerConfig, add_arguments, config_from_args, config_from_values
from baton_serving.config.parser import OneLineParser
from baton_serving.errors import ConfigError


def parse(*argv: str) -> ServerConfig:
    parser = OneLineParser("baton serve", "")
    add_arguments(parser)
    return config_from_args(parser.parse(argv))


def complaint(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_nothing_typed_gives_the_defaults() -> None:
    assert parse() == ServerConfig()


def test_all_spellings_of_a_flag_set_its_field() -> None:
    for name in ("--tensor-parallel-size", "--tp-size", "--tp"):
        assert parse(name, "2").runtime.tp_size == 2
        assert parse(f"{name}=2").runtime.tp_size == 2


def test_each_kind_of_value() -> None:
    config = parse("--model", "m", "--mem-fraction-static", "0.5", "--disable-radix-cache", "--cuda-graph-bs", "1", "4")
    assert config.model.model_path == "m"
    assert config.memory.mem_fraction_static == 0.5
    assert config.optimization.disable_radix_cache is True
    assert config.optimization.cuda_graph_bs == (1, 4)
    assert parse("--chunked-prefill-size", "-1").memory.chunked_prefill_size == -1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--modle-path", "m"), "unknown flag --modle-path; did you mean --model-path?"),
        (("--page-sise=16",), "unknown flag --page-sise; did you mean --page-size?"),
        (("--enable-loar",), "unknown flag --enable-loar; did you mean --enable-lora?"),
        (("--xyzzy",), "unknown flag --xyzzy; see baton serve --help"),
        (("--model", "m", "stray"), "unexpected argument 'stray' (see baton serve --help)"),
        (("--page", "16"), "unknown flag --page; did you mean --page-size?"),
        (("--port", "http"), "--port: invalid int value: 'http' (see baton serve --help)"),
        (("--port",), "--port: expected one argument (see baton serve --help)"),
        (("--schedule-policy", "sjf"), "--schedule-policy: 'sjf' is not one of lpm, random, fcfs, dfs-weight, lof"),
        (("--log-requests-level", "4"), "--log-requests-level: 4 is not one of 0, 1, 2, 3"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(argv: tuple[str, ...], message: str) -> None:
    assert complaint(*argv) == message


def test_values_from_a_program_are_checked_alike() -> None:
    assert config_from_values({"model_path": "m", "tp_size": 2, "cuda_graph_bs": [1, 2]}) == parse(
        "--model-path", "m", "--tp", "2", "--cuda-graph-bs", "1", "2"
    )
    for values, message in (
        ({"tpsize": 2}, "unknown option tpsize; did you mean tp_size?"),
        ({"tp_size": "2"}, "--tensor-parallel-size: '2' is not of type int"),
        ({"tp_size": True}, "--tensor-parallel-size: True is not of type int"),
        ({"port": 1.5}, "--port: 1.5 is not of type int"),
        ({"disable_radix_cache": 1}, "--disable-radix-cache: 1 is not of type bool"),
        ({"port": None}, "--port: None is not of type int"),
        ({"cuda_graph_bs": [1, "2"]}, "--cuda-graph-bs: '2' is not of type int"),
    ):
        with pytest.raises(ConfigError) as caught:
            config_from_values(values)
        assert caught.value.message == message


def test_a_whole_number_will_do_where_a_float_is_wanted() -> None:
    assert config_from_values({"watchdog_timeout": 60}).runtime.watchdog_timeout == 60


def test_help_names_every_option_and_no_refused_flag() -> None:
    parser = OneLineParser("baton serve", "Serve.")
    add_arguments(parser)
    text = parser.format_help()
    assert "--model-path" in text
    assert "--disaggregation-verify" in text
    assert "--enable-lora" not in text
    assert "trtllm_mla" not in text
