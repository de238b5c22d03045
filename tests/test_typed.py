"""
Values of JSON and the types of the fields that they are for.

python -m pytest tests/test_typed.py -q
"""

import math

import pytest

from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.typed import fits, shown
from nanochat.lab.verdict.facts import Declaration, Floor, MetricNoise, Verdict

KINDS = [None, 1, 1.5, True, "1", [], [1], ["a"], {}, {"a": 1}, {"a": "b"}]
# For each kind, the values of KINDS that fit, said by hand.
FIT = {float: [1, 1.5], int: [1], bool: [True], str: ["1"], float | None: [None, 1, 1.5], list[int]: [[], [1]],
       list[str]: [[], ["a"]], dict: [{}, {"a": 1}, {"a": "b"}], dict[str, int]: [{}, {"a": 1}],
       list[int] | None: [None, [], [1]], Floor: [{}, {"a": 1}, {"a": "b"}]}


@pytest.mark.parametrize("kind", FIT, ids=shown)
def test_a_value_fits_its_kind_and_no_other(kind):
    found = [value for value in KINDS if fits(value, kind)]
    assert [(type(value), value) for value in found] == [(type(value), value) for value in FIT[kind]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_file_holds_a_number_that_is_not_finite(value):
    assert not fits(value, float) and not fits([value], list[float]) and not fits(value, float | None)


@pytest.mark.parametrize("kind, entry, says", [
    (Floor, {"metric": "val_bpb", "margin": "0.1"}, "Floor: margin is '0.1', expected float"),
    (Floor, {"metric": "val_bpb"}, "Floor: .*missing.*margin"),
    (Declaration, {"looks": [2, 2.5]}, r"Declaration: looks is \[2, 2.5\], expected list of int"),
    (Declaration, {"arms": "control"}, "Declaration: arms is 'control', expected list of DeclaredArm"),
    (MetricNoise, {"s_b": 0.1, "nu": True}, "MetricNoise: nu is True, expected int"),
    (Verdict, {"candidate": "a", "p": math.nan}, "Verdict: p is nan, expected float or null"),
    (ResultFile, {"runs": [3] * 500}, r"ResultFile: runs is \[3, 3.{0,120}, expected list of RunSummary")])
def test_a_part_of_a_file_names_the_field_the_value_and_what_was_expected(kind, entry, says):
    with pytest.raises(ValueError, match=says):
        kind.from_json(entry)


def test_null_is_read_as_nothing_where_an_older_version_wrote_none():
    assert Declaration.from_json({"looks": None, "alpha": None}).alpha is None
    assert Verdict.from_json({"candidate": "a", "level": None}).level is None
