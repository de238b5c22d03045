"""
The mechanism of options, on a dataclass that has nothing to do with training.

python -m pytest tests/test_options.py -q
"""

import argparse
import dataclasses
from dataclasses import dataclass

import pytest
from option_case import examples

from nanochat.checks import (
    Check,
    names_per_layer,
    non_negative,
    only,
    plain_name,
    positive,
    positive_or_minus_one,
    positive_rate,
    unit_interval,
)
from nanochat.options import (
    build_parser,
    check_options,
    declared,
    hashed,
    hyphenate,
    known_options,
    named_in,
    option,
    parse_command,
    parse_options,
    settle_spellings,
    spellings,
    tagged,
    to_argv,
    with_role,
)


@dataclass
class ServeOptions:
    port: int = option(8000, "port to listen on", check=positive, role="workload", tags="machine")
    top_p: float = option(0.9, "share of the probability to draw from", check=unit_interval)
    stream: bool = option(True, "send tokens as they come", aliases=("streaming",))
    log_file: str = option("", "where to log (empty = nowhere)", role="run", tags=("name", "cell"))
    log_level: str = option("info", "how much to log", choices=("info", "debug"), role="run", needs="log_file")
    head: str = option("plain", "which head", model=True)
    fast_head: bool = option(False, "the fast head", means=("head", "fast"))
    page_size: int = option(16, "tokens per page", role="workload", before=16)

    def __post_init__(self):
        settle_spellings(self)


def parsed(*argv) -> ServeOptions:
    return parse_options(ServeOptions, argv)


# -----------------------------------------------------------------------------
# Command lines

def test_options_of_any_dataclass_are_parsed():
    assert parsed() == ServeOptions()
    config = parsed("--port=80", "--top_p", "0.5", "--no-stream", "--log-file=a_b.log", "--log_level=debug")
    assert config == ServeOptions(port=80, top_p=0.5, stream=False, log_file="a_b.log", log_level="debug")
    assert parsed("--no-streaming") == parsed("--no_stream") == ServeOptions(stream=False)


@pytest.mark.parametrize("argv, message", [
    (["--prot=80"], "unknown flag --prot=80; did you mean --port?"),
    (["qqqq"], "unknown flag qqqq; --help lists them all"),
    (["--port=x"], "argument --port: invalid int value: 'x'"), (["--port"], "argument --port: expected one argument"),
    (["--port=0"], "--port=0: expected a positive number"), (["--top-p=nan"], "--top-p=nan: expected a finite number"),
    (["--log-level=debug"], "--log-level=debug: expected --log-file beside it: alone it changes nothing"),
    (["--log-level=all"], "argument --log-level: invalid choice: 'all'"),
    (["--help"], "unknown flag --help"), (["-h"], "-h")])
def test_bad_input_raises_one_line_and_never_exits(capsys, argv, message):
    with pytest.raises(ValueError) as refusal:
        parse_options(ServeOptions, argv)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert capsys.readouterr() == ("", "")


def test_only_a_command_prints_and_exits(capsys):
    assert parse_command(ServeOptions, ["--port=80"], "serve") == ServeOptions(port=80)
    for argv, code in ((["--port=0"], 2), (["--port=0", "--help"], 0), (["-h"], 0)):
        with pytest.raises(SystemExit) as stop:
            parse_command(ServeOptions, argv, "serve", "Serve a model.")
        out, err = capsys.readouterr()
        assert stop.value.code == code
        assert err == ("serve: error: --port=0: expected a positive number\n" if code else "")
        assert all(word in out for word in ("--no-stream", "port to listen on", "Serve a model.")) == (code == 0)


def test_another_check_takes_the_place_of_the_declared_ones():
    def refuse(config):
        raise ValueError(f"seen {config.port}")
    with pytest.raises(ValueError, match="seen -1"):
        parse_options(ServeOptions, ["--port=-1"], refuse)


def test_values_keep_their_underscores():
    words = ["--model_tag", "a_b", "--run=x_y", "-k_v", "p_q"]
    assert hyphenate(words) == ["--model-tag", "a_b", "--run=x_y", "-k_v", "p_q"]
    assert parsed("--log_file", "a_b").log_file == "a_b"


@pytest.mark.parametrize("name", declared(ServeOptions))
def test_every_option_has_an_example_and_comes_back_from_its_argv(name):
    company, value = examples(ServeOptions)[name]
    config = dataclasses.replace(ServeOptions(), **company, **{name: value})
    assert config != ServeOptions() and parsed(*to_argv(config)) == config and len(to_argv(config)) == 1 + len(company)


def test_a_command_line_of_another_version_is_read_as_far_as_it_is_known():
    values = known_options(ServeOptions, ["--port=-3", "--new-flag=1", "--no-stream", "--gone"])
    assert values == {**vars(ServeOptions()), "port": -3, "stream": False}
    with pytest.raises(ValueError, match="invalid int value"):
        known_options(ServeOptions, ["--port=many"])


def test_what_a_command_line_names():
    assert named_in(ServeOptions, ["--port", "1", "--no_streaming", "--x=--top-p"]) == {"port", "stream"}
    assert spellings(ServeOptions)["--no-streaming"] == "stream" and "--no-port" not in spellings(ServeOptions)


