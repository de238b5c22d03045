"""
What a verdict says of spikes of the gradient norm.

python -m pytest tests/test_spikes.py -q
"""

import pytest

from nanochat.lab.verdict.gates import judge
from tests.gates_case import BETTER, CONTROL, declared, edit, make_runs


def note_of(control, candidate):
    runs = make_runs(control=CONTROL, candidate=BETTER)
    for i, spikes in enumerate([*control, *candidate]):
        edit(runs, i, grad_spikes=spikes)
    verdict, = judge(declared(5), runs)
    row = verdict.gates[-1]
    assert row.gate == "no instability" and row.result == "pass" and verdict.verdict == "promote"
    return row.note


def test_arms_that_differ_in_runs_with_spikes_are_told_apart():
    note = note_of([0, 0, 0, 0, 0], [0, 3, 0, 1, 2])
    assert note == "spikes of the gradient norm: control in 0 of 5 runs, candidate in 3 of 5 runs"


@pytest.mark.parametrize("control, candidate", [([0] * 5, [0] * 5), ([1, 0, 0, 0, 0], [0, 0, 0, 0, 7])])
def test_arms_with_equally_many_such_runs_are_not(control, candidate):
    assert note_of(control, candidate) is None


def test_runs_of_a_version_that_did_not_count_say_nothing():
    assert note_of([None] * 5, [1] * 5) is None
