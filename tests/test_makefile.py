"""
The Makefile: what `make help` and the README list is there, and what is written on the command line arrives unharmed.

python -m pytest tests/test_makefile.py -q
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from test_runs import words_of

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Makefile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUPS = {name: targets.split() for name, targets in re.findall(r"^##@ (.+)\n\.PHONY: (.*)$", TEXT, re.MULTILINE)}
TARGETS = [target for targets in GROUPS.values() for target in targets]
RULES = dict(re.findall(r"^([a-z][\w-]*):.*\n((?:\t.*\n)*)", TEXT, re.MULTILINE))  # target: the lines of its recipe
HELP_COLUMNS = 100

pytestmark = pytest.mark.skipif(not shutil.which("make") or os.name == "nt", reason="no make with a POSIX shell")


def make(*args):
    return subprocess.run(["make", *args], cwd=ROOT, capture_output=True, text=True)


def would_run(*args):
    """Words of the last command that `make -n` prints."""
    result = make("-n", *args)
    assert result.returncode == 0, result.stderr
    return shlex.split(result.stdout.splitlines()[-1])


def test_help_lists_every_target_under_its_group():
    listed, group = {}, None
    for line in make("help").stdout.splitlines()[:-1]:  # the last line says where more is told
        if line.startswith("  "):
            listed[group].append(line.split()[0])
        else:
            group = line
            listed[group] = []
    assert listed == GROUPS
    assert make().stdout == make("help").stdout


def test_lines_of_help_fit_a_terminal():
    lines = make("help").stdout.splitlines()
    assert lines and [line for line in lines if len(line) > HELP_COLUMNS] == []


def test_every_rule_is_a_target_of_exactly_one_group():
    assert list(RULES) == TARGETS
    assert len(set(TARGETS)) == len(TARGETS) == len(re.findall(r"^[a-z][\w-]*:", TEXT, re.MULTILINE))
    assert TEXT.count("\n.PHONY:") == TEXT.count("\n##@ ") == len(GROUPS)


def variables_of(recipe: str) -> set[str]:
    """
    >>> sorted(variables_of("$(PY) -m scripts.x $(call option,--where,WHERE) --last=$(or $(LAST),20)"))
    ['LAST', 'WHERE']
    """
    return set(re.findall(r"(?:\$\(|,)([A-Z_]+)\)", recipe)) - {"PY", "SETUP"}


def test_the_table_of_the_readme_has_all_targets_with_their_variables():
    rows = dict(re.findall(r"^\| `make ([\w-]+)` \|(.*)$", README, re.MULTILINE))
    assert list(rows) == TARGETS
    for target, recipe in RULES.items():
        missing = variables_of(recipe) - set(re.findall(r"[A-Z_]+", rows[target]))
        assert not missing, f"make {target}: {missing}"


@pytest.mark.parametrize("target", TARGETS)
def test_target_exists(target):
    result = make("-n", target)
    assert result.returncode == 0, result.stderr


CALLS = re.findall(r"^(?:\t|SETUP = ).*-m ((?:nanochat|scripts)\.\w+)(.*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("module, rest", CALLS)
def test_command_calls_a_module_with_flags_that_it_has(module, rest):
    flags = set(re.findall(r"--[a-z][a-z-]*", rest))
    assert flags <= words_of(module), f"{module}: {flags - words_of(module)}"


def test_protocol_passes_each_variable_as_one_word():
    candidate = "it's: --symplectic-gate --symplectic-gate-mix=0.05 --run='a b' \"c\""
    words = would_run("protocol", "SEEDS=1337 2026", "NUM_ITERATIONS=64", "LABEL=mix005", f"CANDIDATE={candidate}",
                      "FRESH=1", "PROFILE=smoke-cpu", "FLAGS=--depth=4 --no-compile")
    assert words[1:] == [
        "-m", "scripts.protocol", "--profile=smoke-cpu", "--label=mix005", "--seeds=1337 2026", "--num-iterations=64",
        "--flags=--depth=4 --no-compile", f"--candidate={candidate}", "--fresh"]


def test_noise_counts_seeds_and_ledger_shows_the_newest():
    assert would_run("noise", "SEEDS=8", "FLAGS=--depth=4 --no-compile", "FRESH=1")[1:] == [
        "-m", "scripts.noise", "--run", "--seeds=8", "--flags=--depth=4 --no-compile", "--fresh"]
    assert would_run("noise")[1:] == ["-m", "scripts.noise", "--run"]
    assert would_run("ledger")[1:] == ["-m", "scripts.ledger", "--last=20"]
    assert would_run("ledger", "LAST=5", "WHERE=label=noise")[1:] == [
        "-m", "scripts.ledger", "--last=5", "--where=label=noise"]


@pytest.mark.parametrize("target", ["protocol", "noise", "miniseries", "cycle"])
def test_data_is_one_word_of_every_comparison(target):
    assert "--data=my texts" in would_run(target, "DATA=my texts", "PROFILE=smoke-cpu")


def test_variables_that_are_not_given_leave_no_flag():
    assert would_run("protocol")[1:] == ["-m", "scripts.protocol"]
    assert would_run("smoke")[1:] == ["-m", "scripts.smoke"] and would_run("smoke", "FRESH=1")[-1] == "--fresh"
    assert would_run("dataset")[1:] == ["-m", "nanochat.dataset", "--num-files=8"]
    assert would_run("dataset", "FROM=my text", "NAME=mine")[1:] == [
        "-m", "nanochat.dataset", "--from=my text", "--name=mine"]


def test_skip_setup_makes_no_environment():
    commands = make("-n", "smoke", "SKIP_SETUP=1", "PYTHON=my-python").stdout.splitlines()
    assert list(map(shlex.split, commands)) == [["true"], ["my-python", "-m", "scripts.smoke"]]
    assert "scripts.setup --dev" in make("-n", "test").stdout


def test_make_test_and_make_test_slow_share_the_tests_out():
    assert would_run("test")[-1] == "not slow and not gpu"
    assert would_run("test-slow")[-1] == "slow and not gpu"


def test_make_commands_of_the_readme_name_targets():
    commands = re.findall(r"(?:^|`|&& )(?:\$ )?make ([a-z][\w-]*)", README, re.MULTILINE)
    assert commands and set(commands) <= set(TARGETS), set(commands) - set(TARGETS)
