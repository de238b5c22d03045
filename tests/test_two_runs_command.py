"""
The command that would answer which of two runs is better: what it holds, and that it arrives unharmed.

python -m pytest tests/test_two_runs_command.py -q
"""

import json
import shlex

import pytest

from nanochat.config import read_config
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.any_run import find
from nanochat.lab.profiles import PROFILES
from nanochat.lab.report.conclusions import conclusions, next_lines, protocol_command
from scripts import protocol
from tests.ledger_case import record
from tests.two_runs_case import MIX, bank, pair, put


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger.csv"


def test_command_is_a_protocol_of_just_this_difference_on_new_seeds(base_dir, ledger):
    bank(ledger)
    a, b = pair(base_dir, ledger, *MIX, a={"values": (3.0, 2.9, 2.7)})
    command = next_lines(a, b, experiments.read(ledger))[-1]
    words = dict(word.split("=", 1) for word in shlex.split(command)[2:])
    assert shlex.split(command)[:2] == ["make", "protocol"]
    assert words["CANDIDATE"] == "--symplectic-gate --symplectic-gate-mix=0.05" and words["SEEDS"] == "1"
    common = shlex.split(words["FLAGS"])
    assert read_config([*common, "--seed=1", "--device-type=cpu", "--no-compile"]) == read_config(
        [*record_flags(), "--seed=1"])


def record_flags():
    return shlex.split(record(1)["command"])[3:]


def test_command_on_a_profile_names_only_what_the_profile_lacks(base_dir, ledger):
    home = PROFILES["smoke-cpu"].home(base_dir)
    flags = [flag for flag in PROFILES["smoke-cpu"].flags if not flag.startswith(("--save", "--keep"))]
    put(home, 1, *flags, run_id="a")
    put(home, 1, *flags, "--matrix-lr=0.03", run_id="b")
    a, b = find("a", base_dir, ledger), find("b", base_dir, ledger)
    command = next_lines(a, b, [])[-1]
    assert command == "make protocol LABEL=a-or-b PROFILE=smoke-cpu CANDIDATE=--matrix-lr=0.03 SEEDS=1 UNTIL=decided"


def test_other_code_becomes_an_arm_on_the_workload_of_a(base_dir, ledger):
    change = {"tree_hash": "0" * 64, "git_commit": "1" * 40}
    a, b = pair(base_dir, ledger, *MIX, "--max-seq-len=128", b={"change": change})
    tree, command = next_lines(a, b, [])
    assert tree == "git worktree add ../other 111111111111  # the code of B"
    words = shlex.split(command)
    assert words[0].endswith("python") and words[1:3] == ["-m", "scripts.protocol"]
    args = protocol.build_parser().parse_args(protocol.join_flag_values(words[3:]))
    assert args.arm == ["b: tree=../other flags='--symplectic-gate --symplectic-gate-mix=0.05'"]
    assert args.seeds == ["1"] and args.until == "decided"


def test_equal_recipes_are_a_matter_of_noise(base_dir, ledger):
    a, b = pair(base_dir, ledger)
    assert next_lines(a, b, [])[-1] == "make noise SEEDS=8"
    assert "Both ended at the same val_bpb to the last bit" in " ".join(conclusions(a, b, []))


def test_a_comparison_that_was_made_is_named(base_dir, ledger):
    for arm, flags in (("control", ()), ("gate", MIX)):
        made = json.loads((put(base_dir, 1, *flags, run_id=arm) / "run.json").read_text())
        experiments.append(ledger, experiments.row_of_record(made, [], label="mix", arm=arm))
    a, b = (find(f"row {i}", base_dir, ledger) for i in (1, 2))
    assert next_lines(a, b, [])[0].startswith("make gates LABEL=mix")


def test_value_with_a_blank_or_a_quote_arrives_as_it_was(base_dir, ledger):
    a, b = pair(base_dir, ledger, *MIX)
    for text in ("a b", "it's", 'say "$x"'):
        b.asked["window_pattern"] = text
        words = dict(word.split("=", 1) for word in shlex.split(protocol_command(a, b, ["window_pattern"], []))[2:])
        assert shlex.split(words["CANDIDATE"]) == [f"--window-pattern={text}"]
