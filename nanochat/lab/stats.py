"""
The statistics of a verdict: a one-sided t test on paired differences, Holm over candidates.

d_i = control - candidate on the gate's metric, one per seed: POSITIVE means that the candidate is better.
The variance of a difference is steadied by the banked noise of the control, where there is a bank
(moderated t: Smyth 2004, doi 10.2202/1544-6115.1027): each degree of freedom votes once.

    v = (nu 2 s_b^2 + (n-1) s_d^2) / (nu + n-1),   T = (mean(d) + margin) / sqrt(v/n),   df = nu + n-1

"Better on every seed" is not used: with two seeds it promotes a change that does nothing one time in four.

>>> round(compare([0.0043, 0.0027], s_b=0.0013, nu=9).p, 6)
0.009724
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import fdtri, stdtr, stdtrit  # scipy.stats has the same functions, a hundred times slower on numbers

ALPHA = 0.05  # one-sided, for a whole label
MIN_PAIRS_WITHOUT_BANK = 5  # below, a paired t has no power worth having, and its spread is a guess
GUARD_QUANTILE = 0.95  # a spread above this quantile of F is more than the bank can explain
POWER = 0.80  # of the smallest detectable gain


@dataclass(frozen=True)
class Comparison:
    """One gate. `mean`, `se`, `lo`, `hi` are in the metric's unit (logs for ratios); se None = no noise known.

    source: bank | own (plain paired t: no bank, or the candidate spreads more than it) | none | identical.
    """
    n: int
    mean: float
    se: float | None
    df: int
    p: float
    lo: float
    hi: float
    level: float
    margin: float
    source: str


def compare(d, s_b: float | None = None, nu: int = 0, margin: float = 0.0, alpha: float = ALPHA) -> Comparison:
    """Is mean(d) > -margin? s_b: sd of ONE banked control run, with nu degrees of freedom (0 = no bank).

    The interval [lo, hi] is two one-sided bounds, each at level alpha: "p <= alpha" is "lo >= -margin".
    Raises ValueError for what can never give a verdict; see _checked.
    """
    d = _checked(d, s_b, nu)
    n, mean = len(d), float(np.mean(d))
    identical = not d.any()
    v, df, source = difference_variance(d, s_b, nu)
    if v is None and not identical:
        return Comparison(n, mean, None, 0, 1.0, -np.inf, np.inf, alpha, margin, "none")
    if not v:  # identical, and no bank to say how much it might have been
        p = 0.5 if margin == 0 else float(margin < 0)
        return Comparison(n, mean, 0.0, df, p, mean, mean, alpha, margin, "identical")
    se = float(np.sqrt(v / n))
    p = float(stdtr(df, -(mean + margin) / se))
    half = t_above(alpha, df) * se
    return Comparison(n, mean, se, df, p, mean - half, mean + half, alpha, margin, "identical" if identical else source)


def difference_variance(d, s_b, nu) -> tuple[float | None, int, str]:
    """(variance of one difference, its degrees of freedom, source); variance None where no noise is known."""
    n = len(d)
    s_d2 = float(np.var(d, ddof=1))
    if nu == 0:
        return (s_d2, n - 1, "own") if n >= MIN_PAIRS_WITHOUT_BANK else (None, 0, "none")
    bank = 2 * s_b ** 2
    if s_d2 / bank > fdtri(n - 1, nu, GUARD_QUANTILE):  # the spread guard
        return s_d2, n - 1, "own"
    return (nu * bank + (n - 1) * s_d2) / (nu + n - 1), nu + n - 1, "bank"


def t_above(p: float, df: int) -> float:
    """The value that Student's t with df degrees of freedom exceeds with probability p."""
    return -float(stdtrit(df, p))


def _checked(d, s_b, nu) -> np.ndarray:
    d = np.asarray(d, dtype=np.float64)
    if len(d) < 2:
        raise ValueError(f"{len(d)} pair(s): at least 2 are needed; add seeds")
    if not np.isfinite(d).all():
        raise ValueError(f"a difference is not a finite number: {d.tolist()}; a diverged run has a status, not a value")
    if nu > 0 and not (s_b is not None and np.isfinite(s_b) and s_b > 0):
        raise ValueError(f"the bank has spread {s_b}: its runs are duplicates of each other; bank runs of different seeds")
    if nu == 0 and d.any() and np.ptp(d) <= 1e-9 * np.abs(d).max():
        raise ValueError(f"all {len(d)} differences equal {d[0]:.6g}: the metric is rounded or copied, not measured")
    return d


def holm(p_values, alpha: float = ALPHA) -> list[tuple[bool, float]]:
    """(passes, level it was judged at) for each p, in the order given. Holm 1979, Scand. J. Stat. 6:65.

    Smallest p first against alpha/m, m = those not yet passed; the first failure stops everything.

    >>> [ok for ok, _ in holm([0.001, 0.02, 0.03, 0.2])]
    [True, False, False, False]
    """
    result, m, stopped = [(False, alpha)] * len(p_values), len(p_values), False
    for k in np.argsort(p_values, kind="stable"):
        level = alpha / m
        stopped = stopped or not p_values[k] <= level
        result[k] = (not stopped, level)
        m -= not stopped
    return result


def smallest_gain(n, s: float, nu: int = 0, alpha: float = ALPHA):
    """Smallest true gain that n pairs show with 80 % power; s = sd of one run. n: a number or an array, as the result.

    Infinite below 5 pairs without a bank.
    """
    n = np.asarray(n)
    df = nu + n - 1
    gain = -(stdtrit(df, alpha) + stdtrit(df, 1 - POWER)) * s * np.sqrt(2 / n)
    gain = np.where(n >= (MIN_PAIRS_WITHOUT_BANK if nu == 0 else 2), gain, np.inf)
    return gain if gain.ndim else float(gain)


def seeds_needed(gain: float, s: float, nu: int = 0, alpha: float = ALPHA, most: int = 64) -> int | None:
    """The least number of pairs whose smallest_gain is at most `gain`; None when that is more than `most`."""
    pairs = np.arange(2, most + 1)
    enough = pairs[smallest_gain(pairs, s, nu, alpha) <= gain]
    return int(enough[0]) if len(enough) else None
