"""
beta, the exponent of ||C(n)|| ~ n^-beta, from a measured curve: its interval, its window, and whether the decay is a
power law at all.

The window of lags matters more than the noise (arXiv:2602.07488 chooses its windows by hand). So beta is always given
on several windows, and half their spread goes into the standard error. Fits are ordinary least squares in logarithms:
in linear space the first lags would decide everything.
"""

from dataclasses import dataclass

import numpy as np

from nanochat.lab.horizon.correlation import Curve, resampled_squares
from nanochat.lab.horizon.shapes import BIC_WINS, Hinge, compare_shapes, sum_of_exponentials
from nanochat.lab.horizon.source import Refusal
from nanochat.lab.verdict.stats import Z95

WINDOWS = (16, 32, 64, 200)  # last lags of the windows that every result reports
FEWEST_LAGS, SHORTEST_REACH = 6, 10
ROUNDS = 1000
SIGNIFICANT = 3  # standard errors of F^2, for a lag to be valid
LEAST_R2 = 0.8
WIDE_SPREAD = 0.15


@dataclass(frozen=True)
class Window:
    """A power law on the usable lags of lo..hi; None for its numbers where there are fewer than three.

    reach: the last usable lag. whole: the usable range covers the window, so that the window counts in the spread.
    """
    lo: int
    hi: int
    lags: int
    reach: int | None
    beta: float | None
    intercept: float | None
    se: float | None
    r2: float | None
    whole: bool


@dataclass(frozen=True)
class Decay:
    """beta: of the headline window. se: bootstrap and spread of windows together. hinge: where two slopes beat one."""
    beta: float
    se: float
    headline: Window
    windows: tuple[Window, ...]
    noise: "Significance"
    hinge: Hinge | None
    warnings: tuple[str, ...]

    @property
    def ci95(self) -> tuple[float, float]:
        return self.beta - Z95 * self.se, self.beta + Z95 * self.se


# -----------------------------------------------------------------------------
# Significance

@dataclass(frozen=True)
class Significance:
    """Which lags stand above the noise.

    resampled: F^2 of resampled blocks [rounds, m]. square_se: standard error of F^2 [m]. valid: F^2 is above
    SIGNIFICANT standard errors [m]. usable: the valid lags before the first two in a row that are not valid.
    """
    resampled: np.ndarray
    square_se: np.ndarray
    valid: np.ndarray
    usable: np.ndarray


def significance(curve: Curve, rounds=ROUNDS, seed=0) -> Significance:
    """Resample blocks, with one draw for all lags, because the errors of lags go together.

    B - 3 of B blocks are drawn. Reason: F^2 is a mean over pairs, and drawing all B gives (B - 2) / sqrt(B (B - 1)) of
    its error, 0.90 at 16 blocks. Drawing m instead widens that by sqrt(B / m). It is right for m = (B - 2)^2 / (B - 1),
    which is almost B - 3: 2 % wide at 16 blocks, 10 % at 8. Where F^2 is all noise, its error comes out twice too
    large, 2.3 times at 8. That errs towards "not valid".
    """
    blocks = curve.grams.shape[1]
    draws = np.random.default_rng(seed).multinomial(blocks - 3, np.full(blocks, 1 / blocks), size=rounds)
    resampled = resampled_squares(curve.grams, draws[(draws > 0).sum(1) > 1])  # one block alone has no pair
    square_se = resampled.std(axis=0, ddof=1)
    valid = curve.squares > SIGNIFICANT * square_se
    return Significance(resampled, square_se, valid, before_two_invalid(valid))


def before_two_invalid(valid) -> np.ndarray:
    """The valid lags before the first two in a row that are not valid.

    >>> before_two_invalid([True, False, True, False, False, True]).tolist()
    [True, False, True, False, False, False]
    """
    valid = np.asarray(valid, bool)
    twice = np.flatnonzero(~valid[:-1] & ~valid[1:])
    return valid & (np.arange(len(valid)) < (twice[0] if len(twice) else len(valid)))


