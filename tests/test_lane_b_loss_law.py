"""
Losses over tokens: the law, draws from it, and the exponent left free. They are compared with exact laws, scipy and
simulated truth.

python -m pytest tests/test_lane_b_loss_law.py -v
"""

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from nanochat.lab.horizon.loss_law import Losses, Point, draw_tokens, fit, free_alpha, log_sd, pool, quantile
from nanochat.lab.horizon.source import Refusal
from tests.loss_law_case import DROP, FLOOR, LADDER, loss, points

# -----------------------------------------------------------------------------
# The law

@pytest.mark.parametrize("alpha", [0.05, 0.14, 0.185, 0.5, 1.3])
@pytest.mark.parametrize("ladder", [LADDER, LADDER[1:], (1e6, 1.5e6, 3e6, 4e6), (3e3, 4e6)])
def test_exact_data_gives_the_tokens(alpha, ladder):
    law = fit(pool(points(alpha, ladder), 1e-6), alpha)
    for times in (0.3, 1.0, 1.5, 3.0, 10.0):
        assert law.tokens_to(float(loss(times * 4e6, alpha))) == pytest.approx(times * 4e6, rel=1e-9)
    assert law.floor == pytest.approx(FLOOR, rel=1e-9) and law.a == pytest.approx(DROP * 4e6 ** alpha, rel=1e-9)


def test_fit_is_weighted_by_the_runs_of_each_horizon():
    """Against scipy's least squares through every single run, and the errors of its covariance."""
    rng = np.random.default_rng(3)
    runs = [Point(tokens, float(loss(tokens)) + 0.002 * rng.standard_normal(), seed) for tokens in LADDER
            for seed in range(3)]
    runs = [p for p in runs if (p.tokens, p.seed) not in ((1e6, 1), (1e6, 2), (2e6, 2))]
    losses = pool(runs, None)
    law = fit(losses, 0.2)
    x, y = np.array([p.tokens for p in runs]), np.array([p.loss for p in runs])
    (floor, a), cov = curve_fit(lambda d, f, a: f + a * (d / 1e6) ** -0.2, x, y, sigma=np.full(len(x), losses.sd),
                                absolute_sigma=True)
    assert (law.floor, law.a) == pytest.approx((floor, a * 1e6 ** 0.2), rel=1e-6)
    assert ((law.floor_se, law.drop_se * law.scale ** 0.2)
            == pytest.approx((cov[0, 0] ** 0.5, cov[1, 1] ** 0.5 * 1e6 ** 0.2), rel=1e-5))
    by_hand = [np.var([p.loss for p in runs if p.tokens == t], ddof=1) for t in (2e6, 4e6)]
    assert losses.df == 3 and losses.sd == pytest.approx(math.sqrt((by_hand[0] + 2 * by_hand[1]) / 3))


def test_noise_is_assumed_only_where_no_horizon_has_two_seeds():
    assert (pool(points(), 0.002).sd, pool(points(), 0.002).df) == (0.002, math.inf)
    with pytest.raises(ValueError, match="noise of this metric is not known"):
        pool(points(), None)


@pytest.mark.parametrize("extra, message", [
    (Point(1e6, 1.0, 1), "seeds, each its own"), (Point(1e6, 1.0), "seeds, each its own"),
    (Point(1e6, float(loss(1e6)), 2), "copies"), (Point(0, 1.0), "expected 1 to"),
    (Point(5e6, math.nan), "5e\\+06:nan: expected"), (Point(math.inf, 1.0), "inf:1: expected")])
def test_points_that_are_none_are_refused(extra, message):
    with pytest.raises(ValueError, match=message):
        pool([*points(), extra], 0.002)


# -----------------------------------------------------------------------------
# How much alpha matters, and the noise: the sentence of the specification, three runs, true alpha 0.17

@pytest.mark.parametrize("times, low, high, band", [
    (1.5, 1.465, 1.54, (1.42, 1.59)), (3, 2.78, 3.28, (2.76, 3.30)), (10, 7.9, 13.6, (8.6, 11.95))])
def test_how_much_alpha_and_noise_matter(times, low, high, band):
    losses, target = pool(points(), 0.002), float(loss(times * 4e6))
    off = [fit(losses, factor * 0.17).tokens_to(target) / 4e6 for factor in (0.7, 1.3)]
    assert off == pytest.approx([low, high], rel=0.0025)
    drawn = draw_tokens(losses, 0.17, (0.17, 0.17), target, np.random.default_rng(0), draws=200_000) / 4e6
    assert [quantile(drawn, q) for q in (0.1, 0.9)] == pytest.approx(band, rel=0.008)