def test_boolean_flags_have_a_negation():
    for action in build_parser(ServeOptions)._actions:
        if isinstance(action, argparse.BooleanOptionalAction):
            assert any(word.startswith("--no-") for word in action.option_strings)


# -----------------------------------------------------------------------------
# Declarations

def test_adding_an_option_touches_one_line():
    """A new field is a flag, is checked, goes through to_argv and is hashed, with nothing else changed."""
    @dataclass
    class More(ServeOptions):
        brand_new: float = option(0.5, "something", role="workload", check=positive, tags="shape")
    config = parse_options(More, ["--brand_new=0.25"])
    assert config.brand_new == 0.25 and to_argv(config) == ["--brand-new=0.25"]
    assert hashed(config, "workload") == {"port": 8000, "brand_new": 0.25}
    assert tagged(declared(More), "shape") == ("brand_new",)
    with pytest.raises(ValueError, match="--brand-new=0.0: expected a positive number"):
        parse_options(More, ["--brand-new=0"])


def test_lists_are_queries():
    options = declared(ServeOptions)
    assert with_role(options, "run") == ("log_file", "log_level")
    assert with_role(options, "workload") == ("port", "page_size")
    assert tagged(options, "machine", "name") == ("port", "log_file") and tagged(options, "shape") == ()


@pytest.mark.parametrize("wrong", [dict(role="trial"), dict(tags="shap"), dict(tags=("name", "shap"))])
def test_a_word_that_is_misspelled_fails_where_it_is_declared(wrong):
    with pytest.raises(AssertionError):
        option(1, "help", **wrong)


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        declared(ServeOptions)["port"].role = "run"


def test_later_options_are_hashed_only_where_they_are_set():
    assert hashed(ServeOptions(), "workload") == {"port": 8000}
    assert hashed(ServeOptions(page_size=32), "workload") == {"port": 8000, "page_size": 32}

    @dataclass
    class Later(ServeOptions):
        page_size: int = option(32, "its default was changed", role="workload", before=16)
    assert hashed(Later(), "workload") == {"port": 8000, "page_size": 32}
    assert hashed(Later(page_size=16), "workload") == hashed(ServeOptions(), "workload")
    assert not {"log_file", "log_level"} & set(hashed(ServeOptions(), "workload", "treatment"))


def test_help_is_printed_after_a_bad_value_before_it_is_refused(capsys):
    """The lab asks so whether the trainer of another tree takes a value: --x=value --help."""
    bad = "--port=eighty"
    for argv, status in ((["--port=80", "--help"], 0), ([bad, "--help"], 2), (["--help", bad], 0)):
        with pytest.raises(SystemExit) as stop:
            parse_command(ServeOptions, argv)
        assert stop.value.code == status
        out, err = capsys.readouterr()
        assert ("usage" in out) == (status == 0) and ("eighty" in err) == (status == 2)


def test_a_default_that_a_switch_means_is_a_bug():
    @dataclass
    class Flipped:
        head: str = option("fast", "its default was changed")
        fast_head: bool = option(False, "now says nothing", means=("head", "fast"))
    with pytest.raises(AssertionError, match="drop --fast_head"):
        declared(Flipped)


def test_a_later_option_that_a_switch_says_is_not_hashed_whatever_its_default_becomes():
    @dataclass
    class Later:
        head: str = option("two", "plain before", before="plain")
        fast_head: bool = option(False, "the older spelling", means=("head", "fast"))

        def __post_init__(self):
            settle_spellings(self)
    assert hashed(Later(fast_head=True), "treatment") == {"fast_head": True}


def test_a_switch_that_means_another_option():
    assert parsed("--fast-head") == parsed("--head=fast") == ServeOptions(fast_head=True, head="fast")
    assert to_argv(ServeOptions(head="fast")) == ["--fast-head"] and to_argv(ServeOptions(head="x")) == ["--head=x"]
    assert hashed(ServeOptions(head="fast"), "treatment")["head"] == "plain"
    with pytest.raises(ValueError, match="--fast-head and --head are two spellings of one option: give one of them"):
        parsed("--fast-head", "--head=fast")
    with pytest.raises(ValueError, match="--head=x: expected fast, or no --fast-head"):
        check_options(ServeOptions(fast_head=True, head="x"))


@pytest.mark.parametrize("check, good, bad", [
    (positive, (1, 0.1), (0, -1)), (positive_rate, (1e-9,), (0.0, -0.1)), (non_negative, (0, 3.5), (-1, -0.01)),
    (unit_interval, (0, 0.5, 1), (-0.01, 1.01)), (positive_or_minus_one, (-1, 1, 0.5), (0, -2, -0.5)),
    (plain_name, ("a", "a_1"), ("", "a b", "a,b")), (names_per_layer, ("a", "a,b_2"), ("", "a,", ",a", "a b")),
    (only(3, "three"), (3,), (2, 4))], ids=lambda x: x.expected if isinstance(x, Check) else "")
def test_checks(check, good, bad):
    assert all(map(check.passes, good)) and not any(map(check.passes, bad)) and check.expected