def horizon(curve: Curve) -> tuple[int | None, bool]:
    """(n*, is it censored).

    n* is the last lag whose operator norm is above the noise. It is censored where no larger lag was measured.
    """
    visible = np.flatnonzero(curve.op_visible)
    return (int(curve.lags[visible[-1]]), bool(visible[-1] == len(curve.lags) - 1)) if len(visible) else (None, False)


# -----------------------------------------------------------------------------
# Fits

def power_law(lags, norm) -> tuple[float, float, float]:
    """(beta, log F at lag 1, R^2) by least squares of log F on log n."""
    x, y = np.log(lags), np.log(norm)
    slope, intercept = np.polyfit(x, y, 1)
    spread = np.sum((y - y.mean()) ** 2)
    rest = np.sum((y - intercept - slope * x) ** 2)
    flat = spread <= 1e-12 * len(y)  # constant up to rounding: a line of slope 0 explains nothing
    return float(-slope), float(intercept), 0.0 if flat else float(1 - rest / spread)


def resampled_betas(lags, squares) -> np.ndarray:
    """beta of every resampled curve [R]. squares: [R, m].

    A lag whose F^2 came out negative in a resampling has no logarithm and is left out of that resampling.
    """
    x, w = np.log(lags)[None, :], (squares > 0).astype(float)
    y = 0.5 * np.log(np.where(squares > 0, squares, 1.0))
    n, sx, sy = w.sum(1), (w * x).sum(1), (w * y).sum(1)
    across = n * (w * x * x).sum(1) - sx ** 2
    enough = n >= 3
    return -((n * (w * x * y).sum(1) - sx * sy)[enough] / across[enough])


def fit_window(lags, squares, usable, resampled, lo: int, hi: int) -> Window:
    inside = (lags >= lo) & (lags <= hi)
    use, last = inside & usable, lags[usable][-1]
    whole = bool(inside.any() and lags[inside][-1] <= last and hi <= lags[-1] and use.sum() >= FEWEST_LAGS)
    reach = int(lags[use][-1]) if use.any() else None
    if use.sum() < 3:
        return Window(lo, hi, int(use.sum()), reach, None, None, None, None, whole)
    beta, intercept, r2 = power_law(lags[use], np.sqrt(squares[use]))
    se = float(np.std(resampled_betas(lags[use], resampled[:, use]), ddof=1))
    return Window(lo, hi, int(use.sum()), reach, beta, intercept, se, r2, whole)


# -----------------------------------------------------------------------------
# The answer

def fit_decay(curve: Curve, max_seq_len: int | None = None, window: tuple[int, int] | None = None, rounds=ROUNDS,
              seed=0) -> Decay:
    """beta of a curve.

    max_seq_len: the context T of the models in question. window: lags of the headline. Its default is 1..min(n*, T/4),
    lengthened to the first usable lags where it has too few of them for a fit.

    Raises Refusal: no_signal, too_few_valid_lags, not_power_law, beta_nonpositive.
    """
    lags, squares, noise = curve.lags, curve.squares, significance(curve, rounds, seed)
    usable, resampled = noise.usable, noise.resampled
    _require_signal(lags, noise.valid, usable)
    n_star, _ = horizon(curve)
    lo, hi = window or (1, _headline_end(lags[usable], n_star, max_seq_len))
    headline = fit_window(lags, squares, usable, resampled, lo, hi)
    windows = tuple(fit_window(lags, squares, usable, resampled, 1, end) for end in WINDOWS)
    norm = np.sqrt(squares[usable])
    hinge = _require_power_law(lags[usable], norm, (headline, *windows))
    exponentials = _require_no_scale(lags[usable], norm, noise.square_se[usable] / (2 * squares[usable]))
    _require_headline(headline)
    spread = window_spread(lags[usable], norm, headline, windows)
    warnings = [*["broken_power_law"] * (hinge is not None), *["exponential_mixture"] * exponentials,
                *["window_sensitive"] * (spread > WIDE_SPREAD)]
    return Decay(headline.beta, float(np.hypot(headline.se, spread / 2)), headline, windows, noise, hinge,
                 (*warnings, *horizon_warnings(n_star, max_seq_len)))


