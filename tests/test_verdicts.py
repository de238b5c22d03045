"""
Whole verdicts on made-up runs: a few cells against their targets. `make simulate-gates` runs all of them.

python -m pytest tests/test_verdicts.py -v
"""

import math

import numpy as np
import pytest

from nanochat.lab.simulation.verdicts import MEASURES, Cell, check, measure, read_targets, runs_of
from nanochat.lab.verdict import gates
from scripts import simulate_gates

CELLS = read_targets(simulate_gates.VERDICT_TARGETS)


def cell(name):
    return next(cell for cell in CELLS if cell.name == name)


def outside(cells, protocols):
    return [row for cell in cells for row in check(cell, measure(cell, protocols), protocols) if not row["inside"]]


def test_targets_are_whole():
    shares = [cell for cell in CELLS if cell.table == "verdicts"]
    assert len(shares) == 20 and len(CELLS) == len({cell.name for cell in CELLS}) == 32
    for cell in shares:
        total = sum(cell.targets[name][0] for name in MEASURES[:3])
        assert 99 <= total <= 101, "three shares of one hundred, each rounded"
    assert {cell.targets["promote"] for cell in CELLS if cell.table == "missed"} == {(0.0, 0.9), (1.2, 3.0), (4.0, 4.5)}


def test_a_time_above_the_budget_is_a_target_missed():
    made = Cell("missed", 0.5, 9, 3, False, 0.0, {})
    runs = runs_of(made, np.array([[-1.0, 0.1, 1.0], [0.0, -0.1, 2.0]]))
    assert [run.time_to_target_sec is None for run in runs] == [False, True, True, False, False, True]
    assert runs[0].time_to_target_sec == pytest.approx(math.exp(-0.05)) and {run.training_sec for run in runs} == {1.0}


@pytest.mark.parametrize("name", ["verdicts reached=1 nu=9 n=3 gain=0", "missed reached=0.8 nu=9 n=3 gain=0"])
def test_verdicts_fall_as_their_targets_say(name):
    assert not outside([cell(name)], 400)


def test_another_rule_is_told_apart(monkeypatch):
    """Every bound at four times its level."""
    honest = gates.compare_gate
    def lenient(declaration, gate, n, level):
        return honest(declaration, gate, n, min(0.49, 4 * level))
    monkeypatch.setattr(gates, "compare_gate", lenient)
    assert outside([cell("verdicts reached=1 nu=9 n=3 gain=0")], 400)


def test_a_false_promotion_has_less_room_than_another_share():
    """At many protocols, where luck is small: twice a share of 0.9 % is outside, and two points of power are not."""
    missed, gain = cell("missed reached=0.5 nu=9 n=3 gain=0"), cell("verdicts reached=1 nu=9 n=3 gain=1")
    def insides(cell, *shares):
        return [check(cell, {"promote": found}, 4000)[0]["inside"] for found in shares]
    assert insides(missed, 0.0, 1.3, 1.8, 2.8) == [True, True, False, False]
    assert insides(gain, 24.5, 25.5, 29.0, 29.5) == [False, True, True, False]


@pytest.mark.slow
def test_every_verdict_falls_as_its_target_says():
    assert not outside(CELLS, 600)


def test_script_prints_them_beside_their_targets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulate_gates, "VERDICT_TARGETS", tmp_path / "few.csv")
    lines = (simulate_gates.IDEAS / "verdict_targets.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join([lines[0], lines[2], lines[-1]]) + "\n")
    assert simulate_gates.main(["--table=verdicts", "--table=missed", "--protocols=1000"]) == 0
    said = capsys.readouterr().out
    assert "verdicts reached=1 nu=9 n=2 gain=0" in said and "(4 to 4.5 " in said and "0 outside" in said
    assert not (tmp_path / "results").exists(), "the picture is of the other tables"
