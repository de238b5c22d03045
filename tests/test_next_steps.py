"""
Lines that a run prints as a next step: they can be pasted, and have what the next command needs.

python -m pytest tests/test_next_steps.py -q
"""

import shlex
import sys

import pytest

from nanochat.common import REPO_ROOT, VENV_PYTHON
from nanochat.lab import commands
from nanochat.lab.commands import complete, noise_line, paste


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path):
    """In the repository's root, on the Python of its .venv, with a base dir whose path needs quotes."""
    monkeypatch.chdir(REPO_ROOT)
    monkeypatch.setattr(sys, "prefix", str(REPO_ROOT / ".venv"))
    for name in commands.CARRIED:
        monkeypatch.delenv(name, raising=False)


def test_command_is_quoted_and_has_base_dir_ledger_and_python(monkeypatch):
    command = ["python", "-m", "scripts.protocol", "--label=x", "--candidate=a b: --symplectic-gate"]
    assert paste(command) == f"{VENV_PYTHON} -m scripts.protocol --label=x '--candidate=a b: --symplectic-gate'"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "/my disk/base")
    monkeypatch.setenv("NANOCHAT_LEDGER", "/l.csv")
    assert paste(command).startswith(f"NANOCHAT_BASE_DIR='/my disk/base' NANOCHAT_LEDGER=/l.csv {VENV_PYTHON} -m ")


def test_python_is_a_whole_path_where_the_short_one_leads_nowhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shlex.split(paste(["python", "-m", "x"])) == [sys.executable, "-m", "x"]


def test_template_is_told_the_python_that_has_no_venv(monkeypatch, tmp_path):
    assert paste(["bash", "runs/x.sh"], {"LABEL": "a b"}) == "LABEL='a b' bash runs/x.sh"
    monkeypatch.setattr(sys, "prefix", "/elsewhere")
    assert "SKIP_SETUP=1 PATH=" in paste(["bash", "runs/x.sh"])


def test_bank_is_advised_with_make_where_make_is_and_with_python_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(commands.shutil, "which", lambda name: f"/usr/bin/{name}")
    options = ["--profile=smoke-cpu", "--data=mine", "--flags=--num-iterations=64 --dtype=float32"]
    assert noise_line(8, options) == ("make noise SEEDS=8 PROFILE=smoke-cpu DATA=mine "
                                      "FLAGS='--num-iterations=64 --dtype=float32'")
    python = f"{VENV_PYTHON} -m scripts.noise --run --seeds=8 " + shlex.join(options)
    assert noise_line(8, [*options, "--ledger=a.csv"]) == f"{python} --ledger=a.csv"  # make has no such variable
    monkeypatch.setattr(commands.shutil, "which", lambda name: None)
    assert noise_line(8, options) == python
    monkeypatch.setattr(sys, "prefix", "/elsewhere")
    monkeypatch.setattr(commands.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert noise_line(2, []) == f"make noise SEEDS=2 SKIP_SETUP=1 PYTHON={shlex.quote(sys.executable)}"


@pytest.mark.parametrize("text, seeds", [
    ("no noise banked: run `make noise SEEDS=8`", 8), ("first `make noise`", 8), ("with `make noise SEEDS=2`: two", 2),
    ("as the protocol has (make noise SEEDS=8 JOBS=)", 8)])
def test_advice_gets_the_options_of_the_comparison(text, seeds):
    said = complete(text, ["--profile=smoke-cpu", "--jobs=3"])
    assert noise_line(seeds, ["--profile=smoke-cpu", "--jobs=3"]) in said and "JOBS=)" not in said
    assert complete(said, ["--data=mine"]) == said, "what has its options keeps them"
    assert complete("nothing to run", []) == "nothing to run"
