"""
gamma: how fast the next token gets easier to predict as the context grows, H_n - H_inf = A n^-gamma (arXiv:2602.07488).

A fit cannot tell H_inf from a slight bend of the power law. So H_inf counts as identified only where its
profile-likelihood interval excludes 0. Otherwise H_inf = 0 is the convention, and gamma is an effective exponent of its
window. Its interval holds what every floor of that interval gives. Example: L_n = 1 + 4 n^-0.3 over 16 contexts, gamma
0.22 with no floor, and 0.45 with a floor of 1.9 that fits as well. entropy.py has the curves that gamma is fitted to.
"""

import math
from dataclasses import dataclass

import numpy as np

from nanochat.lab.horizon.entropy import LEAST_CONTEXTS, EntropyCurve, few_an_octave
from nanochat.lab.horizon.source import Refusal
from nanochat.lab.verdict.stats import Z95, t_above

WINDOW = (1, 16)  # contexts of the fit where no window is given: the paper's for TinyStories
LEAST_FOR_H_INF = 5  # contexts; A, gamma and H_inf go through any three
# The share of the loss by which a curve may bend away from a power law. It is assumed, not measured; with less than 1 %
# a bend passes for H_inf.
MODEL_ERROR = 0.02
H_GRID = np.linspace(0, 0.99, 199)  # candidates for H_inf, as shares of the smallest loss
CHI2_95 = 3.841  # chi-square with one degree of freedom, 95 %
DRAWS = 1000
H_ERROR_SHARED = 0.8  # share of the variance of h_error that all contexts have in common: 40 ladders with known H_n
FALSE_ALARM = 0.05  # over all m of saturated_from
# Largest over smallest gamma of the floors that fit: from here on alpha_D is only a prior. There is no limit at which
# the interval is refused: short of the longest run D* hardly depends on alpha_D (0.8 of it: 0.73 to 0.89 for an alpha
# known to a factor of 10 either way), and beyond it the inference finds its own band too wide.
FLOOR_SENSITIVE = 3
LEAST_FALL = 0.85  # of the further fall of H + A/n; the rest is left to curves that bend by MODEL_ERROR


@dataclass(frozen=True)
class GammaFit:
    """gamma with its 95 % interval, which is not symmetric: floors H_inf above the one used give a larger gamma.

    h_inf_nats is 0 by convention where it is not identified; h_inf_ci95 is the interval that the curve allows.
    """
    gamma: float
    ci95: tuple[float, float]
    h_inf_nats: float
    h_inf_identified: bool
    window: tuple[int, int]
    warnings: tuple[str, ...] = ()
    h_inf_ci95: tuple[float, float] | None = None


# -----------------------------------------------------------------------------
# The fit

def fit_gamma(curve: EntropyCurve | None, window: tuple[int, int] | None = None, seed: int = 0) -> GammaFit:
    """Fit H_n - H_inf = A n^-gamma over the contexts of `window` (ends included; default WINDOW, cut to the curve).

    The interval runs from gamma at the lowest floor of the interval of H_inf to gamma at the highest, and at either end
    1.96 errors further. An error is the root of a sum of two squares. One is the variance of gamma over resampled
    blocks of text and over the systematic errors of h_extrapolated (independent errors where the curve has no blocks).
    The other is half the spread of gamma over narrower windows, squared.

    Raises Refusal gamma_unavailable without a curve, or with fewer than LEAST_CONTEXTS contexts in the window. Raises
    Refusal gamma_not_converged where nothing is extrapolated, where a model is blind to part of the window, or where
    the interval reaches 0: then the loss does not fall with the context.
    """
    if curve is None:
        raise Refusal("gamma_unavailable",
                      "there is no entropy curve: python -m scripts.base_loss --per-position writes one")
    context, used = usable_contexts(curve, window or WINDOW)
    if blind := curve.source == "positional" and saturated_from(curve, used):
        raise Refusal("gamma_not_converged",
                      f"beyond {blind} tokens of context the loss falls less than under any power law with an exponent "
                      f"up to 1: the model does not use what is up to {context[-1]} tokens back, and gamma would be "
                      "its own, or nothing is there to use; train it longer, or on more text")
    value, x = curve.fitted[used], np.log(context)
    sigma = np.hypot(curve.se[used], MODEL_ERROR * value)
    h, h_ci, identified = profile_h_inf(x, value, sigma)
    gamma, spread = float(log_fit(x, value, h, sigma)[0]), window_spread(x, value, h, sigma)
    draws = resample(curve, used, np.random.default_rng(seed))
    (least, below), (most, above) = (gamma_at(floor, x, value, draws, sigma) for floor in h_ci)
    low, high = min(gamma, least) - below, max(gamma, most) + above
    if not low > 0:
        raise Refusal("gamma_not_converged",
                      f"gamma {gamma:.3f} [{low:.3f}, {high:.3f}] over contexts {context[0]}..{context[-1]} may be 0: "
                      "train the model longer, measure more tokens, or choose a window where the curve is one power "
                      "law")
    warnings = (*["gamma_window_sensitive"] * (spread > gamma / 2),
                *["gamma_floor_sensitive"] * (most > FLOOR_SENSITIVE * least))
    return GammaFit(gamma, (low, high), float(h), identified, (int(context[0]), int(context[-1])), warnings, h_ci)


