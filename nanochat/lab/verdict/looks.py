"""
Several looks at a protocol while seeds are added: the level of each look, the replay of the looks, and futility.

A protocol may be looked at after 3, 4, ... 12 pairs. Testing every time at 5 % would promote a candidate that gains
nothing far more often than 5 %, so each look gets a smaller level of its own. The looks are declared before the first
run, as numbers of pairs. With N pairs at the last look and m candidates not yet promoted, the level at n pairs

    a_n(m) = c(alpha/m) n/N

rises with n, because late looks, with more pairs, have more power to use it (Pocock 1977, Biometrika 64:191; Kim &
DeMets 1987, Biometrika 74:149). A protocol without looks tests once, at alpha/m.

c comes from simulated protocols of a candidate that gains nothing. Such a candidate is promoted if p_n <= c n/N at
some look, that is, if the least p_n N/n over the looks is at most c. So c(x) is the x-quantile of that least value: a
share x of these protocols promotes. p_n is from stats.moderated_t itself, without its spread guard. The guard can only
raise p, so leaving it out errs on the safe side. Tables for a known variance would give 6.2 % at nu = 0 and 5.5 % at
nu = 4 where 5 % was asked; the simulation has no such error.

A candidate that was promoted stays promoted. m then falls, and later looks use the new m (closed testing: Tang &
Geller 1999, Biometrics 55:1188).

>>> level(5, looks=[5], nu=0, alpha=0.05)
0.05
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from nanochat.lab.verdict.stats import ALPHA, MIN_PAIRS_WITHOUT_BANK, moderated_t, step_down

FIRST_LOOK = 3  # pairs, with a bank
MAX_SEEDS = 12  # the last look of `UNTIL=decided`, unless another is declared
MOST_SEEDS = 100  # that may be declared: the levels of so many looks are simulated in a minute, of 1,000 in hours
PATHS, CHUNK = 400_000, 20_000  # simulated protocols behind c, and how many at a time fit into the processor's cache
SEED = 20261121  # of the simulated protocols: the same looks and nu have the same levels everywhere
FUTILE = 0.10  # a candidate is futile when its chance to pass at N is below this
FUTILE_FROM = 3  # pairs; with fewer, no candidate is futile


def declared_looks(nu: int, most: int = MAX_SEEDS) -> list[int]:
    """The looks of `UNTIL=decided`: after every seed, beginning at 3 pairs with a bank, and at 5 without (nu = 0).

    At 2 pairs the runs say too little on whether the bank fits them. Older declarations began there; they keep it.

    >>> declared_looks(nu=0, most=7)
    [5, 6, 7]
    """
    first = FIRST_LOOK if nu else MIN_PAIRS_WITHOUT_BANK
    if most < first:
        raise ValueError(f"at most {most} seeds: "
                         f"the first look {'with a bank' if nu else 'without a bank'} needs {first}; allow {first} or "
                         f"more (MAX_SEEDS={first}){'' if nu else ', or bank noise first: `make noise SEEDS=8`'}")
    return list(range(first, most + 1))


# -----------------------------------------------------------------------------
# Levels

def level(n: int, looks, nu: int, alpha: float = ALPHA) -> float:
    """a_n: the level of the look at n pairs; exactly alpha where there is only one look.

    nu: degrees of freedom of the bank, 0 for the `own` source. Raises ValueError for a look that was not declared.
    """
    looks = tuple(looks)
    if n not in looks:
        raise ValueError(f"a look at n={n} was not declared: "
                         f"the looks are {', '.join(map(str, looks))}; use a new label")
    return alpha if len(looks) == 1 else _quantile(looks, nu, alpha) * n / looks[-1]


def levels(n: int, looks, nu: int, alpha: float, K: int) -> np.ndarray:
    """level(n) at alpha/m for m = 0 to K, as stats.step_down reads them; the entry for m = 0 repeats m = 1."""
    return np.array([level(n, looks, nu, alpha / max(m, 1)) for m in range(K + 1)])


def _quantile(looks, nu, x) -> float:
    """c(x): at most the share x of the simulated protocols has a least p_n N/n of c or less."""
    if not 0 < x < 1:
        raise ValueError(f"level {x}: expected a number between 0 and 1")
    return float(_scaled_minima(looks, nu)[max(0, int(x * PATHS) - 1)])


@lru_cache(maxsize=64)
def _scaled_minima(looks: tuple[int, ...], nu: int) -> np.ndarray:
    """The least p_n N/n over the looks of each simulated protocol, sorted: c of any alpha is one element of it."""
    if looks[0] < 2 or any(b <= a for a, b in zip(looks, looks[1:])):
        raise ValueError(f"looks {', '.join(map(str, looks))}: expected rising numbers of pairs, from 2 on")
    rng = np.random.default_rng([SEED, nu, *looks])
    return np.sort(np.concatenate([_null_minima(rng, looks, nu) for _ in range(PATHS // CHUNK)]))


def _null_minima(rng, looks, nu):
    d = rng.standard_normal((looks[-1], CHUNK)).T  # [CHUNK, N], seeds first in memory: sums are faster then
    # A difference of two runs has variance 1 here, so one run has 1/2. nu s_b^2 / (1/2) is chi-square.
    s_b = np.sqrt(rng.chisquare(nu, CHUNK) / nu / 2) if nu else None
    return np.min([moderated_t(d[:, :n], s_b, nu, guard=False).p * (looks[-1] / n) for n in looks], axis=0)


# -----------------------------------------------------------------------------
# Replay

class Replay(NamedTuple):
    """The result of each candidate; all arrays are [..., K]."""
    promoted_at: np.ndarray  # n of the look that promoted it, 0 = none did
    futile_at: np.ndarray  # n of the first look at which it was futile, 0 = none
    level: np.ndarray  # the level it passed at, or was last judged at
    chance: np.ndarray  # its chance to pass at N, as of its last look


def replay(p, looks, nu: int, alpha: float = ALPHA, for_chance=None, stop_futile: bool = False) -> Replay:
    """Decide all looks so far, in their order. p [..., looks so far, K]: the largest p over a candidate's gates.

    A candidate that gets no more seeds has a p of nan at later looks. It does not pass there, and still counts in m.
    for_chance: p from which the chance to pass at N is judged, nan where nothing can be told yet; by default p. All
    gates have to pass, and the chance of the largest p is the least chance of a gate. stop_futile: a futile candidate
    gets no more seeds. The levels do not count on that rule, so switching it off never raises the error rate.
    """
    p = np.asarray(p, dtype=np.float64)
    for_chance = p if for_chance is None else np.asarray(for_chance, dtype=np.float64)
    shape, K, N = (*p.shape[:-2], p.shape[-1]), p.shape[-1], looks[-1]
    promoted_at, futile_at = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    judged, chance, last = np.full(shape, np.nan), np.full(shape, np.nan), levels(N, looks, nu, alpha, K)
    for i, n in enumerate(looks[:p.shape[-2]]):
        waits = (promoted_at == 0) & ~(stop_futile & (futile_at > 0))
        passes, now = step_down(np.where(waits, p[..., i, :], np.nan), levels(n, looks, nu, alpha, K), promoted_at > 0)
        seen = waits & ~np.isnan(p[..., i, :])  # not so where its seeds have not been run yet
        judged = np.where(seen, now, judged)
        promoted_at = np.where(passes, n, promoted_at)
        m = (promoted_at == 0).sum(axis=-1, keepdims=True)
        chance = np.where(seen, chance_to_pass(for_chance[..., i, :], n, N, last[m]), chance)
        futile_at = np.where(waits & ~passes & (futile_at == 0) & _is_futile(chance, n, N), n, futile_at)
    return Replay(promoted_at, futile_at, judged, chance)


# -----------------------------------------------------------------------------
# Futility

def chance_to_pass(p, n: int, N: int, level_at_N):
    """Chance that the look at N passes, if the true gain is one standard error above the gain seen at n.

    Such a gain is a kind guess, so a candidate is seldom given up too soon. The pairs seen so far count with that gain
    too. p, level_at_N: numbers or arrays. At n = N the chance is 0 or 1, from p as it is.
    """
    z, z_N = -ndtri(p), -ndtri(level_at_N)
    if n >= N:
        return np.where(np.less_equal(p, level_at_N), 1.0, 0.0)[()]
    # Sums of unit steps: z + 1 at n is a sum of (z + 1) sqrt(n), a drift of (z + 1) / sqrt(n) a step. With that drift
    # the sum at N has mean (z + 1) N / sqrt(n) and variance N - n; divided by sqrt(N), it is compared with z_N.
    return ndtr(((z + 1) * np.sqrt(N / n) - z_N) / np.sqrt(1 - n / N))


def futile(p: float, n: int, N: int, level_at_N: float) -> bool:
    """True if the chance to pass is too small to spend more seeds on. Futility never promotes a candidate."""
    return bool(_is_futile(chance_to_pass(p, n, N, level_at_N), n, N))


def _is_futile(chance, n, N):
    return (FUTILE_FROM <= n < N) & (chance < FUTILE)
