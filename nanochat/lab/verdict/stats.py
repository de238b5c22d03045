"""
The statistics of a verdict: a one-sided t test on paired differences, Holm over candidates, the power of a plan.

d_i = control - candidate on the gate's metric, one per seed: POSITIVE means that the candidate is better.
With two or three seeds the spread s_d of the differences is poorly known. Where there is a bank, its spread s_b of one
control run helps (moderated t: Smyth 2004, doi 10.2202/1544-6115.1027). Two independent runs differ with variance
2 s_b^2, and the two estimates of v are averaged, each weighted by its degrees of freedom:

    v = (nu 2 s_b^2 + (n-1) s_d^2) / (nu + n-1),   T = (mean(d) + margin) / sqrt(v/n),   df = nu + n-1

"Better on every seed" is not used: with two seeds it promotes a change that does nothing one time in four.
moderated_t and step_down take any number of protocols at once; compare and holm are the same code for one. So the
simulation (simulation/made_up_runs.py) measures the functions that decide, not a copy. More than one look:
verdict/looks.py.

>>> round(compare([0.0043, 0.0027], s_b=0.0013, nu=9).p, 6)
0.009724
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# scipy.stats has the same functions, a hundred times slower on single numbers.
from scipy.special import chdtri, fdtri, ndtri, stdtr, stdtrit

ALPHA = 0.05  # one-sided, for a whole label
MIN_PAIRS_WITHOUT_BANK = 5  # with fewer, a paired t has next to no power, and its spread is a guess
# If the candidate is as noisy as the control, s_d^2 / (2 s_b^2) follows F. Above this quantile, it counts as noisier.
GUARD_QUANTILE = 0.95
POWER = 0.80  # of the smallest detectable gain
Z95 = 1.959963984540054  # half a 95 % interval of a normal, in standard deviations
SOURCES = ("bank", "own", "none")  # of the noise, chosen before the first run
MOST_SIGN_FLIPS = 20  # pairs; each further pair doubles the number of sign patterns


# -----------------------------------------------------------------------------
# One gate

class Tested(NamedTuple):
    """moderated_t of many protocols: arrays over the leading axes of d. No noise known: v is nan and p is 1."""
    mean: np.ndarray
    v: np.ndarray  # variance of one difference
    df: np.ndarray
    p: np.ndarray
    guarded: np.ndarray  # the candidate spreads more than the bank can explain


def moderated_t(d, s_b=None, nu: int = 0, margin: float = 0.0, censored: bool = False, guard: bool = True) -> Tested:
    """Is mean(d) > -margin, for each leading index of d [..., n]? s_b is one number or has the leading shape of d."""
    n = d.shape[-1]
    mean = d.mean(axis=-1)
    v, df, guarded = difference_variance(d, s_b, nu, censored, guard)
    with np.errstate(divide="ignore", invalid="ignore"):  # v 0 or nan
        p = stdtr(df, -(mean + margin) / np.sqrt(v / n))
    p = np.where(np.isnan(v), 1.0, np.where((v == 0) & (mean + margin == 0), 0.5, p))
    return Tested(mean, v, df, p, guarded)


def difference_variance(d, s_b, nu, censored=False, guard=True):
    """(variance of one difference, its degrees of freedom, whether the guard fired); variance nan: no noise is known.

    censored: some d are only lower bounds (the control missed the target), so their spread is no measure of the noise
    and the bank alone counts. guard: where d spreads more than the bank can explain, the spread of d alone counts.
    """
    n = d.shape[-1]
    s_d2 = np.var(d, axis=-1, ddof=1)
    never = np.zeros(s_d2.shape, dtype=bool)
    if nu == 0:
        known = n >= MIN_PAIRS_WITHOUT_BANK and not censored
        return (s_d2 if known else np.full(s_d2.shape, np.nan)), np.full(s_d2.shape, n - 1), never
    bank = np.broadcast_to(2 * np.square(s_b), s_d2.shape)
    if censored:
        return bank, np.full(s_d2.shape, nu), never
    guarded = s_d2 > fdtri(n - 1, nu, GUARD_QUANTILE) * bank if guard else never
    df = np.where(guarded, n - 1, nu + n - 1)
    return np.where(guarded, s_d2, (nu * bank + (n - 1) * s_d2) / df), df, guarded


@dataclass(frozen=True)
class Comparison:
    """One gate. `mean`, `se`, `lo`, `hi` are in the metric's unit (logs for ratios); se None = no noise known.

    source: bank | own (plain paired t: chosen, no bank, or the candidate spreads more than it) | bank-only (censored)
    | none | identical.
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


