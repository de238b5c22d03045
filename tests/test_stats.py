"""
The unit cases of verdicts.md that the fixed procedure needs, against its figures and against scipy.

python -m pytest tests/test_stats.py -v
"""

import math

import numpy as np
import pytest
from scipy import stats as reference

from nanochat.lab.stats import compare, holm, seeds_needed, smallest_gain

CONTROL = np.array([1.1020, 1.1035, 1.1011, 1.1027, 1.1040])
CANDIDATE = np.array([1.1001, 1.1022, 1.1003, 1.1004, 1.1031])


def close(value):
    return pytest.approx(value, rel=1e-4)


def test_two_pairs_with_a_bank_give_the_published_figures():  # case 1
    gate = compare(np.array([1.1032, 1.1018]) - np.array([1.0989, 1.0991]), s_b=0.0013, nu=9)
    assert (gate.mean, gate.se, gate.p) == (close(0.0035), close(0.00125897), close(0.00972441))
    assert (gate.lo, gate.hi, gate.df, gate.source) == (close(0.00121817), close(0.00578183), 10, "bank")


def test_candidate_noisier_than_the_bank_is_judged_by_its_own_spread():  # case 2
    gate = compare([0.0061, -0.0052, 0.0078], s_b=0.0013, nu=9)
    assert (gate.se, gate.p, gate.df, gate.source) == (close(0.00407962), close(0.275448), 2, "own")
    assert (gate.lo, gate.hi) == (close(-0.00901244), close(0.0148124))


def test_three_pairs_without_a_bank_know_nothing():  # case 3
    gate = compare([0.004, 0.003, 0.005])
    assert (gate.source, gate.p, gate.se) == ("none", 1, None)
    assert (gate.lo, gate.hi) == (-math.inf, math.inf)


def test_five_pairs_without_a_bank_equal_scipys_paired_t():  # case 4
    gate = compare(CONTROL - CANDIDATE)
    expected = reference.ttest_rel(CONTROL, CANDIDATE, alternative="greater")
    assert (gate.p, gate.df, gate.source) == (pytest.approx(expected.pvalue, rel=1e-9), 4, "own")
    assert (gate.mean / gate.se, gate.p) == (close(4.98034), close(0.00379774))
    assert (gate.lo, gate.hi) == (close(0.000823605), close(0.0020564))


def test_margin_lets_a_floor_pass_and_still_shows_the_loss():  # case 5
    gate = compare([-0.0021, -0.0035, -0.0008], s_b=0.0013, nu=9, margin=0.005)
    assert (gate.mean, gate.se, gate.df, gate.p) == (close(-0.00213333), close(0.00101603), 11, close(0.00831254))
    assert (gate.lo, gate.hi) == (close(-0.00395801), close(-0.000308655))


@pytest.mark.parametrize("p, promoted", [((.001, .02, .03, .2), {0}), ((.010, .0166, .024, .2), {0, 1, 2}),
                                         ((.013, .014, .015, .016), set()), ((.2, .001), {1})])
def test_holm_promotes_what_the_published_examples_promote(p, promoted):  # case 6
    assert {k for k, (passes, _) in enumerate(holm(p, 0.05)) if passes} == promoted


def test_holm_levels_rise_only_after_a_success():
    assert [level for _, level in holm((.010, .0166, .024, .2), 0.05)] == [close(.0125), close(.05 / 3), close(.025), .05]
    assert {level for _, level in holm((.013, .014, .015, .016), 0.05)} == {.0125}


def test_identical_runs_are_named_with_and_without_a_bank():  # case 10
    banked, alone = compare([0.0, 0.0], s_b=0.0013, nu=9), compare([0.0, 0.0])
    assert (banked.p, banked.source, alone.p, alone.source) == (0.5, "identical", 0.5, "identical")
    assert compare([0.0] * 5).p == 0.5
    assert compare([0.0] * 5, margin=0.005).p == 0 and compare([0.0] * 5, margin=-0.005).p == 1


def test_smallest_gain_and_seeds_needed_match_the_published_plan():  # case 11
    expected = {2: 0.00349897, 3: 0.00283556, 5: 0.00217148, 8: 0.00169686}
    assert {n: smallest_gain(n, 0.0013, 9) for n in expected} == {n: close(v) for n, v in expected.items()}
    assert smallest_gain(5, 0.0013, 9, alpha=0.05 / 4) == close(0.00279775)
    assert seeds_needed(0.002, 0.0013, 9) == 6
    assert seeds_needed(0.002, 0.0013, 9, alpha=0.05 / 4) == 10
    assert seeds_needed(0.002, 0.0013) == 7
    assert seeds_needed(0.0001, 0.0013, 9) is None
    assert smallest_gain(4, 0.0013) == math.inf


@pytest.mark.parametrize("d, bank, message", [  # case 15
    ([0.004], {}, "at least 2"), ([0.004, math.nan], {}, "finite"), ([0.004, math.inf], {}, "finite"),
    ([0.004, 0.003], dict(s_b=0.0, nu=9), "duplicates"), ([0.004, 0.003], dict(s_b=None, nu=9), "duplicates"),
    ([0.002] * 5, {}, "rounded or copied"), ([1.1032 - 1.1002, 1.1018 - 1.0988], {}, "rounded or copied")])
def test_what_can_never_give_a_verdict_is_refused(d, bank, message):
    with pytest.raises(ValueError, match=message):
        compare(d, **bank)


def test_false_promotion_of_the_paired_t_is_five_percent():
    rng = np.random.default_rng(0)
    promoted = sum(compare(d).p <= 0.05 for d in rng.normal(size=(4000, 5)))
    assert abs(promoted / 4000 - 0.05) < 0.012  # 3.5 standard errors
