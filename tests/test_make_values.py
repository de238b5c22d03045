"""
Values of make's variables: whatever they hold, they arrive as they are, and nothing in them runs.

python -m pytest tests/test_make_values.py -q
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.test_limits import tracked
from tests.test_makefile import ROOT, RULES, TEXT, variables_of

pytestmark = pytest.mark.skipif(not shutil.which("make") or os.name == "nt", reason="no make with a POSIX shell")


@pytest.fixture
def recorded(tmp_path):
    """make TARGET VARIABLES..., with a Python in a folder with a space that writes down its arguments."""
    python = tmp_path / "My Drive" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -c 'import json, sys; "
                      "print(json.dumps(sys.argv[1:]), file=open(sys.argv.pop(), \"a\"))' \"$@\" "
                      f"{shlex.quote(str(tmp_path / 'words'))}\n", encoding="utf-8")
    python.chmod(0o755)

    def make(target, *variables, **env):
        done = subprocess.run(["make", "-s", target, "SKIP_SETUP=1", f"PYTHON={python}", *variables], cwd=ROOT,
                              capture_output=True, encoding="utf-8", env={**os.environ, **env})
        lines = (tmp_path / "words").read_text(encoding="utf-8").splitlines() if (tmp_path / "words").exists() else []
        return done, json.loads(lines[-1])[:-1] if lines else None
    return make


VALUES = ["a$(shell touch {ran})", "a`touch {ran}`", "a; touch {ran}", "a' ; touch {ran} ; '", 'a" ; touch {ran} ; "',
          "$(eval X:=$(shell touch {ran}))", "${shell touch {ran}}", "cost$5", "$$", "$", "100%", "a#b", "a\\",
          "a,b)c(", "a  b  ", "it's", "&& touch {ran}", "a|touch {ran}", "$(MAKE)", "\u00e9 \U0001f600", "-n", "@true",
          "$(", "${"]


@pytest.mark.parametrize("by", ["command line", "environment"])
@pytest.mark.parametrize("value", VALUES)
def test_value_arrives_as_it_is_and_runs_nothing(recorded, tmp_path, value, by):
    value = value.replace("{ran}", str(tmp_path / "ran"))
    given = {"LABEL": value, "CANDIDATE": value}
    done, words = recorded("protocol", *(f"{k}={v}" for k, v in given.items() if by == "command line"),
                           **(given if by == "environment" else {}))
    assert done.returncode == 0, done.stderr
    assert words == ["-m", "scripts.protocol", f"--label={value}", f"--candidate={value}"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("target, variable", [("ledger", "LAST"), ("dataset", "N"), ("vram", "FLAGS"), ("tok", "VOCAB"),
                                              ("noise", "JOBS"), ("patch-check", "PATCH"), ("machines", "DTYPE"),
                                              ("protocol", "FRESH"), ("protocol", "AA"), ("cycle", "DRY_RUN")])
@pytest.mark.parametrize("value", ["1; touch {ran}", "1$(shell touch {ran})", "1`touch {ran}`"])
def test_no_variable_runs_anything(recorded, tmp_path, target, variable, value):
    recorded(target, f"{variable}={value.replace('{ran}', str(tmp_path / 'ran'))}")
    assert not (tmp_path / "ran").exists()


def test_python_may_be_named_from_the_home_folder(recorded, tmp_path):
    """bash expands PYTHON=~/bin/python on its command line; zsh and dash do not."""
    done, words = recorded("ledger", "PYTHON=~/My Drive/python", HOME=str(tmp_path))
    assert done.returncode == 0 and words == ["-m", "scripts.ledger", "--last=20"], done.stderr


def test_variable_that_the_makefile_does_not_know_runs_nothing(recorded, tmp_path):
    recorded("ledger", f"OTHER=$(shell touch {tmp_path / 'ran'})")
    assert not (tmp_path / "ran").exists()


def test_several_lines_become_one_and_flags_become_words(recorded):
    done, words = recorded("protocol", "CANDIDATE=--a=1\n--b=2", "LABEL=x")
    assert done.returncode == 0 and words[2:] == ["--label=x", "--candidate=--a=1 --b=2"]
    words = recorded("vram", "FLAGS=--depth=4  --x=*\n--y=$5")[1]
    assert words == ["-m", "scripts.vram", "--depth=4", "--x=*", "--y=$5"]


def test_every_variable_of_a_recipe_is_one_whose_value_is_taken_as_text():
    taken, = re.findall(r"^TAKEN = ((?:.*\\\n)*.*)$", TEXT, re.MULTILINE)
    used = set().union(*map(variables_of, RULES.values())) | {"PYTHON", "SKIP_SETUP", "OS"}
    assert used <= set(taken.replace("\\", " ").split()), used - set(taken.split())


def test_templates_get_the_values_too(recorded, tmp_path):
    """make lane-b runs a template, which reads the environment."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bash").write_text(f"#!/bin/sh\nprintf '%s|%s' \"$LABEL\" \"$SEEDS\" > {tmp_path}/seen\n",
                                           encoding="utf-8")
    (tmp_path / "bin" / "bash").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    recorded("lane-b", f"LABEL=a$(shell touch {tmp_path}/ran)b", PATH=path, SEEDS="1 $2")
    assert (tmp_path / "seen").read_text(encoding="utf-8") == f"a$(shell touch {tmp_path}/ran)b|1 $2"
    assert not (tmp_path / "ran").exists()


def test_checkout_in_a_folder_with_a_space(tmp_path):
    place = tmp_path / "My Drive" / "nanochat lab"
    for path in tracked() or pytest.skip("not a git checkout"):
        (place / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / path.relative_to(ROOT))
    env = {**os.environ, "NANOCHAT_LEDGER": str(tmp_path / "none.csv")}
    done = subprocess.run(["make", "-s", "ledger", "SKIP_SETUP=1", f"PYTHON={sys.executable}"], cwd=place,
                          capture_output=True, encoding="utf-8", env=env)
    assert done.returncode == 0, done.stderr