# Seven parameters: the data, and all that a declaration fixes about one test.
def compare(d, s_b: float | None = None, nu: int = 0, margin: float = 0.0, alpha: float = ALPHA,
            source: str = "bank", censored: bool = False) -> Comparison:
    """Is mean(d) > -margin? s_b: sd of ONE banked control run, with nu degrees of freedom (0 = no bank).

    source: "own" leaves the bank aside (paired t, from 5 pairs on); choose it before the run (planned_source).
    censored: some d are lower bounds; then the bank alone gives the noise, and without one nothing can be told.
    The interval [lo, hi] is two one-sided bounds, each at level alpha, so "p <= alpha" is the same as "lo >= -margin".
    Raises ValueError for differences that can never give a verdict: fewer than 2, not finite, or all equal.
    """
    if source not in SOURCES:
        raise ValueError(f"noise source {source!r}: expected one of {', '.join(SOURCES)}")
    nu = nu if source == "bank" else 0
    d = _checked(d, s_b, nu)
    n, identical = len(d), not d.any() and not censored
    mean, v, df, p, guarded = (x.item() for x in moderated_t(d, s_b, nu, margin, censored))
    if identical and nu == 0:  # no bank to say how much they might have differed
        p = 0.5 if margin == 0 else float(margin < 0)
        return Comparison(n, mean, 0.0, 0, p, mean, mean, alpha, margin, "identical")
    if np.isnan(v):
        return Comparison(n, mean, None, 0, 1.0, -np.inf, np.inf, alpha, margin, "none")
    se = float(np.sqrt(v / n))
    half = t_above(alpha, df) * se
    name = "identical" if identical else "bank-only" if censored else "own" if guarded or nu == 0 else "bank"
    return Comparison(n, mean, se, df, p, mean - half, mean + half, alpha, margin, name)


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
        raise ValueError(f"the bank has spread {s_b}: its runs are duplicates of each other; "
                         "bank runs of different seeds")
    if nu == 0 and d.any() and np.ptp(d) <= 1e-9 * np.abs(d).max():
        raise ValueError(f"all {len(d)} differences equal {d[0]:.6g}: the metric is rounded or copied, not measured")
    return d


def sign_flip(d, margin: float = 0.0) -> float | None:
    """Exact p of the sign-flip test: the share of the 2^n sign patterns whose mean is at least the one seen.

    A check printed beside the t; it decides nothing, because its smallest p is 2^-n. None above 20 pairs.
    """
    d = np.asarray(d, dtype=np.float64) + margin
    if len(d) > MOST_SIGN_FLIPS:
        return None
    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate([sums + x, sums - x])
    # The same sum, added in another order, may come out a rounding error smaller; it must still count as equal.
    return float(np.mean(sums >= d.sum() - 1e-12 * np.abs(d).sum()))


# -----------------------------------------------------------------------------
# Several candidates

def holm(p_values, alpha: float = ALPHA) -> list[tuple[bool, float]]:
    """(passes, level it was judged at) for each p, in the order given. Holm 1979, Scand. J. Stat. 6:65.

    The smallest p is judged first, at alpha/m, where m counts the candidates not yet passed. The first failure ends it:
    all larger p fail too. Dividing by m keeps the chance of any false promotion, over all candidates, at alpha.

    >>> [ok for ok, _ in holm([0.001, 0.02, 0.03, 0.2])]
    [True, False, False, False]
    """
    passes, level = step_down(p_values, holm_levels(alpha, len(p_values)))
    return list(zip(passes.tolist(), level.tolist()))


def holm_levels(alpha: float, K: int) -> np.ndarray:
    """levels[m] of a fixed protocol, m = candidates not yet promoted, 0 to K."""
    return alpha / np.maximum(np.arange(K + 1), 1)