def require_positive(found: Decay):
    """Raise Refusal beta_nonpositive where the interval of beta holds 0; its windows and slopes are results anyway."""
    low, high = found.ci95
    if low <= 0:
        raise Refusal("beta_nonpositive",
                      f"beta is {found.beta:.3f} on lags {found.headline.lo}..{found.headline.hi}, but its interval, "
                      f"{low:.3f} to {high:.3f}, holds 0; the windows of lags disagree, or there is too little text: "
                      "give the context of the models, --max-seq-len, or a --fit-window of one slope, or more text")


def horizon_warnings(n_star: int | None, max_seq_len: int | None) -> tuple[str, ...]:
    """Where correlations reach beyond a quarter of the context, the theory's exponent is only a prior."""
    return ("horizon_exceeds_context",) if n_star and max_seq_len and n_star > max_seq_len / 4 else ()


def window_spread(lags, norm, headline: Window, windows) -> float:
    """Largest minus smallest beta over the admissible windows: the headline and the whole windows.

    A single whole window has no spread, and documents of 60 tokens leave no whole window. Where there are fewer than
    two, the windows that keep half of the usable range in log n are added; where the range is 1..256, these are the
    windows from 1..16 on.
    """
    betas = [headline.beta, *(w.beta for w in windows if w.whole)]
    if sum(w.whole for w in windows) < 2:
        betas += [power_law(lags[:k], norm[:k])[0] for k in range(3, len(lags) + 1) if lags[k - 1] ** 2
                  >= lags[-1] * lags[0]]
    return max(betas) - min(betas)


def _headline_end(usable_lags, n_star, max_seq_len) -> int:
    end = min(n_star or usable_lags[-1], max_seq_len / 4 if max_seq_len else np.inf, usable_lags[-1])
    return int(max(end, usable_lags[FEWEST_LAGS - 1]))


def _require_signal(lags, valid, usable):
    if not valid[0]:
        raise Refusal("no_signal",
                      f"at lag 1 the correlation is within {SIGNIFICANT} standard errors of zero: the tokens look "
                      "independent, or there are too few of them")
    reach = int(lags[usable][-1])
    if usable.sum() < FEWEST_LAGS or reach < SHORTEST_REACH:
        raise Refusal("too_few_valid_lags",
                      f"{usable.sum()} lags, up to {reach}, stand above the noise: expected at least {FEWEST_LAGS}, up "
                      f"to {SHORTEST_REACH} or more; use more text, or longer documents")


def _require_power_law(lags, norm, windows) -> Hinge | None:
    """Raise Refusal not_power_law, or return the hinge where it wins."""
    power, exponential, hinged, hinge = compare_shapes(lags, norm)
    if exponential < power - BIC_WINS:
        raise Refusal("not_power_law",
                      f"an exponential describes the decay better than a power law (BIC {exponential:.1f} against "
                      f"{power:.1f}): correlations of this corpus have a scale")
    r2 = max(w.r2 for w in windows if w.r2 is not None)
    if r2 < LEAST_R2:
        raise Refusal("not_power_law",
                      f"no window of lags is near a power law: the best R2 is {r2:.2f}, expected {LEAST_R2}")
    return hinge if hinged < power - BIC_WINS else None


def _require_no_scale(lags, norm, log_se) -> bool:
    """Raise Refusal not_power_law for a sum of exponentials, or say whether one is as good as a power law."""
    found = sum_of_exponentials(lags, norm, log_se)
    if found and found.refuted:
        scales = ", ".join(f"{scale:.3g}" for scale in found.scales)
        raise Refusal("not_power_law",
                      f"a sum of exponentials with scales of {scales} tokens describes the decay better than a power "
                      f"law, broken or not (by {found.ahead:.0f} in BIC), and ends within the {lags[-1]} tokens that "
                      "are seen: expected a decay without a scale, as natural text has it; alpha_D needs another text")
    return found is not None and found.ahead > 0


def _require_headline(headline: Window):
    name = f"{headline.lo}..{headline.hi}"
    if headline.beta is None:
        raise Refusal("too_few_valid_lags",
                      f"the window {name} has {headline.lags} usable lags; choose another --fit-window")
    if headline.beta <= 0:
        raise Refusal("beta_nonpositive",
                      f"beta is {headline.beta:.3f} on lags {name}: correlations do not decay there")
