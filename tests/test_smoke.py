"""
make smoke: how it starts on a bare Python, and what it leaves. Training is the stand-in's (tests/fake_trainer.py).

python -m pytest tests/test_smoke.py -v
"""

import functools
import os
import re
import subprocess
import sys

import pytest

from nanochat.common import REPO_ROOT, read_json
from nanochat.lab import profiles
from nanochat.lab.csv_file import read_rows
from nanochat.lab.protocol import build, protocol
from nanochat.lab.report import plots
from scripts import smoke
from tests.lab_case import FAKE, enter


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    for name in (smoke.IN_VENV, "SKIP_SETUP", "NANOCHAT_DTYPE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stand_in(monkeypatch):
    """No card, no corpus to build, no torch to wait for."""
    monkeypatch.setattr(build, "build_protocol", functools.partial(build.build_protocol, trainer=FAKE))
    monkeypatch.setattr(profiles, "prepare", lambda *args: ("data", "tok"))
    monkeypatch.setattr(profiles, "cuda_memory_mib", lambda: None)


def test_smoke_compares_prints_and_leaves_its_three_files(stand_in, monkeypatch, capsys, base_dir):
    monkeypatch.setattr(protocol, "draw_protocol", plots.draw_protocol)
    assert smoke.main([]) == 0
    out = capsys.readouterr().out
    assert "verdict gate: inconclusive (2 seeds, no noise bank)" in out
    assert out.strip().splitlines()[-1].startswith("total 0:")
    assert sorted(os.listdir("results")) == sorted([
        "smoke", "smoke.png", "smoke_history.csv", "smoke_latest.json", ".smoke.lock", ".smoke_history.csv.lock",
        "smoke_experiments.csv", ".smoke_experiments.csv.lock", "declarations.csv", ".declarations.csv.lock",
        "index.html"])
    facts = read_json("results/smoke_latest.json")
    assert [row["seed"] for row in facts["runs"]] == [1337, 1337, 2026, 2026]
    assert facts["settings"]["profile"] == "smoke-cpu"
    assert facts["runs"][1]["candidate"] == "--symplectic-gate --symplectic-gate-mix=0.15"
    assert os.listdir(base_dir) == ["lab"]  # nothing beside the user's own artifacts


def test_second_smoke_reuses_and_fresh_does_not(stand_in, capsys, monkeypatch):
    smoke.main([])
    assert smoke.main([]) == 0 and len(read_rows("results/smoke_history.csv")) == 4
    assert "reused 4 of 4 cells" in capsys.readouterr().out
    monkeypatch.setenv("FRESH", "1")
    assert smoke.main([]) == 0 and len(read_rows("results/smoke_history.csv")) == 8


def test_failed_cell_makes_smoke_fail(stand_in, monkeypatch):
    monkeypatch.setenv("FAKE_PLAN", '{"nc_smoke_d4_gate_s1337": "crash"}')
    assert smoke.main([]) == 1


def test_card_selects_the_larger_profile_with_its_batch_fitted(monkeypatch):
    monkeypatch.setattr(profiles, "cuda_memory_mib", lambda: 16 * 1024)
    made = smoke.make_protocol(None, fresh=False)
    assert made.profile.name == "smoke-16gb"
    assert made.workload.machine_flags == [f"--device-batch-size={profiles.fit_device_batch(16 * 1024)}"]
    assert made.arms[0].config.device_type == "cuda" and "minutes" in made.profile.about  # its time is said beforehand
    assert smoke.make_protocol("smoke-cpu", fresh=False).arms[0].config.device_type == "cpu"


def test_asking_for_a_card_that_is_not_there_is_bad_input(stand_in, capsys):
    assert smoke.main(["--profile=smoke-16gb"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="execve")
def test_bare_python_makes_the_environment_and_goes_on_there(monkeypatch):
    calls = []
    monkeypatch.setattr(smoke, "missing_packages", lambda: ["torch"])
    monkeypatch.setattr(subprocess, "call", lambda command, **options: calls.append(command) or 0)
    monkeypatch.setattr(os, "execve", lambda path, command, env: calls.append((command, env[smoke.IN_VENV])))
    smoke.main(["--fresh"])
    assert calls == [[sys.executable, "-m", "scripts.setup"],
                     ([str(smoke.VENV_PYTHON), "-m", "scripts.smoke", "--fresh"], "1")]


def test_failed_setup_is_the_exit_code(monkeypatch):
    monkeypatch.setattr(smoke, "missing_packages", lambda: ["torch"])
    monkeypatch.setattr(subprocess, "call", lambda command, **options: 7)
    assert smoke.main([]) == 7


def test_packages_that_smoke_looks_for_are_those_of_the_project():
    text = (REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required = re.search(r"^dependencies = \[(.+?)^\]", text, re.M | re.S)[1]
    names = set(re.findall(r'^ *"([\w-]+)==', required, re.M))
    assert set(smoke.PACKAGES) == names - {"wandb"}  # which is imported only where a run name asks for it


@pytest.mark.parametrize("name", [smoke.IN_VENV, "SKIP_SETUP"])
def test_missing_packages_do_not_start_a_third_time(monkeypatch, capsys, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(smoke, "missing_packages", lambda: ["torch", "tqdm"])
    assert smoke.main([]) == 2 and "lacks torch, tqdm" in capsys.readouterr().err


def test_help_needs_no_package():
    code = "import sys; sys.path.insert(0, '.'); from scripts import smoke; smoke.main(['--help'])"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=REPO_ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "--fresh" in result.stdout, result.stderr