def step_down(p, levels, promoted=None) -> tuple[np.ndarray, np.ndarray]:
    """(passes now, level it was judged at) for p [..., K]; levels[m] is the level with m candidates not yet promoted.

    promoted [..., K]: candidates that passed at earlier looks; they are not judged again and do not count in m.
    A p that is nan never passes, and still counts in m.
    """
    p = np.asarray(p, dtype=np.float64)
    left = np.ones(p.shape, dtype=bool) if promoted is None else ~promoted
    m, key = left.sum(axis=-1, keepdims=True), np.where(left, p, np.inf)
    order = np.argsort(key, axis=-1, kind="stable")
    level = levels[np.maximum(m - np.arange(p.shape[-1]), 1)]
    ok = np.logical_and.accumulate(np.take_along_axis(key, order, -1) <= level, axis=-1)
    level = np.where(ok, level, levels[np.maximum(m - ok.sum(axis=-1, keepdims=True), min(1, len(levels) - 1))])
    back = np.argsort(order, axis=-1)
    return np.take_along_axis(ok, back, -1), np.take_along_axis(level, back, -1)


# -----------------------------------------------------------------------------
# The smallest gain that a plan can show, and how well the noise is known

def smallest_gain(n, s: float, nu: int = 0, alpha: float = ALPHA):
    """Smallest true gain that n pairs show with 80 % power; s = sd of one run. n and the result: a number or an array.

    Infinite below 5 pairs without a bank.
    """
    return planned_effect(n, s, nu, alpha)


def planned_effect(n, s: float, nu: int = 0, alpha: float = ALPHA, r: float = 0.0):
    """smallest_gain where the pairs of earlier protocols are correlated by at least r; nu = 0 is the `own` source.

    The bank is of single runs and does not shrink with r. So the more alike the pairs are, the less the bank helps.
    """
    n = np.asarray(n)
    df = nu + n - 1
    # A gain shows with 80 % power if it is t(alpha) estimated standard errors + t(20 %) true ones. The variance of a
    # difference is 2 s^2 (1 - r) in truth; v averages it (n-1 degrees of freedom) with the bank's 2 s^2 (nu of them).
    critical = -stdtrit(df, alpha) * np.sqrt((nu + (n - 1) * (1 - r)) / df)
    gain = (critical - stdtrit(df, 1 - POWER) * np.sqrt(1 - r)) * s * np.sqrt(2 / n)
    gain = np.where(n >= (MIN_PAIRS_WITHOUT_BANK if nu == 0 else 2), gain, np.inf)
    return gain if gain.ndim else float(gain)


def planned_source(n: int, nu: int, r: float = 0.0, alpha: float = ALPHA) -> str:
    """The noise source with the smaller planned effect. r: lower bound of the pair correlation of EARLIER protocols.

    The choice costs no error rate: both sources hold it for any r >= 0. "none": no bank, and fewer than 5 pairs.

    >>> planned_source(5, nu=9, r=0.0), planned_source(5, nu=9, r=0.8), planned_source(3, nu=0)
    ('bank', 'own', 'none')
    """
    r = min(max(r, 0.0), 1.0)
    own = planned_effect(n, 1.0, 0, alpha, r)
    if nu and planned_effect(n, 1.0, nu, alpha, r) <= own:
        return "bank"
    return "own" if n >= MIN_PAIRS_WITHOUT_BANK else "none"


def correlation_bound(r: float, n: int, confidence: float = 0.90) -> float:
    """Lower bound of a correlation seen in n pairs, at least 0 (Fisher's z, 1921); 0 for fewer than 4 pairs."""
    if n < 4 or r >= 1:
        return 0.0 if n < 4 else 1.0
    # artanh(r) is nearly normal, with a standard deviation of 1 / sqrt(n - 3) whatever the true correlation.
    return max(0.0, float(np.tanh(np.arctanh(r) - ndtri(confidence) / np.sqrt(n - 3))))


def seeds_needed(gain: float, s: float, nu: int = 0, alpha: float = ALPHA, most: int = 64) -> int | None:
    """The least number of pairs whose smallest_gain is at most `gain`; None when that is more than `most`."""
    pairs = np.arange(2, most + 1)
    enough = pairs[smallest_gain(pairs, s, nu, alpha) <= gain]
    return int(enough[0]) if len(enough) else None


def sigma_interval(s: float, nu: int, confidence: float = 0.90) -> tuple[float, float]:
    """Interval of the true sd of one run, from an estimate s with nu degrees of freedom (chi-square, equal tails).

    Raises ValueError for nu < 1.
    """
    if nu < 1:
        raise ValueError(f"nu={nu}: a spread needs at least 2 banked runs; run make noise SEEDS=8")
    tail = (1 - confidence) / 2  # nu s^2 / sigma^2 is chi-square with nu degrees of freedom
    return s * float(np.sqrt(nu / chdtri(nu, tail))), s * float(np.sqrt(nu / chdtri(nu, 1 - tail)))
