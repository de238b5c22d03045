"""
Tokens that a target takes: L(D) = L_inf + A D^-alpha through the final losses of runs of different length, alpha given.

For a given alpha the law is a line in D^-alpha. So the fit is weighted linear least squares, and the many fits of a
Monte Carlo cost nothing. With alpha free as well, three parameters go through three or four points, which say little.
That fit is asked only whether it contradicts the given alpha (arXiv:2602.07488 has where alpha comes from). Losses here
are lower-is-better.

>>> losses = pool([Point(t, 0.7 + 30.0 * t ** -0.25) for t in (10_000, 40_000, 160_000)], sd=0.002)
>>> law = fit(losses, 0.25)
>>> round(law.floor, 6), round(law.tokens_to(0.7 + 30.0 * 250_000 ** -0.25))
(0.7, 250000)
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from nanochat.lab.horizon.source import Refusal
from nanochat.lab.verdict.stats import ALPHA, Z95, t_above

EXPONENTS = (0.005, 5.0)  # of a loss over tokens: below, nearly a logarithm; above, nearly a step
LARGEST = 1e20  # tokens of a run, or size of a loss: powers and squares of more leave the range of floating point
DRAWS = 4000


@dataclass(frozen=True)
class Point:
    """The final loss of one complete run of `tokens` tokens.

    step_tokens: tokens of an optimizer step, the grain of `tokens`.
    """
    tokens: float
    loss: float
    seed: int | None = None
    run_id: str | None = None
    step_tokens: int = 0


@dataclass(frozen=True)
class Losses:
    """Means by horizon. tokens [m] rising, mean [m], runs [m].

    sd: of one run's loss. df: its degrees of freedom, inf where sd is an assumption and not measured.
    """
    tokens: np.ndarray
    mean: np.ndarray
    runs: np.ndarray
    sd: float
    df: float

    @property
    def scale(self) -> float:
        return float(np.exp(np.log(self.tokens).mean()))


def pool(points: list[Point], sd: float | None, sd_df: int | None = None) -> Losses:
    """Runs of the same length together. Their spread over seeds, pooled, is the sd where there is any, else `sd`.

    sd_df: the degrees of freedom of `sd`, None where it is an assumption.

    Raises ValueError for a point that is not a number of tokens and a loss, and for copies. Raises Refusal `degenerate`
    for a single length.
    """
    by_tokens = {}
    for point in points:
        if not (1 <= point.tokens <= LARGEST and abs(point.loss) <= LARGEST):
            raise ValueError(f"point {point.tokens:g}:{point.loss:g}: expected 1 to {LARGEST:g} tokens and a loss of "
                             "at most that size")
        by_tokens.setdefault(float(point.tokens), []).append(point)
    for tokens, group in by_tokens.items():
        seeds = [point.seed for point in group]
        if len(set(seeds)) < len(seeds) or (None in seeds and len(seeds) > 1):
            raise ValueError(f"{len(seeds)} points of {tokens:g} tokens with seeds {seeds}: runs of one length need "
                             "seeds, each its own")
    if len(by_tokens) < 2:
        raise Refusal("degenerate", f"{len(by_tokens)} distinct horizons: a slope needs two, an error three")
    tokens = np.array(sorted(by_tokens))
    groups = [np.array([point.loss for point in by_tokens[t]]) for t in tokens]
    df = sum(len(group) - 1 for group in groups)
    if df:
        sd = math.sqrt(sum(((group - group.mean()) ** 2).sum() for group in groups) / df)
        if sd <= 1e-12 * max(abs(group).max() for group in groups):
            raise ValueError("the runs of one length have one and the same loss: they are copies; train them on seeds "
                             "of their own")
    if sd is None:
        raise ValueError("the noise of this metric is not known: give two runs or more of one length, on different "
                         "seeds")
    return Losses(tokens, np.array([group.mean() for group in groups]), np.array([len(group) for group in groups]), sd,
                  df or sd_df or math.inf)


# -----------------------------------------------------------------------------
# alpha given

@dataclass(frozen=True)
class Law:
    """L = floor + drop (D / scale)^-alpha, with the standard errors that the noise of the losses gives at this alpha.

    D is divided by the mean horizon `scale`, so that floor and drop are both of the size of a loss.
    """
    alpha: float
    floor: float
    drop: float
    scale: float
    floor_se: float
    drop_se: float

    @property
    def a(self) -> float:
        """A of L_inf + A D^-alpha, in loss x tokens^alpha."""
        return self.drop * self.scale ** self.alpha

    def loss(self, tokens):
        return self.floor + self.drop * (np.asarray(tokens) / self.scale) ** -self.alpha

    def tokens_to(self, target: float) -> float:
        """D*; inf where the law never comes down to the target."""
        return float(self.scale * _solve(self.floor, self.drop, self.alpha, target))


def _line(x, y, weights):
    """Weighted least squares of y on [1, x] over the last axis.

    Returns (intercept, slope, sum of weighted squares of centred x, mean x).
    """
    total = weights.sum()
    x_mean, y_mean = (x * weights).sum(-1) / total, (y * weights).sum(-1) / total
    centred = x - x_mean[..., None]
    squares = (weights * centred ** 2).sum(-1)
    slope = (weights * centred * (y - y_mean[..., None])).sum(-1) / squares
    return y_mean - slope * x_mean, slope, squares, x_mean


def _solve(floor, drop, alpha, target):
    with np.errstate(all="ignore"):  # an exponent near 0 may overflow: that is inf as well
        return np.where((drop > 0) & (floor < target), (drop / (target - floor)) ** (1 / np.asarray(alpha, float)),
                        np.inf)


def fit(losses: Losses, alpha: float) -> Law:
    """Raises Refusal `non_decreasing` where the losses do not fall with the tokens by more than their noise."""
    x = (losses.tokens / losses.scale) ** -alpha
    floor, drop, squares, x_mean = map(float, _line(x, losses.mean, losses.runs))
    drop_se = losses.sd / math.sqrt(squares)
    floor_se = losses.sd * math.sqrt(1 / losses.runs.sum() + x_mean ** 2 / squares)
    if drop <= t_above(ALPHA, losses.df) * drop_se:
        raise Refusal("non_decreasing",
                      f"the part of the loss that falls with tokens is {drop:.4g} (se {drop_se:.2g}) at "
                      f"{losses.scale:.4g} tokens, which is not beyond its noise; use horizons further apart, or more "
                      "seeds")
    return Law(alpha, floor, drop, losses.scale, floor_se, drop_se)


# -----------------------------------------------------------------------------
# alpha uncertain

def log_sd(alpha: float, ci95) -> tuple[float, float]:
    """Standard deviations of log alpha below and above it.

    An interval of alpha need not be symmetric, and alpha is above 0: so its error is that of log alpha, on each side.
    Raises ValueError for an interval that does not hold alpha, Refusal `degenerate` where it reaches 0 or alpha is
    outside EXPONENTS.
    """
    low, high = ci95
    if not (math.isfinite(high) and low <= alpha <= high):
        raise ValueError(f"alpha {alpha} with the interval [{low}, {high}]: expected low <= alpha <= high, all finite")
    if low <= 0:
        raise Refusal("degenerate",
                      f"the interval of alpha, [{low:.4g}, {high:.4g}], reaches 0: tokens to the target have no upper "
                      "bound")
    if not EXPONENTS[0] <= alpha <= EXPONENTS[1]:
        raise Refusal("degenerate",
                      f"alpha {alpha:.4g}: expected {EXPONENTS[0]} to {EXPONENTS[1]}; no loss falls with tokens like "
                      "that")
    return math.log(alpha / low) / Z95, math.log(high / alpha) / Z95


def draw_tokens(losses: Losses, alpha: float, ci95, target: float, rng: np.random.Generator,
                draws: int = DRAWS) -> np.ndarray:
    """D* [draws] over alpha, the losses, and their spread where it was measured; inf where a draw has no D*."""
    below, above = log_sd(alpha, ci95)
    z = rng.standard_normal(draws)
    lowest, highest = np.log(EXPONENTS) - math.log(alpha)  # powers of exponents outside overflow
    alphas = alpha * np.exp(np.clip(z * np.where(z < 0, below, above), lowest, highest))
    sd = losses.sd if math.isinf(losses.df) else losses.sd * np.sqrt(losses.df / rng.chisquare(losses.df, draws))
    noise = rng.standard_normal((draws, len(losses.tokens))) * np.reshape(sd, (-1, 1)) / np.sqrt(losses.runs)
    x = (losses.tokens / losses.scale) ** -alphas[:, None]
    floor, drop, _, _ = _line(x, losses.mean + noise, losses.runs)
    return losses.scale * _solve(floor, drop, alphas, target)


def quantile(tokens: np.ndarray, q: float) -> float:
    """The quantile, which is one of the draws: between a number and inf there is nothing to interpolate."""
    return float(np.quantile(tokens, q, method="inverted_cdf"))


# -----------------------------------------------------------------------------
# alpha free

def free_alpha(losses: Losses, alpha: float, ci95) -> tuple[float | None, float] | None:
    """(alpha of the losses alone, how many standard errors it stands above the given alpha); None below three horizons.

    The first is None at an end of EXPONENTS: the losses set no bound there.

    The second is the root of the rise of the misfit when losses and given alpha have to agree. For normal errors it is
    their difference over the root of the sum of their variances. Three parameters go through any three points; even so,
    the rise is known, because the spread of a loss is known.
    """
    if len(losses.tokens) < 3:
        return None
    below, above = log_sd(alpha, ci95)

    def misfit(log_a):  # chi-square of the losses at an exponent; log_a of any shape
        x = (losses.tokens / losses.scale) ** -np.exp(log_a)[..., None]
        floor, drop, _, _ = _line(x, losses.mean, losses.runs)
        return (losses.runs * (losses.mean - floor[..., None] - drop[..., None] * x) ** 2).sum(-1) / losses.sd ** 2
    given, (lowest, highest) = math.log(alpha), np.log(EXPONENTS)
    best = _argmin(misfit, lowest, highest)
    both = float(misfit(np.float64(given)))  # exact for an alpha without error, else a bound
    for low, high, sd in ((lowest, given, below), (given, highest, above)):
        if sd and low < high:
            both = min(both, _minimum(lambda log_a, sd=sd: misfit(log_a) + ((log_a - given) / sd) ** 2, low, high))
    away = math.copysign(math.sqrt(max(0.0, both - float(misfit(np.float64(best))))), best - given)
    return (math.exp(best) if lowest + 0.01 < best < highest - 0.01 else None), away


def _argmin(f, low, high, steps=80) -> float:
    grid = np.linspace(low, high, steps)
    best = int(np.argmin(f(grid)))
    around = grid[max(0, best - 1)], grid[min(steps - 1, best + 1)]
    return float(minimize_scalar(f, bounds=around, method="bounded", options={"xatol": 1e-9}).x)


def _minimum(f, low, high) -> float:
    return float(f(np.float64(_argmin(f, low, high))))
