"""What a mistyped command and --help print."""

import pytest

from nanochat.command_line import Defaults, Parser


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
