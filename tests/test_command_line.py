"""
What every command says of bad input: one printable line and exit code 2, whatever was typed.

python -m pytest tests/test_command_line.py -q
"""

import argparse
import sys

import pytest

from nanochat import dataset
from nanochat.command_line import MOST, Defaults, Parser, one_line
from scripts import base_loss, compare, gates, ledger, plot, protocol, runs, simulate_gates, tok_train

NASTY = ["a\nb", "\x1b[31mred", "\u202eabc", "\u2028x", "\udcff\udcfe", "9" * 100_000, "a\0b"]
COMMANDS = [(compare, "{}", "m"), (plot, "{}"), (plot, "m", "--out={}"), (gates, "--label={}"), (runs, "{}"),
            (ledger, "--where={}"), (ledger, "--last={}"), (simulate_gates, "--table={}"), (tok_train, "--doc-cap={}"),
            (protocol, "--profile=smoke-cpu", "--label={}", "--dry-run"), (dataset, "--from={}", "--name=x"),
            (base_loss, "--model-tag={}"), (base_loss, "--split={}")]


def outcome(command, argv) -> int:
    try:
        return command.main(argv)
    except SystemExit as e:
        return e.code


@pytest.mark.parametrize("word", NASTY, ids=map(ascii, [word[:8] for word in NASTY]))
@pytest.mark.parametrize("command, argv", [(c, argv) for c, *argv in COMMANDS],
                         ids=[f"{c.__name__} {' '.join(argv)}" for c, *argv in COMMANDS])
def test_line_is_one_and_printable(base_dir, tmp_path, monkeypatch, capsys, command, argv, word):
    monkeypatch.chdir(tmp_path)
    assert outcome(command, [a.format(word) for a in argv]) == 2
    err = capsys.readouterr().err
    assert err.endswith("\n") and err[:-1].isprintable() and len(err) < MOST + 100 and "error: " in err


@pytest.mark.parametrize("command, flag", [(compare, "--ledger"), (plot, "--out"), (simulate_gates, "--protocols"),
                                           (protocol, "--jobs"), (dataset, "--from"), (base_loss, "--step")])
def test_two_hyphens_are_no_value(capsys, command, flag):
    """argparse makes [] of them, which ended in a traceback far from there."""
    assert outcome(command, [f"{flag}=--", "m"]) == 2
    assert f"{flag}=: expected a value in place of --" in capsys.readouterr().err


def test_end_of_a_long_message_stays():
    line = one_line("x" * 5000 + "; do that")
    assert len(line) == MOST and line.startswith("xxx") and line.endswith("; do that") and " ... " in line
    assert one_line("paste:\n  make x\n\n") == "paste:\n  make x"
    assert one_line("\n  a\nb ") == "a b" and one_line("ä 日本") == "ä 日本" and len(one_line("\x1b" * 5000)) <= MOST


def test_other_words_are_left_to_argparse(monkeypatch):
    parser = Parser(prog="x")
    parser.add_argument("--a")
    parser.add_argument("b", nargs="*")
    monkeypatch.setattr(sys, "argv", ["x", "--a=-", "--", "--c"])
    assert vars(parser.parse_args()) == {"a": "-", "b": ["--c"]}
    assert isinstance(parser, argparse.ArgumentParser)


# -----------------------------------------------------------------------------
# The words of argparse, and --help

def parser():
    made = Parser(prog="demo", formatter_class=Defaults)
    made.add_argument("--seeds", type=int, default=8, help="number of runs")
    made.add_argument("--tag", help="a folder (default: the newest)")
    made.add_argument("--device", default="", help="empty = autodetect")
    made.add_argument("--kind", choices=("a", "b"), default="a")
    return made


@pytest.mark.parametrize("argv, message", [
    (["--seeds=abc"], "demo: error: argument --seeds: expected a whole number, got 'abc' (--help lists the options)\n"),
    (["--kind=c"], "invalid choice: 'c'"), (["--seed=1", "--x"], "unrecognized arguments: "),
])
def test_bad_input_is_one_line(argv, message, capsys):
    made = parser()
    made.allow_abbrev = False
    with pytest.raises(SystemExit) as stop:
        made.parse_args(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and message in err and err.count("\n") == 1 and not out


def test_each_default_is_said_once():
    said = " ".join(parser().format_help().split())
    assert "number of runs (default: 8)" in said and "(default: None)" not in said and "(default: )" not in said
    assert said.count("(default: the newest)") == 1


@pytest.mark.parametrize("argv", [["protocol", "--num-iterations=abc"], ["noise", "--run", "--seeds=1 2"],
                                  ["runs", "remove"], ["compare", "a"]])
def test_the_scripts_refuse_in_one_line(argv, capsys):
    module = __import__(f"scripts.{argv[0]}", fromlist=["main"])
    with pytest.raises(SystemExit) as stop:
        module.main(argv[1:])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and err.startswith(f"python -m scripts.{argv[0]}: error: ")