def gamma_at(floor: float, x, value, draws, sigma) -> tuple[float, float]:
    """(gamma, half its 95 % interval) where the floor is known."""
    of_draws, _ = log_fit(x, draws, np.minimum(floor, H_GRID[-1] * draws.min(axis=-1)), sigma)
    spread = window_spread(x, value, floor, sigma)
    return float(log_fit(x, value, floor, sigma)[0]), Z95 * math.hypot(float(np.std(of_draws, ddof=1)), spread / 2)


def usable_contexts(curve: EntropyCurve, window) -> tuple[np.ndarray, np.ndarray]:
    """(contexts, their indices in the curve): inside the window, n >= 1, finite and positive, PER_OCTAVE at most."""
    if curve.source == "ngram":
        check_converged(curve)
    ok = np.isfinite(curve.fitted) & (curve.fitted > 0) & few_an_octave(curve.context)
    used = np.flatnonzero(ok & (curve.context >= max(1, window[0])) & (curve.context <= window[1]))
    if len(used) < LEAST_CONTEXTS:
        raise Refusal("gamma_unavailable",
                      f"{len(used)} usable contexts in the window {window[0]}..{window[1]}: expected at least "
                      f"{LEAST_CONTEXTS}; widen the window, or measure longer contexts")
    return curve.context[used], used


def saturated_from(curve: EntropyCurve, used) -> int | None:
    """The first context m of the window from which on the loss falls too little for a model that sees the whole window;
    None where there is no such context.

    H + A/n through the contexts m/2..m is continued. Any floor and any exponent up to 1 falls further than it. The mean
    loss over the contexts from m to twice the window's end is compared with it. There the loss of a blind model stays
    where it was, and that of a model that sees as much as before falls on. The error is that of the difference, block
    by block. A blindness that sets in over an octave or more looks like a floor, and is not found.
    """
    context, end = curve.context, int(curve.context[used[-1]])
    middle = [m for m in curve.context[used][:-1] if m >= 2 * curve.context[used[0]]]
    if not middle:
        return None
    weights = np.array([excess_weights(context, m, end) for m in middle])
    if curve.blocks is None:
        error, df = np.sqrt(weights ** 2 @ curve.se ** 2), math.inf
    else:
        error, df = (curve.blocks @ weights.T).std(axis=0, ddof=1) / math.sqrt(len(curve.blocks)), len(curve.blocks) - 1
    too_high = weights @ curve.loss > t_above(FALSE_ALARM / len(middle), df) * error
    return int(middle[too_high.argmax()]) if too_high.any() else None


def excess_weights(context: np.ndarray, m: int, end: int) -> np.ndarray:
    """Weights [contexts]: their product with the losses is the mean excess over H + A/n after m; see saturated_from."""
    before = np.flatnonzero((context >= m / 2) & (context <= m))
    after = np.flatnonzero((context > m) & (context <= 2 * end))
    fall = LEAST_FALL * (1 / m - (1 / np.minimum(context[after], end)).mean())
    line = np.linalg.pinv(np.column_stack([np.ones(len(before)), 1 / context[before]]))  # losses -> (H, A)
    weights = np.zeros(len(context))
    weights[after] = 1 / len(after)
    weights[before] = -np.array([1, 1 / m - fall]) @ line
    return weights


