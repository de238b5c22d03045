"""
Made-up runs of many protocols at once, with the noise that is assumed, or with noise that breaks an assumption.

A made-up run is one number, x = sqrt(rho) seed + sqrt(1 - rho) noise. Both terms have unit spread, so 1 is the sd of
ONE control run, and two arms on one seed are correlated by rho. The runs of a bank are drawn in the same way.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import chdtri

from nanochat.lab.ledger.banked import outlier

# The noise of a cell: as the procedure assumes (EQUAL), or against an assumption.
EQUAL, UNLUCKY = "equal", "unlucky bank"
UNLUCKY_SHARE = 0.10  # the bank is the 10th percentile of all banks
VARIANCE = {"candidate variance x2": 2.0, "candidate variance x4": 4.0}
OUTLIERS, OUTLIER_SHARE, OUTLIER_NOISE = "5% outliers", 0.05, 5.0
STUDENT, STUDENT_DF = "t with 3 df", 3
ELSEWHERE = {"bank at 1/2": 1 / 2, "bank at 1/3": 1 / 3, "bank at 1/30": 1 / 30, "bank at 2": 2.0}  # of the true spread
AUTOCORRELATED, AR1 = "AR(1) 0.5", 0.5  # each arm, and the bank: a run resembles the one before it
DRIFT, DRIFT_SD = "drift of 2 sd", 2.0  # of all arms together, from the first seed to the last
DIVERGES = "another diverges"  # the last candidate has no value on the second seed
WILD, WILD_SD = "another has a wild run", 20.0  # the last candidate is this much worse on the second seed


class Drawn(NamedTuple):
    x: np.ndarray  # [P, K + 1, N] runs, the control first
    s_b: np.ndarray | None  # [P, 1] spread of the bank; None in a cell without banks
    nu: np.ndarray  # [P] its degrees of freedom; 0: no bank, or a bank that is refused


def draw(cell, protocols: int, rng, clean: bool = True) -> Drawn:
    """P = `protocols` protocols without any gain. clean: outliers of a bank are treated as banked.bank treats them."""
    N = cell.looks[-1]
    seed, noise = rng.standard_normal((N, 1, protocols)), _noise(rng, (N, cell.K + 1, protocols), cell.data)
    noise[:, 1:] *= math.sqrt(VARIANCE.get(cell.data, 1.0))
    x = math.sqrt(cell.rho) * seed + math.sqrt(1 - cell.rho) * noise  # arm 0 is the control
    if cell.data == DRIFT:
        x += np.linspace(0, DRIFT_SD, N)[:, None, None]
    if cell.data in (DIVERGES, WILD):
        x[1, -1] += np.nan if cell.data == DIVERGES else WILD_SD  # more is worse
    # The seeds come first in memory: sums over seeds are then several times faster.
    return Drawn(x.T, *_bank(cell, protocols, rng, clean))


def _bank(cell, protocols, rng, clean):
    nu = np.full(protocols, cell.nu)
    if cell.nu == 0:
        return None, nu
    if cell.data == UNLUCKY:
        # nu s_b^2 is chi-square with nu degrees of freedom (the true sd is 1), so its 10th percentile gives this s_b.
        return np.full((protocols, 1), math.sqrt(chdtri(cell.nu, 1 - UNLUCKY_SHARE) / cell.nu)), nu
    runs = ELSEWHERE.get(cell.data, 1.0) * _noise(rng, (cell.nu + 1, protocols, 1), cell.data)
    s_b = runs.std(axis=0, ddof=1)
    return without_outliers(runs[..., 0].T, s_b, nu) if clean else (s_b, nu)


def without_outliers(runs, s_b, nu):
    """(s_b [P, 1], nu [P]) of banks with runs [P, nu + 1]: one outlier is dropped, a bank with two has nu 0."""
    at = outlier(runs)
    odd = at >= 0
    if odd.any():
        others = np.ones(runs.shape, dtype=bool)
        others[odd, at[odd]] = False
        rest = runs[odd][others[odd]].reshape(odd.sum(), -1)
        s_b, nu = s_b.copy(), nu.copy()
        s_b[odd, 0], nu[odd] = rest.std(axis=1, ddof=1), np.where(outlier(rest) >= 0, 0, rest.shape[1] - 1)
    return s_b, nu


def _noise(rng, shape, data):
    """Noise of unit spread; the first axis is the order in which the runs were made."""
    if data == STUDENT:
        return rng.standard_t(STUDENT_DF, shape) / math.sqrt(STUDENT_DF / (STUDENT_DF - 2))
    noise = rng.standard_normal(shape)
    if data == OUTLIERS:
        noise[rng.random(shape) < OUTLIER_SHARE] *= OUTLIER_NOISE
    if data == AUTOCORRELATED:
        for i in range(1, shape[0]):
            noise[i] = AR1 * noise[i - 1] + math.sqrt(1 - AR1 ** 2) * noise[i]
    return noise