def coverage(seeds_each: int, alpha_error: float, times: float, simulations=1000) -> float:
    """How often the 80 % band holds the true D*. Seeds above 1: the spread is measured, with few degrees of freedom."""
    rng, inside = np.random.default_rng(seeds_each), 0
    truth, target = times * 4e6, float(loss(times * 4e6))
    ci = np.array([-1.96, 1.96]) * alpha_error
    for _ in range(simulations):
        alpha = 0.17 * math.exp(alpha_error * rng.standard_normal())
        noise = 0.002 * rng.standard_normal((3, seeds_each))
        runs = [Point(t, float(loss(t) + e), seed) for t, row in zip(LADDER, noise) for seed, e in enumerate(row)]
        drawn = draw_tokens(pool(runs, 0.002), alpha, alpha * np.exp(ci), target, rng)
        inside += quantile(drawn, 0.1) <= truth <= quantile(drawn, 0.9)
    return inside / simulations


@pytest.mark.parametrize("seeds_each, alpha_error, times", [
    (1, 0.15, 3.0), pytest.param(1, 0.0, 3.0, marks=pytest.mark.slow),
    pytest.param(2, 0.1, 1.5, marks=pytest.mark.slow),
    pytest.param(3, 0.2, 6.0, marks=pytest.mark.slow)])
def test_band_covers_the_truth_in_four_of_five_simulations(seeds_each, alpha_error, times):
    assert 0.75 <= coverage(seeds_each, alpha_error, times) <= 0.85


def test_interval_of_alpha_is_what_is_drawn_and_may_be_lopsided():
    below, above = log_sd(0.2, (0.15, 0.3))
    assert (0.2 * math.exp(-1.959964 * below), 0.2 * math.exp(1.959964 * above)) == pytest.approx((0.15, 0.3), rel=1e-6)
    with pytest.raises(ValueError, match="low <= alpha <= high"):
        log_sd(0.2, (0.21, 0.3))


# -----------------------------------------------------------------------------
# alpha free

def test_free_alpha_is_found_and_its_distance_counted_in_standard_errors():
    """In the linear regime the root of the rise in misfit is the difference over the root of both variances."""
    rng, sd = np.random.default_rng(5), 1e-5
    tokens = np.array([1e6, 2e6, 4e6, 8e6])
    losses = Losses(tokens, loss(tokens) + sd * rng.standard_normal(4), np.ones(4, int), sd, math.inf)
    (_, _, free), cov = curve_fit(lambda d, f, b, a: f + b * (d / 4e6) ** -a, tokens, losses.mean, (0.6, 0.3, 0.2),
                                  sigma=np.full(4, sd), absolute_sigma=True)
    se = math.hypot(cov[2, 2] ** 0.5, 0.001)
    for given in (0.168, 0.17, 0.173):
        found, away = free_alpha(losses, given, (given - 0.00196, given + 0.00196))
        assert found == pytest.approx(free, rel=1e-4) and away == pytest.approx((free - given) / se, abs=0.05)
    exact_alpha = free_alpha(losses, 0.173, (0.173, 0.173))[1]
    assert exact_alpha == pytest.approx((free - 0.173) / cov[2, 2] ** 0.5, rel=0.03)


def test_free_alpha_needs_three_horizons():
    found, away = free_alpha(pool(points(0.3), 0.002), 0.17, (0.17, 0.17))
    left = loss(np.array(LADDER), 0.3) - fit(pool(points(0.3), 0.002), 0.17).loss(LADDER)  # the free fit leaves nothing
    assert (found == pytest.approx(0.3, rel=1e-3)
            and away == pytest.approx(math.sqrt((left ** 2).sum()) / 0.002, rel=1e-3))
    assert free_alpha(Losses(np.array(LADDER[:2]), loss(LADDER[:2]), np.array([2, 2]), 0.002, 2), 0.17,
                      (0.16, 0.18)) is None
    three = Losses(np.array(LADDER), loss(LADDER), np.array([1, 1, 2]), 1e-5, 1)
    assert free_alpha(three, 0.17, (0.16, 0.18))[0] == pytest.approx(0.17, rel=1e-3)
    bent_up = Losses(np.array([1e6, 2e6, 4e6, 8e6]), np.array([1.0, 0.99, 0.95, 0.8]), np.ones(4, int), 0.002, math.inf)
    assert free_alpha(bent_up, 0.17, (0.16, 0.18))[0] is None, "no exponent above 0 bends that way"


def test_refusals_are_value_errors_with_a_code():
    with pytest.raises(Refusal) as refused:
        fit(pool(points(drop=0.0), 0.002), 0.17)
    assert refused.value.code == "non_decreasing"