def check_converged(curve: EntropyCurve):
    if curve.h_extrapolated is None:
        raise Refusal("gamma_not_converged",
                      "the n-gram losses are not extrapolated, and at a finite corpus they only bound H_n")
    accepted = np.flatnonzero(np.isfinite(curve.h_extrapolated) & (curve.context > 0))
    if len(accepted) < LEAST_CONTEXTS:
        rows = ", ".join(f"n={n}: {loss:.3f} nats, d={d:.2f}"
                         for n, loss, d in zip(curve.context, curve.loss, curve.delta) if 0 < n <= 5)
        raise Refusal("gamma_not_converged",
                      f"only {len(accepted)} contexts can be carried to an infinite corpus ({rows}); expected at least "
                      f"{LEAST_CONTEXTS}: take more tokens or a smaller vocabulary, or --gamma-source positional")


def log_fit(x, value, h, sigma) -> tuple[np.ndarray, np.ndarray]:
    """(gamma, chi-square) of log(value - h) = a - gamma x by weighted least squares; the last axis is contexts.

    The weights are those of errors sigma in value, carried to the logarithm: an error sigma of `rest` is sigma / rest
    in log(rest). The chi-square is that of value itself. In logarithms a value just above h would weigh nothing, and
    such an h would always fit.
    """
    rest = value - np.asarray(h)[..., None]
    y, w = np.log(rest), (rest / sigma) ** 2
    total = w.sum(axis=-1, keepdims=True)
    mean_x, mean_y = ((w * z).sum(axis=-1, keepdims=True) / total for z in (x, y))
    gamma = -(w * (x - mean_x) * (y - mean_y)).sum(axis=-1) / (w * (x - mean_x) ** 2).sum(axis=-1)
    power = np.exp(mean_y - gamma[..., None] * (x - mean_x))
    return gamma, (((rest - power) / sigma) ** 2).sum(axis=-1)


def best_h_inf(x, value, sigma) -> tuple[np.ndarray, np.ndarray]:
    """(h of the least chi-square, chi-square over the grid) for value [..., contexts]; the values of h are H_GRID's."""
    grid = H_GRID * value.min(axis=-1)[..., None]
    _, chi2 = log_fit(x, value[..., None, :], grid, sigma)
    return np.take_along_axis(grid, chi2.argmin(axis=-1)[..., None], -1)[..., 0], chi2


def profile_h_inf(x, value, sigma) -> tuple[float, tuple[float, float], bool]:
    """(H_inf to use, its 95 % interval, whether 0 is excluded).

    The interval holds every h whose chi-square is at most CHI2_95 above the least. Where even the best fit misses by
    more than the errors, they are widened to match (Birge's ratio).

    The plan of Lane B refuses an interval that covers [0, 0.8 min L]; this rule refuses every interval that holds 0.
    Reason: at a window of 16, a curve without a floor, but with a bend well within MODEL_ERROR, would often pass the
    plan's rule. So would a floor of one nat that must not pass.
    """
    best, chi2 = best_h_inf(x, value, sigma)
    scale = max(1.0, chi2.min() / max(1, len(x) - 3))
    inside = H_GRID[chi2 <= chi2.min() + CHI2_95 * scale] * value.min()
    identified = bool(inside[0] > 0 and len(x) >= LEAST_FOR_H_INF)
    return float(best) if identified else 0.0, (float(inside[0]), float(inside[-1])), identified


def resample(curve: EntropyCurve, used, rng) -> np.ndarray:
    """DRAWS curves [DRAWS, contexts] as other text of the same kind would have given them.

    One draw of blocks serves all contexts: they were measured on the same text.
    """
    value = curve.fitted[used]
    if curve.blocks is None:
        draws = value + curve.se[used] * rng.standard_normal((DRAWS, len(used)))
    else:
        count = len(curve.blocks)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) / count
        draws = value + weights @ (curve.blocks[:, used] - curve.blocks[:, used].mean(axis=0))
    if curve.h_error is not None:
        common, own = rng.standard_normal((DRAWS, 1)), rng.standard_normal(draws.shape)
        draws += curve.h_error[used] * (math.sqrt(H_ERROR_SHARED) * common + math.sqrt(1 - H_ERROR_SHARED) * own)
    return np.maximum(draws, 1e-6 * value)  # an entropy is positive; a draw at this bound widens the interval


def window_spread(x, value, h, sigma) -> float:
    """Largest minus smallest gamma over the windows that keep half of the range in log n."""
    found = [log_fit(x[i:j], value[i:j], h, sigma[i:j])[0] for i in range(len(x)) for j in range(i + 2, len(x) + 1)
             if x[j - 1] - x[i] >= (x[-1] - x[0]) / 2]
    return float(np.ptp(found))
