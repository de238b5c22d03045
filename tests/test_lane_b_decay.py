"""
beta: recovered from sources whose decay is known, refused where there is no power law, and the traps that the obvious
estimators fall into while this one does not.

python -m pytest tests/test_lane_b_decay.py -v
"""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from lane_b_case import SignOfGaussian, correlation_curve, draw, raw_beta, source_of, two_kinds, two_state_chain, zipf
from scipy.optimize import curve_fit

from nanochat.lab.horizon.correlation import Curve, lag_grid
from nanochat.lab.horizon.decay import (
    WINDOWS,
    before_two_invalid,
    fit_decay,
    horizon,
    power_law,
    significance,
)
from nanochat.lab.horizon.shapes import compare_shapes
from nanochat.lab.horizon.source import Refusal

SLOPES = (0.5, 0.88, 1.3)


@functools.lru_cache(maxsize=2)
def made(b, n, seed):
    """The tokens of a sign-of-Gaussian source and their curve."""
    tokens = SignOfGaussian(b).tokens(n, seed)
    return tokens, correlation_curve(source_of(tokens, vocab_size=1024))


def exact(b, lags):
    return power_law(lags, SignOfGaussian(b).norm(lags))[0]


def true_headline(b, curve, decay):
    return exact(b, curve.lags[decay.noise.usable & (curve.lags <= decay.headline.hi)])


def curve_of(norm, blocks=16, noise=1e-4, max_lag=512, op_floor=1e-9, seed=0):
    """A curve whose F(n) is norm(n), with a little independent noise in each pair of blocks."""
    lags = np.array(lag_grid(max_lag))
    e = np.random.default_rng(seed).normal(size=(len(lags), blocks, blocks)) * noise
    grams = norm(lags.astype(float))[:, None, None] ** 2 * (1 + e + e.transpose(0, 2, 1))
    return Curve(lags, np.full(len(lags), 10 ** 6), grams, norm(lags), np.full(len(lags), op_floor), 10 ** 6, 256, 0.6,
                 (), 1.0)


def refused(*args, **options):
    with pytest.raises(Refusal) as e:
        fit_decay(*args, **options)
    return e.value.code


# -----------------------------------------------------------------------------
# Known sources

@pytest.mark.slow
@pytest.mark.parametrize("b", SLOPES)
def test_beta_of_a_known_decay_is_recovered_with_its_interval_and_level(b):
    covered = 0
    for seed in range(12):
        _, curve = made(b, 2_000_000, seed)
        decay = fit_decay(curve)
        true = true_headline(b, curve, decay)
        assert abs(decay.beta - true) < 0.05, seed
        assert np.sqrt(curve.squares[0]) == pytest.approx(SignOfGaussian(b).norm(1), rel=0.05)
        covered += decay.ci95[0] < true < decay.ci95[1]
    assert covered >= 9


def check_little_text(b, seed):
    """Within 0.1 or a refusal; of the steepest, lag 1 is seen, but not six lags up to 10."""
    _, curve = made(b, 300_000, seed)
    try:
        decay = fit_decay(curve)
    except Refusal as e:
        assert b == 1.3 and e.code == "too_few_valid_lags"
    else:
        assert abs(decay.beta - true_headline(b, curve, decay)) < 0.1, seed


@pytest.mark.parametrize("b", SLOPES)
def test_little_text_gives_beta_or_a_refusal(b):
    check_little_text(b, 0)


@pytest.mark.slow
@pytest.mark.parametrize("b", SLOPES)
def test_little_text_gives_beta_or_a_refusal_whatever_the_seed(b):
    for seed in range(1, 12):
        check_little_text(b, seed)


