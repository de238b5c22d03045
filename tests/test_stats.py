"""
One comparison: the unit cases of the specification by their figures, and scipy where it has the same test.

python -m pytest tests/test_stats.py -v
"""

import math

import numpy as np
import pytest
from scipy import stats as reference

from nanochat.lab.verdict.stats import (
    compare,
    correlation_bound,
    holm,
    holm_levels,
    moderated_t,
    planned_effect,
    planned_source,
    seeds_needed,
    sigma_interval,
    sign_flip,
    smallest_gain,
    step_down,
)

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
    assert [level for _, level in holm((.010, .0166, .024, .2), 0.05)] == [
        close(.0125), close(.05 / 3), close(.025), .05]
    assert {level for _, level in holm((.013, .014, .015, .016), 0.05)} == {.0125}


def naive_holm(p_values, alpha):
    """The textbook's loop, with sets."""
    left, passed = set(range(len(p_values))), set()
    while left:
        k = min(left, key=lambda i: p_values[i])
        if p_values[k] > alpha / len(left):
            break
        left.remove(k)
        passed.add(k)
    return passed


def test_holm_equals_the_textbooks_loop_one_at_a_time_and_all_at_once():
    rng = np.random.default_rng(1)
    for K in (1, 2, 5, 10):
        p = rng.random((300, K)) ** 4  # many small ones
        passes, _ = step_down(p, holm_levels(0.05, K))
        for row, together in zip(p, passes):
            alone = {k for k, (ok, _) in enumerate(holm(row, 0.05)) if ok}
            assert alone == naive_holm(row, 0.05) == set(np.flatnonzero(together))


def test_holm_leaves_out_the_promoted_and_counts_who_has_no_p():
    passes, level = step_down([0.9, 0.02, 0.03], holm_levels(0.05, 3), np.array([True, False, False]))
    assert passes.tolist() == [False, True, True] and level.tolist()[1:] == [0.025, 0.05]
    passes, level = step_down([math.nan, 0.02], holm_levels(0.05, 2))
    assert passes.tolist() == [False, True] and level.tolist() == [0.05, 0.025]
    assert holm([]) == []


def test_missed_targets_take_their_noise_from_the_bank_alone():  # case 9
    d = np.log([512 / 495, 598 / 588, 600 / 580])
    assert d.tolist() == [close(0.0337669), close(0.0168639), close(0.0339016)]
    gate = compare(d, s_b=0.01, nu=9, censored=True)
    assert (gate.mean, gate.se, gate.df, gate.p) == (close(0.0281774), close(0.00816497), 9, close(0.00363154))
    assert (gate.lo, gate.hi, gate.source) == (close(0.0132101), close(0.0431447), "bank-only")
    for told in (compare(d, censored=True), compare(d, s_b=0.01, nu=9, source="own", censored=True),
                 compare([*d, *d], censored=True)):
        assert (told.p, told.source, told.lo) == (1, "none", -math.inf)


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


def test_verdict_of_wall_time_with_a_floor_has_the_published_figures():  # case 12, without the words of the gates
    d = np.log([100, 101, 99.5]) - np.log([95, 95.5, 94.8])
    gate = compare(d, s_b=0.01, nu=9)
    assert (gate.mean, gate.se, gate.df, gate.p) == (close(0.0518919), close(0.00744569), 11, close(1.18111e-05))
    assert gate.lo == pytest.approx(0.03852, abs=5e-6)
    floor = compare([-0.0021, -0.0035, -0.0018], s_b=0.0013, nu=9, margin=0.005)
    assert (floor.mean, floor.p) == (close(-0.00246667), close(0.0130267)) and floor.hi < 0
    assert compare([0.0001, -0.0005, 0.0008], s_b=0.0013, nu=9, margin=0.005).hi > 0
    assert compare([-0.0091, -0.0085, -0.0078], s_b=0.0013, nu=9, margin=0.005).p == close(0.997770)


def test_throughput_may_fall_by_less_than_its_margin():  # case 14
    d = np.log([57000, 56900, 57200]) - np.log([52000, 51800, 52100])
    margin = -math.log(0.90)
    faster, slower = (compare(sign * d, s_b=0.004, nu=9, margin=margin) for sign in (1, -1))
    assert (faster.mean, slower.mean, slower.se, slower.df) == (
        close(0.0930339), close(-0.0930339), close(0.00296642), 11)
    assert faster.p < slower.p == close(0.000800906) and slower.lo > -margin
    assert math.exp(slower.mean) == pytest.approx(0.911, abs=5e-4)


def test_own_noise_leaves_the_bank_aside_and_needs_five_pairs():
    rng = np.random.default_rng(2)
    d = rng.normal(0.5, size=7)
    gate = compare(d, s_b=0.1, nu=9, margin=0.2, source="own")
    expected = reference.ttest_1samp(d, -0.2, alternative="greater")
    assert (gate.p, gate.df, gate.source) == (pytest.approx(expected.pvalue, rel=1e-9), 6, "own")
    assert gate.lo == pytest.approx(reference.ttest_1samp(d, 0).confidence_interval(0.90).low)
    assert compare(d[:4], s_b=0.1, nu=9, source="own").source == "none"
    with pytest.raises(ValueError, match="expected one of bank, own, none"):
        compare(d, source="banked")


