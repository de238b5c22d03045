"""
Gamma where the floor H_inf is not known: its interval holds what every floor gives that fits as well.

python -m pytest tests/test_lane_b_floor.py -v
"""

import numpy as np
import pytest

from nanochat.lab.horizon.calibration import exponent_of_stats
from nanochat.lab.horizon.entropy import EntropyCurve
from nanochat.lab.horizon.gamma import MODEL_ERROR, fit_gamma

CONTEXT = np.arange(33)
WINDOW = np.array([1, 2, 3, 4, 5, 6, 8, 10, 13, 16])  # the contexts of the fit


def curve_of(floor, size, gamma, seed=0, se=0.005):
    losses = floor + size * np.maximum(CONTEXT, 0.5) ** -float(gamma)
    blocks = losses + se * np.sqrt(32) * np.random.default_rng(seed).normal(size=(32, len(CONTEXT)))
    return EntropyCurve("positional", CONTEXT, blocks.mean(0), blocks.std(0, ddof=1) / np.sqrt(32), blocks=blocks)


def gammas_that_fit(floor, size, gamma, floors):
    """Exact curve: gamma by plain least squares at each floor whose law misses no loss by MODEL_ERROR."""
    losses, found = floor + size * WINDOW ** -float(gamma), []
    for h in floors:
        slope, level = np.polyfit(np.log(WINDOW), np.log(losses - h), 1)
        if np.all(np.abs(h + np.exp(level) * WINDOW ** slope - losses) < 0.5 * MODEL_ERROR * losses):
            found.append(-slope)
    return found


@pytest.mark.parametrize("law", [(0, 5, 0.3), (0, 5, 0.15), (1, 4, 0.3), (1, 4, 0.52), (1.5, 3.5, 0.85), (2, 3, 0.6),
                                 (2, 4, 1.0), (0, 5, 0.9)])
def test_interval_holds_the_truth_and_what_other_floors_give(law):
    others = gammas_that_fit(*law, np.linspace(0, 0.97 * (law[0] + law[1] * 16.0 ** -law[2]), 400))
    assert max(others) > min(others)
    for seed in range(5):
        fit = fit_gamma(curve_of(*law, seed=seed))
        assert fit.ci95[0] < law[2] < fit.ci95[1] and fit.ci95[0] <= fit.gamma <= fit.ci95[1]
        assert fit.ci95[0] < min(others) and max(others) < fit.ci95[1]
        assert fit.h_inf_ci95[0] <= law[0] <= fit.h_inf_ci95[1]


def test_a_gamma_that_depends_on_the_floor_says_so_and_alpha_is_a_prior():
    fit = fit_gamma(curve_of(3, 2, 0.3))
    assert not fit.h_inf_identified and fit.ci95[0] < 0.09 and fit.ci95[1] > 0.5
    assert "gamma_floor_sensitive" in fit.warnings
    assert "gamma_floor_sensitive" not in fit_gamma(curve_of(0, 5, 0.3)).warnings
    stats = dict(alpha_d=0.05, alpha_d_ci95=[0.03, 0.4], n_star_tokens=20, warnings=["gamma_floor_sensitive"])
    assert "only a prior" in exponent_of_stats(stats, 256).doubts[0]
    assert exponent_of_stats(stats | {"warnings": []}, 256).doubts == ()


def test_three_contexts_have_an_interval_of_floors_too():
    fit = fit_gamma(curve_of(0, 5, 0.5), window=(1, 3))
    assert not fit.h_inf_identified and fit.h_inf_ci95[1] > 0.5 and fit.ci95[1] > 0.6
