"""
The shape of a measured decay ||C(n)||: a power law, a broken one, or correlations that have a scale.

A power law has no scale; an exponential has. Sums of exponentials stand between them. Two of them, with time constants
of 3 and 30 tokens, look like a bent power law over lags 1 to 80, and its beta would be a number of the window alone. So
sums of two and three exponentials compete with power laws in four forms, by BIC.

Natural text is nearly a sum of exponentials, too: books are described by 1, 15 and 700 tokens better than by any broken
power law. The last of these is longer than the range, so nothing is seen to end. A decay is refused only where the end
of the slowest part is seen, in the fit and in the measured slope of the last lags.
"""

import itertools
from dataclasses import dataclass

import numpy as np

BIC_WINS = 6
FIT_ERROR = 0.02  # of a norm: no text follows any law more closely, and its errors at short lags are 0.003
STEPS = {2: 96, 3: 32}  # time constants tried for sums of that many exponentials
SHIFTS = np.geomspace(0.03, 30, 30)  # c of (n + c)^-b
EXPONENTS = np.linspace(0, 4, 81)  # of a sum of two power laws; 0 is a plateau
LAST = 5  # lags, an octave and a third
SEEN = 1.0  # local slope at the last lag: a single exponential has fallen to 1/e of where it would start


@dataclass(frozen=True)
class Hinge:
    """Two slopes in logarithms that meet at n_break."""
    short: float
    long: float
    n_break: int


@dataclass(frozen=True)
class Exponentials:
    """The best sum of two or three exponentials.

    scales: time constants in tokens, rising. ahead: by how much its BIC is better than that of the best power law. Both
    are divided by the sum's own chi-square per degree of freedom where that is above 1 (Birge). end_slope: its local
    slope -d log F / d log n at the last lag. steepens: the measured slope of the last lags is above that of all.
    """
    scales: tuple[float, ...]
    ahead: float
    end_slope: float
    steepens: bool

    @property
    def refuted(self) -> bool:
        """The power law is refuted: the sum is better beyond doubt, and its slowest part ends within the range."""
        return self.ahead > BIC_WINS and self.end_slope > SEEN and self.steepens


# -----------------------------------------------------------------------------
# One line, two lines, one exponential: unweighted

def _bic(y, columns, more: int = 0) -> tuple[float, np.ndarray]:
    """(BIC, coefficients) of least squares of y on the columns; more: parameters beside the coefficients."""
    matrix = np.stack(columns, axis=1)
    fit = np.linalg.lstsq(matrix, y, rcond=None)[0]
    rest = max(np.mean((y - matrix @ fit) ** 2), 1e-20)  # an exact fit leaves rounding
    return len(y) * np.log(rest) + (len(columns) + more) * np.log(len(y)), fit


def compare_shapes(lags, norm) -> tuple[float, float, float, Hinge | None]:
    """BIC of (power law, exponential, hinge), and the hinge with its knot on a lag, three or more from either end.

    BIC = n log(mean squared residual) + parameters x log n, lower is better. The hinge pays for four parameters: level,
    two slopes, knot. Its BIC is infinite where there are too few lags for it.
    """
    x, y, one = np.log(lags), np.log(norm), np.ones(len(lags))
    power, exponential = _bic(y, [one, x])[0], _bic(y, [one, np.asarray(lags, float)])[0]
    best, hinge = np.inf, None
    for knot in range(2, len(lags) - 2):
        bic, (_, first, change) = _bic(y, [one, x, np.maximum(x - x[knot], 0)], more=1)
        if bic < best:
            best, hinge = bic, Hinge(float(-first), float(-first - change), int(lags[knot]))
    return power, exponential, best, hinge


# -----------------------------------------------------------------------------
# Sums of exponentials against power laws: with the errors of the lags

def sum_of_exponentials(lags, norm, log_se) -> Exponentials | None:
    """The best sum, against the best of a power law, a shifted and a broken power law, and a sum of two.

    log_se: standard errors of log norm. None where there are too few lags, or no sum of positive parts is defined.
    """
    lags, error, count = np.asarray(lags, float), np.hypot(log_se, FIT_ERROR), len(lags)
    found = []
    for parts in (2, 3):
        rates = 1 / np.geomspace(0.7, 4 * lags[-1], STEPS[parts])
        chi2, rows, sizes = best_sum(np.exp(-(lags - lags[0]) * rates[:, None]), norm, error, parts)
        if count - 2 * parts >= 2 and np.isfinite(chi2):
            found.append((chi2 + 2 * parts * np.log(count), max(1.0, chi2 / (count - 2 * parts)), rates[rows], sizes))
    if not found:
        return None
    bic, birge, rates, sizes = min(found, key=lambda sum_: sum_[0])
    last = sizes * np.exp(-(lags[-1] - lags[0]) * rates)
    return Exponentials(tuple(sorted((1 / rates).tolist())), float((_power_laws(lags, norm, error) - bic) / birge),
                        float(last @ rates * lags[-1] / last.sum()), _steepens(lags, norm, error))


def _steepens(lags, norm, error) -> bool:
    """The end of natural text is flatter than its whole; that of a sum of exponentials is steeper, once it is seen."""
    whole, end = (np.polyfit(np.log(lags[part]), np.log(norm[part]), 1, w=1 / error[part])[0]
                  for part in (slice(None), slice(-LAST, None)))
    return bool(-end > -whole)


def best_sum(basis, norm, error, parts: int) -> tuple[float, np.ndarray, np.ndarray]:
    """(least chi-square, rows, sizes): norm as a sum of `parts` rows of basis [rows, lags] with sizes above 0.

    Sizes come from least squares of relative residuals, which are linear in them; the chi-square is that of logarithms.
    """
    relative = basis / norm / error
    rows = np.array(list(itertools.combinations(range(len(basis)), parts)))
    gram, target = relative @ relative.T, relative @ (1 / error)
    scale = np.sqrt(np.diag(gram))
    gram, target = gram / scale / scale[:, None] + 1e-10 * np.eye(len(basis)), target / scale
    sizes = np.linalg.solve(gram[rows[:, :, None], rows[:, None, :]], target[rows][..., None])[..., 0] / scale[rows]
    rows, sizes = rows[(sizes > 0).all(axis=1)], sizes[(sizes > 0).all(axis=1)]
    if not len(rows):
        return np.inf, np.empty(0, int), np.empty(0)
    chi2 = ((np.log(np.einsum("cp,cpn->cn", sizes, basis[rows]) / norm) / error) ** 2).sum(axis=1)
    best = int(chi2.argmin())
    return float(chi2[best]), rows[best], sizes[best]


def _power_laws(lags, norm, error) -> float:
    """The best BIC of power laws in four forms."""
    x, y, one, price = np.log(lags), np.log(norm), np.ones(len(lags)), np.log(len(lags))

    def chi2(*columns):
        matrix = np.stack(columns, axis=1) / error[:, None]
        return float(np.sum((matrix @ np.linalg.lstsq(matrix, y / error, rcond=None)[0] - y / error) ** 2))
    return min(chi2(one, x) + 2 * price, min(chi2(one, np.log(lags + c)) for c in SHIFTS) + 3 * price,
               min((chi2(one, x, np.maximum(x - knot, 0)) for knot in x[2:-2]), default=np.inf) + 4 * price,
               best_sum(lags ** -EXPONENTS[:, None], norm, error, 2)[0] + 4 * price)
