"""
A protocol on the quick stand-in of the trainer (tests/fake_trainer.py), for test_protocol.py and test_runner.py.
"""

import json
import os
import sys

from nanochat.lab.arms import make_arms
from nanochat.lab.csv_file import read_rows
from nanochat.lab.profiles import PROFILES
from nanochat.lab.protocol import protocol
from nanochat.lab.protocol.protocol import Protocol

FAKE = (sys.executable, "-m", "tests.fake_trainer")
GATE = "gate: --symplectic-gate"
TREE = "tree"
HISTORY = "results/t_history.csv"


def enter(folder, monkeypatch):
    """A working directory, a fixed tree hash (others may edit the tree meanwhile), and no pictures."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FRESH", raising=False)
    monkeypatch.setenv("FAKE_TREE", TREE)
    monkeypatch.setattr(protocol, "tree_hash", lambda: os.environ["FAKE_TREE"])
    monkeypatch.setattr(protocol, "draw_protocol", lambda *args: False)


def make(candidates=(GATE,), seeds=(1337, 2026), label="t", flags=(), **options) -> Protocol:
    profile = PROFILES["smoke-cpu"]
    made = Protocol(label, profile, make_arms(list(candidates), [*profile.flags, *flags]), list(seeds),
                    profile.home("base"), common_flags=list(flags), trainer=FAKE, **options)
    made.identify("data", "tok")
    return made


def ran() -> list[str]:
    """Cells in the order in which the trainer was started for them, by the history: ["control_s1", ...]."""
    return [row["run_tag"].removeprefix("nc_t_d4_") for row in read_rows(HISTORY)]


def behave(monkeypatch, **plan):
    """How the stand-in behaves: behave(monkeypatch, gate_s1="crash"); see FAKE_PLAN."""
    monkeypatch.setenv("FAKE_PLAN", json.dumps({f"nc_t_d4_{cell}": how for cell, how in plan.items()}))
