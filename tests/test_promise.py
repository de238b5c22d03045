"""
The paragraph on where the promise bends: its figures are those of the published table.

python -m pytest tests/test_promise.py -v
"""

from dataclasses import replace
from pathlib import Path

from nanochat.lab.report.promise import BENDS, HOLDS, promise_lines
from nanochat.lab.simulation.made_up_runs import MOST_FALSE, read_targets
from tests.gates_case import BANK, declared

TARGETS = Path(__file__).resolve().parent.parent / "ideas" / "simulation_targets.csv"


def published(data, n):
    cell, = [cell for cell in read_targets(TARGETS) if (cell.table, cell.data, cell.K, cell.looks, cell.rule)
             == ("9.2", data, 1, (n,), "chosen")]
    assert cell.nu == 7
    return cell.targets["false_promotion"]


def test_figures_are_those_of_the_table():
    for one in (*BENDS, *HOLDS):
        for n, percent in zip((2, 5), one.percent):
            assert abs(published(one.data, n) - percent) <= 0.6, (one.data, n)
    assert all(max(published(one.data, n) for n in (2, 5)) > MOST_FALSE for one in BENDS)
    assert all(published(one.data, n) <= MOST_FALSE for one in HOLDS for n in (2, 5))


def test_every_setting_that_bends_far_with_one_candidate_is_named():
    named = {one.data for one in BENDS}
    bending = {cell.data for cell in read_targets(TARGETS) if cell.table == "9.2" and cell.K == 1
               and len(cell.looks) == 1 and cell.rule == "chosen" and cell.targets["false_promotion"] > 6.5}
    assert {data for data in bending if not data.startswith("bank at")} <= named


def test_paragraph_stands_where_a_bank_decides():
    line, = promise_lines(declared(2, noise=BANK))
    assert "at most 5 % of such labels" in line and "spread twice as much as the banked ones: 9 % and 6 %" in line
    assert promise_lines(declared(5)) == [] == promise_lines(replace(declared(2, noise=BANK), K=0))