def test_many_protocols_at_once_give_what_each_gives_alone():
    rng = np.random.default_rng(3)
    for n, nu, censored in ((2, 4, False), (5, 0, False), (6, 9, True), (4, 0, False), (3, 9, False)):
        d, s_b = rng.normal(size=(50, 3, n)), rng.uniform(0.3, 1, size=(50, 1))
        together = moderated_t(d, s_b, nu, 0.1, censored)
        for i, k in np.ndindex(50, 3):
            alone = compare(d[i, k], s_b[i, 0], nu, 0.1, censored=censored)
            assert together.p[i, k] == pytest.approx(alone.p, rel=1e-12)
            assert math.isnan(together.v[i, k]) == (alone.source == "none")
            assert together.guarded[i, k] == (alone.source == "own" and nu > 0)
    assert together.guarded.any() and not together.guarded.all()


def test_moderated_variance_is_the_pooled_variance_of_all_runs():
    """With rho = 0 the bank's runs and the differences are two samples of one noise: v is scipy's pooled variance."""
    bank, d = np.array([0.3, -1.1, 0.7, 0.2, -0.4]), np.array([0.9, 1.4, 0.2, 0.8])
    as_differences = math.sqrt(2) * bank  # a difference of two runs spreads sqrt(2) times as much as a run
    pooled = reference.ttest_ind_from_stats(d.mean(), d.std(ddof=1), 4, 0, as_differences.std(ddof=1), 5,
                                            alternative="greater")
    gate = compare(d, s_b=bank.std(ddof=1), nu=4)
    v = (gate.se ** 2) * 4
    assert gate.source == "bank" and pooled.statistic == pytest.approx(d.mean() / math.sqrt(v * (1 / 4 + 1 / 5)))
    assert gate.p == pytest.approx(reference.t.sf(d.mean() / math.sqrt(v / 4), 7))


def test_sign_flip_equals_scipys_permutation_test():
    rng = np.random.default_rng(4)
    for n, margin in ((5, 0.0), (8, 0.3)):
        d = rng.normal(0.4, size=n)
        expected = reference.permutation_test((d + margin,), np.mean, permutation_type="samples", n_resamples=np.inf,
                                              alternative="greater")
        assert sign_flip(d, margin) == pytest.approx(expected.pvalue, rel=1e-12)
    assert sign_flip([0.1, 0.2, 0.3]) == 1 / 8 and sign_flip([0.0] * 5) == 1
    assert sign_flip(np.ones(21)) is None


def test_spread_of_a_run_lies_where_scipys_chi_square_says():
    lo, hi = sigma_interval(0.0013, 9)
    assert lo == pytest.approx(0.0013 * math.sqrt(9 / reference.chi2.ppf(0.95, 9)))
    assert hi == pytest.approx(0.0013 * math.sqrt(9 / reference.chi2.ppf(0.05, 9)))
    with pytest.raises(ValueError, match="make noise"):
        sigma_interval(0.0013, 0)


def test_noise_source_is_planned_by_the_smaller_effect():
    """Both formulas of the specification, written out with scipy; r = 0 is smallest_gain."""
    t = reference.t.isf
    for n, nu, r, a in ((5, 9, 0.0, .05), (5, 9, 0.9, .05), (8, 4, 0.4, .0125), (5, 19, 0.2, .05), (12, 2, 0.1, .05)):
        df = nu + n - 1
        bank = (t(a, df) * math.sqrt((nu + (n - 1) * (1 - r)) / df) + t(.2, df) * math.sqrt(1 - r)) * math.sqrt(2 / n)
        own = (t(a, n - 1) + t(.2, n - 1)) * math.sqrt(2 * (1 - r) / n)
        assert (planned_effect(n, 1, nu, a, r), planned_effect(n, 1, 0, a, r)) == (
            pytest.approx(bank), pytest.approx(own))
        assert planned_source(n, nu, r, a) == ("bank" if bank <= own else "own")
    assert planned_source(4, 9, r=0.99) == "bank" and planned_source(4, 0) == "none" and planned_source(5, 0) == "own"
    assert planned_source(5, 9, r=-0.5) == planned_source(5, 9, r=0.0) == "bank"


def test_correlation_bound_holds_nine_times_in_ten():
    rng = np.random.default_rng(5)
    x, noise = rng.normal(size=(2, 4000, 10))
    y = 0.6 * x + 0.8 * noise
    bounds = [correlation_bound(np.corrcoef(a, b)[0, 1], 10) for a, b in zip(x, y)]
    assert abs(np.mean(np.array(bounds) <= 0.6) - 0.90) < 0.02
    assert correlation_bound(0.9, 3) == 0 and correlation_bound(-0.4, 10) == 0 and correlation_bound(1.0, 8) == 1


@pytest.mark.parametrize("d, bank, message", [  # case 15
    ([0.004], {}, "at least 2"), ([0.004, math.nan], {}, "finite"), ([0.004, math.inf], {}, "finite"),
    ([0.004, 0.003], dict(s_b=0.0, nu=9), "duplicates"), ([0.004, 0.003], dict(s_b=None, nu=9), "duplicates"),
    ([0.002] * 5, {}, "rounded or copied"), ([1.1032 - 1.1002, 1.1018 - 1.0988], {}, "rounded or copied")])
def test_what_can_never_give_a_verdict_is_refused(d, bank, message):
    with pytest.raises(ValueError, match=message):
        compare(d, **bank)