@pytest.mark.slow
def test_beta_does_not_depend_on_how_much_text_there_is_and_that_of_a_raw_norm_does():
    whole = SignOfGaussian(0.88).tokens(3_200_000, seed=0)
    ours, raw = [], []
    for n in (len(whole), len(whole) // 8):
        windows = fit_decay(correlation_curve(source_of(whole[:n], vocab_size=1024), max_lag=25)).windows
        ours.append(windows[0].beta)
        raw.append(raw_beta(whole[:n], lag_grid(64)))
    assert windows[0].hi == 16 and windows[0].whole
    assert abs(ours[0] - ours[1]) < 0.08
    assert abs(raw[0] - raw[1]) > 0.16


def test_independent_tokens_are_no_signal():
    for seed in range(6):
        tokens = draw(np.cumsum(zipf(1024)), np.random.default_rng(seed), 250_000)
        assert refused(correlation_curve(source_of(tokens, vocab_size=1024), max_lag=1)) == "no_signal"


@pytest.mark.parametrize("seed", range(3))
def test_a_markov_chain_is_not_a_power_law_and_its_curve_is_exact(seed):
    curve = correlation_curve(source_of(two_state_chain(2_000_000, seed=seed), vocab_size=2), max_lag=64)
    assert refused(curve) == "not_power_law"
    assert np.all(np.abs(curve.squares - (0.5 * 0.9 ** curve.lags) ** 2) < 3 * bootstrap_se(curve))


def bootstrap_se(curve):
    """Blocks resampled one by one, pairs of the same block left out: the long way of decay.significance."""
    rng, squares = np.random.default_rng(0), []
    for _ in range(200):
        picks = rng.integers(0, 16, 13)
        pairs = [(a, b) for a, b in itertools.product(picks, picks) if a != b]
        squares.append([np.mean([gram[a, b] for a, b in pairs]) for gram in curve.grams])
    return np.std(squares, axis=0)


@pytest.mark.parametrize("blocks", [16, 32])
def test_bootstrap_variance_of_a_strong_signal_is_the_exact_one(blocks):
    """Blocks mu + e, e of variance s^2 in each of three directions: the mean product of two has 4 s^2 mu^2 / B + 6 s^4
    / B (B - 1)."""
    rng, mu, s, found = np.random.default_rng(0), np.array([1.0, 2.0, 2.0]), 0.3, []
    for seed in range(60):
        rows = mu + s * rng.normal(size=(20, blocks, 3))  # twenty at a time, as if they were lags
        curve = dataclasses.replace(curve_of(np.ones_like, max_lag=1), grams=rows @ rows.transpose(0, 2, 1))
        found.append(significance(curve, 200, seed).square_se ** 2)
    assert np.mean(found) == pytest.approx(4 * s ** 2 * 9 / blocks + 6 * s ** 4 / blocks / (blocks - 1), rel=0.06)


@pytest.mark.parametrize("period", [7, 50])
def test_a_periodic_sequence_is_not_a_power_law(period):
    tokens = np.random.default_rng(0).integers(0, 20, period)
    curve = correlation_curve(source_of(np.resize(tokens, 300_000), vocab_size=20))
    assert refused(curve) == "not_power_law"


def test_documents_of_two_kinds_are_no_signal_when_centred_by_document():
    source, _ = two_kinds(documents=1600, length=1000)
    assert refused(correlation_curve(source, centering="document")) == "no_signal"
    assert refused(correlation_curve(source)) == "not_power_law"  # a plateau


# -----------------------------------------------------------------------------
# The traps: the obvious estimators on the same sources

@pytest.mark.slow
def test_raw_norm_over_all_lags_sits_on_its_noise():
    tokens, curve = made(1.3, 2_000_000, 0)
    decay, lags = fit_decay(curve), np.arange(1, 65)
    assert raw_beta(tokens, lags) < 0.6 * exact(1.3, lags)
    assert abs(decay.beta - true_headline(1.3, curve, decay)) < 0.05


def test_least_squares_in_linear_space_see_the_first_lags_only():
    _, curve = made(1.3, 2_000_000, 0)
    decay = fit_decay(curve)
    use = decay.noise.usable & (curve.lags <= decay.headline.hi)
    lags, norm = curve.lags[use], np.sqrt(curve.squares[use])
    naive = curve_fit(lambda n, level, beta: level * n ** -beta, lags, norm, p0=(norm[0], 1))[0][1]
    true = true_headline(1.3, curve, decay)
    assert abs(naive - power_law(lags[:3], norm[:3])[0]) < 0.05 < abs(naive - true)  # the other lags hardly count
    assert abs(decay.beta - true) < 0.05


# -----------------------------------------------------------------------------
# Fits and windows, on curves made by hand

def test_an_exact_power_law_is_exact_on_every_window():
    curve = curve_of(lambda n: 0.01 * n ** -0.9)
    decay = fit_decay(curve)
    assert [w.hi for w in decay.windows] == list(WINDOWS) and all(w.whole for w in decay.windows)
    assert [w.beta for w in (*decay.windows, decay.headline)] == pytest.approx([0.9] * 5, abs=1e-4)
    assert (horizon(curve), decay.hinge, decay.warnings) == ((512, True), None, ())
    assert decay.headline.hi == 512 and decay.se < 1e-4


def test_half_the_spread_of_the_windows_goes_into_the_error_in_quadrature():
    decay = fit_decay(curve_of(lambda n: np.exp(-0.5 * np.log(n) - 0.06 * np.log(n) ** 2), max_lag=203))
    betas = [w.beta for w in (*decay.windows, decay.headline)]
    assert decay.se == pytest.approx(np.hypot(decay.headline.se, (max(betas) - min(betas)) / 2))
    assert max(betas) - min(betas) > 0.15 and "window_sensitive" in decay.warnings
    assert decay.ci95 == pytest.approx((decay.beta - 1.96 * decay.se, decay.beta + 1.96 * decay.se), rel=1e-4)


def test_short_documents_have_an_interval_of_their_windows_too():
    """The decay of this source bends: the exact slope over lags 1..4 is not that over 1..13, where documents of 60
    tokens end."""
    tokens = SignOfGaussian(0.88).tokens(1_000_000, seed=0)
    documents = np.split(tokens, range(60, len(tokens), 60))
    decay = fit_decay(correlation_curve(source_of(*documents, vocab_size=1024, documents=True)))
    assert decay.headline.hi == 13 and not any(w.whole for w in decay.windows)
    spread = exact(0.88, lag_grid(13)) - exact(0.88, lag_grid(4))
    assert decay.se == pytest.approx(np.hypot(decay.headline.se, spread / 2), rel=0.2)
    assert decay.se > 2 * decay.headline.se and decay.ci95[0] < exact(0.88, lag_grid(13)) < decay.ci95[1]


def test_windows_of_a_short_range_keep_half_of_it():
    decay = fit_decay(curve_of(lambda n: np.exp(-0.5 * np.log(n) - 0.1 * np.log(n) ** 2), max_lag=16, noise=1e-6))
    betas = [power_law(lags, lags ** (-0.5 - 0.1 * np.log(lags)))[0]
             for lags in (np.array(lag_grid(4)), np.array(lag_grid(16)))]
    assert [w.whole for w in decay.windows] == [True, False, False, False]
    assert decay.se == pytest.approx((betas[1] - betas[0]) / 2, rel=1e-3)


def test_a_broken_power_law_shows_both_slopes_and_the_knot():
    decay = fit_decay(curve_of(lambda n: 0.01 * n ** -1.2 * np.maximum(1, n / 40) ** 0.9))
    assert "broken_power_law" in decay.warnings and decay.hinge.n_break == 40
    assert (decay.hinge.short, decay.hinge.long) == pytest.approx((1.2, 0.3), abs=1e-3)


def test_hinge_and_exponential_are_told_apart_by_bic():
    lags = np.array(lag_grid(128))
    noise = np.exp(0.01 * np.random.default_rng(0).normal(size=len(lags)))
    power, exponential, hinged, _ = compare_shapes(lags, noise * lags ** -0.9)
    assert power < exponential - 6 and power < hinged + 6
    power, exponential, hinged, _ = compare_shapes(lags, noise * np.exp(-0.05 * lags))
    assert exponential < min(power, hinged) - 6
    power, exponential, hinged, hinge = compare_shapes(lags, noise * lags ** -0.4 * np.maximum(1, lags / 16) ** -1.0)
    assert hinged < min(power, exponential) - 6 and hinge.n_break in (13, 16, 20)


def test_headline_window_ends_at_the_horizon_or_a_quarter_of_the_context():
    def law(n):
        return 0.01 * n ** -0.9
    seen_to_64 = curve_of(law, op_floor=0.01 * 70 ** -0.9 / 1.5)
    assert horizon(seen_to_64) == (64, False) and fit_decay(seen_to_64).headline.hi == 64
    decay = fit_decay(seen_to_64, max_seq_len=128)
    assert decay.headline.hi == 32 and decay.warnings == ("horizon_exceeds_context",)
    assert fit_decay(seen_to_64, max_seq_len=256).warnings == ()
    assert fit_decay(seen_to_64, max_seq_len=8).headline.hi == 6  # six lags, or there is no fit
    assert fit_decay(seen_to_64, window=(4, 100)).headline.lags == 14
    assert horizon(curve_of(law, op_floor=1.0)) == (None, False)


def test_windows_past_the_usable_range_are_reported_and_do_not_count():
    curve = curve_of(lambda n: n ** -0.9, max_lag=128)
    grams = curve.grams.copy()
    grams[curve.lags > 40] = np.random.default_rng(0).normal(size=grams[curve.lags > 40].shape) * 1e-3
    decay = fit_decay(dataclasses.replace(curve, grams=grams))
    assert curve.lags[decay.noise.usable][-1] == 40
    assert ([(w.hi, w.whole, w.reach) for w in decay.windows]
            == [(16, True, 16), (32, True, 32), (64, False, 40), (200, False, 40)])


def test_range_ends_before_two_invalid_lags_in_a_row():
    for text, expected in (("1011", "1011"), ("10011", "10000"), ("111", "111"), ("110", "110"), ("1100", "1100"),
                           ("0", "0")):
        assert before_two_invalid([c == "1" for c in text]).tolist() == [c == "1" for c in expected]


@pytest.mark.parametrize("code, norm, options", [
    ("too_few_valid_lags", lambda n: n ** -0.9, dict(max_lag=8)),
    ("too_few_valid_lags", lambda n: np.where(n < 6, n ** -0.9, 0), {}),
    ("not_power_law", lambda n: np.exp(-0.1 * n), {}),
    ("not_power_law", lambda n: 1 + 0.3 * np.cos(n), {}),
    ("not_power_law", lambda n: np.ones_like(n), dict(noise=0)),
    ("beta_nonpositive", lambda n: n ** 0.2, {})])
def test_refusals_have_their_code(code, norm, options):
    assert refused(curve_of(norm, **options)) == code


def test_the_same_seed_gives_the_same_interval():
    curve = curve_of(lambda n: n ** -0.9, noise=0.05)
    assert fit_decay(curve, seed=1).se == fit_decay(curve, seed=1).se != fit_decay(curve, seed=2).se
