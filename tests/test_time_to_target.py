"""
Time to target: crossings against closed forms, guesses with their refusals, missed targets, both parts of a time.

python -m pytest tests/test_time_to_target.py -v
"""

import math

import numpy as np
import pytest

from nanochat.lab.verdict.stats import compare
from nanochat.lab.verdict.time_to_target import (
    LINEAR,
    POWER_LAW,
    crossing,
    crossing_step,
    extrapolate,
    paired_differences,
    refuse_missed,
    threshold_from_bank,
    time_from_steps,
)


def curve_of(f, secs, steps_per_sec=2):
    return [(int(steps_per_sec * sec), float(sec), float(f(sec))) for sec in secs]


# -----------------------------------------------------------------------------
# Measured

def test_crossing_of_straight_line_is_exact_whatever_the_grid():
    def line(sec):
        return 3.0 - 0.01 * sec
    for grid in (5, 7, 40):
        curve = curve_of(line, range(0, 121, grid))
        assert crossing(curve, 2.5) == pytest.approx(50.0) and crossing_step(curve, 2.5) == pytest.approx(100.0)


def test_crossing_of_smooth_curve_nears_the_closed_form_as_the_grid_narrows():
    errors = [abs(crossing(curve_of(lambda t: 2 + math.exp(-t / 30), np.arange(0, 101, grid)), 2.2)
                  - 30 * math.log(5)) for grid in (10, 1)]
    assert errors[1] < errors[0] / 50


def test_crossing_is_the_first_one_and_equal_counts():
    curve = [(0, 0.0, 3.0), (10, 8.0, 2.5), (20, 16.0, 2.7), (30, 24.0, 2.4)]
    assert crossing(curve, 2.5) == 8.0 and crossing(curve, 2.45) == pytest.approx(16 + 8 * 0.25 / 0.3)
    assert crossing(curve, 2.3) is None and crossing([], 2.3) is None


def test_target_reached_before_the_clock_starts_is_zero_seconds_and_never_a_ratio():
    assert crossing([(0, 0.0, 3.0), (10, 0.0, 2.5), (20, 8.0, 2.4)], 2.6) == 0.0
    with pytest.raises(ValueError, match="too easy, declare a lower one"):
        paired_differences([0.0], [1.0], 60)


def test_curve_without_clock_has_steps_only():
    curve = [(0, None, 3.0), (10, None, 2.0)]
    assert crossing(curve, 2.5) is None and crossing_step(curve, 2.5) == 5.0


@pytest.mark.parametrize("curve, message", [
    ([(0, 0.0, 3.0), (10, 8.0, math.nan)], "not a finite number"),
    ([(0, 0.0, 3.0), (10, 8.0, math.inf)], "not a finite number"),
    ([(0, 0.0, 3.0), (10, 8.0, 2.8), (20, 7.0, 2.5)], "clock runs backwards"),
    ([(10, 0.0, 3.0), (10, 8.0, 2.8)], "clock runs backwards")])
def test_broken_curve_is_refused(curve, message):
    for f in (crossing, crossing_step, extrapolate):
        with pytest.raises(ValueError, match=message):
            f(curve, 2.6)


# -----------------------------------------------------------------------------
# Guessed

@pytest.mark.parametrize("a, b, c", [(2.0, 3.0, 0.5), (0.9, 1.2, 0.2), (2.5, 40.0, 1.3)])
def test_power_law_finds_the_crossing_of_a_power_law(a, b, c):
    secs = np.linspace(20, 200, 10)
    curve = curve_of(lambda t: a + b * t ** -c, secs)
    threshold = a + b * 400.0 ** -c
    found, method, refusal = extrapolate(curve, threshold)
    assert (method, refusal) == (POWER_LAW, None) and found == pytest.approx(400, rel=1e-3)


def test_four_points_give_a_line():
    assert extrapolate(curve_of(lambda t: 3 - 0.01 * t, (10, 20, 30, 40)), 2.5) == (pytest.approx(50.0), LINEAR, None)


SECS = np.linspace(20, 200, 10)


def late_bump():
    """A power law whose last point is a little high: the fit is below a threshold that the run has not reached."""
    curve = curve_of(lambda t: 2 + 3 * t ** -0.5, SECS)
    step, sec, value = curve[-1]
    return [*curve[:-1], (step, sec, value + 0.006)], value + 0.005


