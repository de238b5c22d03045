"""
Looking while seeds are added: the level of each look, the replay of the declared looks, and when to stop spending.

A fixed protocol tests once, at alpha/m. With looks, the level of the look at n pairs is a_n(m) = c(alpha/m) n/N:
nominal levels that rise with n, tested by t at each look (Pocock 1977, Biometrika 64:191; Kim & DeMets 1987,
Biometrika 74:149). c(x) is the x-quantile of the least p_n N/n over the looks, in simulated protocols of a
candidate that gains nothing, judged by stats.moderated_t itself, without its spread guard: the guard can only raise
p, so leaving it out keeps the levels on the safe side. Simulating c removes the small-sample error of tables for
known variance (6.2 % at nu = 0, 5.5 % at nu = 4, where 5 was asked). A candidate that was promoted
stays promoted, m falls, later looks use the new m (closed testing: Tang & Geller 1999, Biometrics 55:1188).

>>> level(5, looks=[5], nu=0, alpha=0.05)
0.05
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from nanochat.lab.verdict.stats import ALPHA, MIN_PAIRS_WITHOUT_BANK, moderated_t, step_down

MAX_SEEDS = 12  # of `UNTIL=decided`, where nothing else is declared
PATHS, CHUNK = 400_000, 20_000  # null protocols behind c; so many at a time that they stay in the cache
SEED = 20261121  # of the null protocols: the same looks and nu have the same levels everywhere
FUTILE = 0.10  # chance to pass at N below which seeds are no longer spent
FUTILE_FROM = 3  # pairs


def declared_looks(nu: int, most: int = MAX_SEEDS) -> list[int]:
    """The looks of `UNTIL=decided`: after every seed, from 2 pairs with a bank of nu degrees of freedom, from 5 without.

    >>> declared_looks(nu=0, most=7)
    [5, 6, 7]
    """
    first = 2 if nu else MIN_PAIRS_WITHOUT_BANK
    if most < first:
        raise ValueError(f"at most {most} seeds: the first look {'with a bank' if nu else 'without a bank'} needs {first}")
    return list(range(first, most + 1))


# -----------------------------------------------------------------------------
# Levels

def level(n: int, looks, nu: int, alpha: float = ALPHA) -> float:
    """a_n: the level of the look at n pairs. nu: degrees of freedom of the bank, 0 for the `own` source.

    Raises ValueError for a look that was not declared. With one look exactly alpha.
    """
    looks = tuple(looks)
    if n not in looks:
        raise ValueError(f"a look at n={n} was not declared: the looks are {', '.join(map(str, looks))}; use a new label")
    return alpha if len(looks) == 1 else _quantile(looks, nu, alpha) * n / looks[-1]


def levels(n: int, looks, nu: int, alpha: float, K: int) -> np.ndarray:
    """level(n) at alpha/m for m = 0 to K, as stats.step_down reads them; m = 0 repeats m = 1."""
    return np.array([level(n, looks, nu, alpha / max(m, 1)) for m in range(K + 1)])


def _quantile(looks, nu, x) -> float:
    """c(x): at most the share x of the null protocols has a minimum of c or less."""
    if not 0 < x < 1:
        raise ValueError(f"level {x}: expected a number between 0 and 1")
    return float(_scaled_minima(looks, nu)[max(0, int(x * PATHS) - 1)])


@lru_cache(maxsize=64)
def _scaled_minima(looks: tuple[int, ...], nu: int) -> np.ndarray:
    """Sorted min over the looks of p_n N/n, one for each null protocol: any alpha is one element of it."""
    if looks[0] < 2 or any(b <= a for a, b in zip(looks, looks[1:])):
        raise ValueError(f"looks {', '.join(map(str, looks))}: expected rising numbers of pairs, from 2 on")
    rng = np.random.default_rng([SEED, nu, *looks])
    return np.sort(np.concatenate([_null_minima(rng, looks, nu) for _ in range(PATHS // CHUNK)]))


def _null_minima(rng, looks, nu):
    d = rng.standard_normal((looks[-1], CHUNK)).T  # [CHUNK, N], seeds first in memory: sums over them are faster so
    s_b = np.sqrt(rng.chisquare(nu, CHUNK) / nu / 2) if nu else None  # sd of one run; a difference has variance 1
    return np.min([moderated_t(d[:, :n], s_b, nu, guard=False).p * (looks[-1] / n) for n in looks], axis=0)


# -----------------------------------------------------------------------------
# Replay

class Replay(NamedTuple):
    """Each [..., K]. n of the look that promoted, n of the look at which it became futile (0 = not); the level that it
    passed at, or was last judged at; its chance to pass at N as of its last look."""
    promoted_at: np.ndarray
    futile_at: np.ndarray
    level: np.ndarray
    chance: np.ndarray


def replay(p, looks, nu: int, alpha: float = ALPHA, primary=None, stop_futile: bool = False) -> Replay:
    """The decision of p [..., looks so far, K], the largest p over a candidate's gates at each declared look.

    A candidate without a p at a look (nan: it got no more seeds) does not pass there and still counts in m.
    primary: the p of the primary gate alone, which futility reads; default p. stop_futile: a futile candidate gets
    no more seeds. Levels ignore that rule, so leaving it out, or overruling it, never costs error rate.
    """
    p = np.asarray(p, dtype=np.float64)
    primary = p if primary is None else np.asarray(primary, dtype=np.float64)
    shape, K, N = (*p.shape[:-2], p.shape[-1]), p.shape[-1], looks[-1]
    promoted_at, futile_at = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    judged, chance, last = np.full(shape, np.nan), np.full(shape, np.nan), levels(N, looks, nu, alpha, K)
    for i, n in enumerate(looks[:p.shape[-2]]):
        waits = (promoted_at == 0) & ~(stop_futile & (futile_at > 0))
        passes, now = step_down(np.where(waits, p[..., i, :], np.nan), levels(n, looks, nu, alpha, K), promoted_at > 0)
        judged = np.where(waits, now, judged)
        promoted_at = np.where(passes, n, promoted_at)
        m = (promoted_at == 0).sum(axis=-1, keepdims=True)
        chance = np.where(waits, chance_to_pass(primary[..., i, :], n, N, last[m]), chance)
        futile_at = np.where(waits & ~passes & (futile_at == 0) & _is_futile(chance, n, N), n, futile_at)
    return Replay(promoted_at, futile_at, judged, chance)


# -----------------------------------------------------------------------------
# Futility

def chance_to_pass(p, n: int, N: int, level_at_N):
    """Chance that the look at N passes, if today's score were one standard error kinder and the rest of the seeds kept it up.

    p, level_at_N: numbers or arrays. At n = N it is 0 or 1, by today's p as it is.
    """
    z, z_N = -ndtri(p), -ndtri(level_at_N)
    if n >= N:
        return np.where(np.less_equal(p, level_at_N), 1.0, 0.0)[()]
    return ndtr(((z + 1) * np.sqrt(N / n) - z_N) / np.sqrt(1 - n / N))


def futile(p: float, n: int, N: int, level_at_N: float) -> bool:
    """Whether seeds are better spent elsewhere: it stops a candidate, and never decides for one."""
    return bool(_is_futile(chance_to_pass(p, n, N, level_at_N), n, N))


def _is_futile(chance, n, N):
    return (FUTILE_FROM <= n < N) & (chance < FUTILE)
