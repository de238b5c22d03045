"""
Commands that are given a number with too many zeros, or no number: exit code 2 and one short line, at once.

python -m pytest tests/test_absurd_numbers.py -q
"""

from time import process_time

import pytest

from nanochat import dataset
from nanochat.lab.arms import parse_depths, parse_seeds
from scripts import arch, cycle, lane_b_stats, miniseries, noise, protocol, runs, simulate_gates, tok_train

SHORT = 500  # letters of a message
SMALL = ("--profile=smoke-cpu",)
CASES = [
    (arch, ["--budget=1000000000000000000"], "--budget=1e+18"), (arch, ["--budget=1e300"], "--budget"),
    (arch, ["--budget=nan"], "--budget=nan"), (arch, ["--budget=1e6", "--tolerance=10000000000"], "--tolerance"),
    (arch, ["--depths=2,1000000000"], "--depths=2,1000000000"), (arch, ["--depths=" + "9" * 5000], "--depths"),
    (arch, ["--vocab-size=100000000000"], "--vocab-size"), (arch, ["--ratio=" + "1:" * 3000], "--ratio"),
    (arch, ["--ratio=1:1e9:1", "--depths=2", "--head-dim=4096"], "no width up to 1,048,576 has it at depth 2"),
    (arch, ["--budget=1e9", "--tolerance=1", "--head-dim=2", "--depths=2"], "shapes are within 100%"),
    (protocol, [*SMALL, "--until=decided", "--max-seeds=100000000000"], "--max-seeds=100000000000: expected at most"),
    (protocol, [*SMALL, "--seeds", "9223372036854775808"], "9223372036854775808 is too large"),
    (protocol, [*SMALL, "--seeds", "9" * 5000], "is too large"),
    (protocol, [*SMALL, "--seeds", "x" * 5000], "is not a whole number"),
    (protocol, [*SMALL, "--num-iterations=1000000000000000000"], "--num-iterations=1000000000000000000"),
    (protocol, [*SMALL, "--candidate=--depth=1000000000"], "arm candidate: --depth=1000000000"),
    (noise, ["--run", *SMALL, "--seeds=10000000000"], "--seeds=10000000000: expected at most"),
    (noise, ["--run", *SMALL, "--seeds=-1"], "--seeds=-1: expected 2 or more"),
    (noise, ["--run", *SMALL, "--jobs=1" + "0" * 400], "--jobs=10000"),
    (protocol, [*SMALL, "--seeds", "1", "2", "--jobs=10000000000"], "--jobs=10000000000: expected 1 or more, at most"),
    (miniseries, ["--dry-run", "--depths=1000000000"], "--depths 1000000000"),
    (miniseries, ["--dry-run", "--noise-seeds=10000000000"], "--seeds=10000000000"),
    (cycle, ["--dry-run", *SMALL, "--label=" + "x" * 260], "expected at most 100 letters"),
    (miniseries, ["--dry-run", *SMALL, "--label=" + "x" * 260], "expected at most 100 letters"),
    (cycle, ["--dry-run", *SMALL, "--noise-seeds=-5"], "--seeds=-5"),
    (cycle, ["--dry-run", *SMALL, "--depths", "0"], "at least one layer"),
    (cycle, ["--dry-run", *SMALL, "--ratios", "nan"], "--ratios: 'nan'"),
    (cycle, ["--dry-run", *SMALL, "--ratios", "1e300"], "--ratios: '1e300'"),
    (cycle, ["--dry-run", *SMALL, "--ratios", ""], "--ratios: ''"),
    (tok_train, ["--vocab-size=10000000000"], "--vocab-size=10000000000: expected at most 1,048,576"),
    (lane_b_stats, ["--tokens=x.npy", "--workers=10000000000"], "--workers=10000000000: expected at most 1,024"),
    (lane_b_stats, ["--tokens=x.npy", "--top-k=1000000"], "--top-k=1000000: expected at most 16,384"),
    (lane_b_stats, ["--tokens=x.npy", "--bootstrap=1000000000000"], "--bootstrap"),
    (runs, ["prune", "--older-than=inf"], "--older-than=inf"),
]


@pytest.mark.parametrize("command, argv, named", CASES,
                         ids=[f"{c.__name__.split('.')[1]} {' '.join(argv)[-40:]}" for c, argv, _ in CASES])
def test_one_short_line_at_once(base_dir, tmp_path, monkeypatch, capsys, command, argv, named):
    monkeypatch.chdir(tmp_path)
    started = process_time()
    try:
        code = command.main(argv)
    except SystemExit as e:
        code = e.code
    err = capsys.readouterr().err
    assert code == 2 and named in err and err.count("\n") == 1 and len(err) <= SHORT
    assert process_time() - started < 10  # importing torch takes a part of it


@pytest.mark.parametrize("flag", ["--protocols=10000000000000", "--seed=-1", "--seed=1" + "0" * 30])
def test_simulation_refuses_before_it_prints(capsys, flag):
    with pytest.raises(SystemExit, match="2"):
        simulate_gates.main([flag])
    out, err = capsys.readouterr()
    assert not out and flag.partition("=")[0] in err.splitlines()[-1]


def test_address_of_a_mirror_is_one(base_dir, capsys):
    assert dataset.main(["-n", "1", "--base-url=nowhere"]) == 2
    assert "--base-url=nowhere: expected an address that begins with https://" in capsys.readouterr().err


def test_lists_of_numbers_are_read_as_before():
    assert parse_seeds(["1 2", "3"]) == [1, 2, 3] and parse_seeds([str(10 ** 18)]) == [10 ** 18]
    assert parse_depths(["1000", "1"]) == [1000, 1]