@pytest.mark.parametrize("curve, threshold, refusal", [
    (curve_of(lambda t: 3 - 0.01 * t, (10, 20, 30)), 2.5, "too few points"),
    ([(0, 0.0, 3.0), (5, None, 2.9), (10, 1.0, 2.8)], 2.5, "too few points"),
    (curve_of(lambda t: 2 + (t - 120) ** 2 / 1e4, SECS), 1.9, "slope not improving"),
    (curve_of(lambda t: 2 + 3 * t ** -0.5, SECS), 2.3, "crossing in the past: the threshold was reached"),
    (*late_bump(), "crossing in the past: at"),
    (curve_of(lambda t: 2 + 3 * t ** -0.5, SECS), 1.99, "threshold below the asymptote: 1.99 is not above 2"),
    (curve_of(lambda t: 3 - 0.002 * t + 0.1 * math.sin(t), SECS), 2.0, "poor fit")])
def test_guess_that_proves_nothing_is_refused_by_name(curve, threshold, refusal):
    sec, method, why = extrapolate(curve, threshold)
    assert sec is None and method in (POWER_LAW, LINEAR) and why.startswith(refusal)


# -----------------------------------------------------------------------------
# Compared

def test_missed_targets_of_the_control_are_lower_bounds():
    d, censored, refusal = paired_differences([512, 598, None], [495, 588, 580], 600)
    assert d == pytest.approx([0.0337669, 0.0168639, 0.0339016], rel=1e-4) and censored and refusal is None
    assert paired_differences([512, 598], [495, 588], 600) == (pytest.approx(d[:2]), False, None)


def test_missed_target_of_the_candidate_leaves_no_differences():
    assert paired_differences([512, None], [None, None], 600) == ([], False, "candidate missed the target on pair 0")
    assert paired_differences([512, 598], [495, None], 600)[2] == "candidate missed the target on pair 1"


def test_censored_difference_never_exceeds_the_true_one():
    rng = np.random.default_rng(0)
    control, candidate = np.exp(rng.normal(6.4, 0.05, (2, 500)))
    budget = float(np.exp(6.4))
    seen = [t if t <= budget else None for t in control]
    reached = candidate <= budget
    d, censored, _ = paired_differences([t for t, ok in zip(seen, reached) if ok], candidate[reached].tolist(), budget)
    assert censored and (np.array(d) <= np.log(control / candidate)[reached] + 1e-12).all()


@pytest.mark.parametrize("times", [([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([1.0], [-1.0]), ([1.0], [math.inf])])
def test_times_that_are_none_are_refused(times):
    with pytest.raises(ValueError, match="expected"):
        paired_differences(*times, 600)


def test_threshold_is_the_worst_final_plus_one_sigma_and_every_banked_run_reached_it():
    finals = [2.61, 2.64, 2.62]
    threshold = threshold_from_bank(finals)
    assert threshold == pytest.approx(2.64 + math.sqrt(
        ((2.61 - 2.6233333) ** 2 + (2.64 - 2.6233333) ** 2 + (2.62 - 2.6233333) ** 2) / 2))
    refuse_missed(threshold, dict(enumerate(finals)))
    with pytest.raises(ValueError, match="seed 1 missed it"):
        refuse_missed(2.63, dict(enumerate(finals)))
    with pytest.raises(ValueError, match="seed 7 missed it"):
        refuse_missed(2.63, {7: None})
    for bad in ([2.6], [2.6, 2.6], [2.6, math.nan]):
        with pytest.raises(ValueError, match="a threshold needs two banked runs"):
            threshold_from_bank(bad)


def test_interval_of_time_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    n, repetitions = 6, 4000
    steps, dt = rng.normal(0.05, 0.02, (repetitions, n)), rng.normal(-0.01, 0.01, (repetitions, n))
    found = [time_from_steps(a, b) for a, b in zip(steps, dt)]
    below = np.mean([f.lo <= 0.04 for f in found])
    above = np.mean([f.hi >= 0.04 for f in found])
    assert 0.935 < below < 0.965 and 0.935 < above < 0.965  # 95 % each; the standard error is 0.35 %


def test_exact_step_times_add_nothing_to_the_interval_of_steps():
    d = [0.02, 0.03, 0.01, 0.025, 0.018]
    found, plain = time_from_steps(d, [0.1] * 5), compare(d)
    assert (found.mean, found.lo, found.hi) == pytest.approx((plain.mean + 0.1, plain.lo + 0.1, plain.hi + 0.1))


def test_time_without_noise_or_with_a_missing_step_time_is_refused():
    with pytest.raises(ValueError, match="2 pairs: steps to a target need 5"):
        time_from_steps([0.02, 0.03], [0.1, 0.1])
    with pytest.raises(ValueError, match="expected a finite number"):
        time_from_steps([0.02, 0.03, 0.01, 0.025, 0.018], [0.1, 0.1, 0.1, 0.1, math.nan])
