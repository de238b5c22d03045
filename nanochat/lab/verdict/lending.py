"""
Is the bank lent to a label? Only while the label's own runs spread about as much as the banked ones.

Example: the banked runs spread 0.0013 bpb, and the runs of the label spread 0.0040 within an arm. Then the bank is of
another machine or of other code, whatever its rows say. Judged with the bank's spread, chance alone would promote.

The spread of the label is that of all of its arms. The variance about the mean of an arm is pooled over the arms, so
that no gain enters it. If the bank is right, the ratio of that variance to the bank's follows F. The part of the noise
that the arms share through their seed has fewer degrees of freedom than are counted here; the test then refuses an
honest bank somewhat more often than one time in ten. From the look at which the bank is refused on, the differences
of a candidate decide by their own spread, which takes 5 pairs. Every metric has a test of its own: a busy machine
spoils the bank of the speed, and leaves that of the loss.

>>> bool(disagrees(np.array([[0.0, 4.0], [1.0, -3.0]]), s_b=1.0, nu=7))
True
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import fdtri

from nanochat.lab.arms import CONTROL
from nanochat.lab.metrics import METRICS
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.evidence import Gate, Unlent, measured
from nanochat.lab.verdict.facts import Declaration, Noise, bank_of
from nanochat.lab.verdict.stats import MIN_PAIRS_WITHOUT_BANK

SPREAD_TEST = 0.90  # quantile of F: an honest bank is refused one time in ten


class Pooled(NamedTuple):
    """Arrays over the leading axes of x; v is nan where df is 0."""
    v: np.ndarray  # variance of one run about the mean of its arm
    df: np.ndarray


def pooled_variance(x) -> Pooled:
    """Of x [..., arms, n], which is nan where an arm has no value on a seed."""
    known = ~np.isnan(x)
    n = known.sum(axis=-1)
    total = np.where(known, x, 0.0).sum(axis=-1)
    mean = total / np.maximum(n, 1)
    squares = np.where(known, np.square(x - mean[..., None]), 0.0).sum(axis=(-1, -2))
    df = np.maximum(n - 1, 0).sum(axis=-1)
    return Pooled(np.where(df > 0, squares / np.maximum(df, 1), np.nan), df)


def disagrees(x, s_b, nu: int, quantile: float = SPREAD_TEST):
    """True where the runs x [..., arms, n] spread more than a bank of spread s_b [...] explains, by the F test."""
    v, df = pooled_variance(x)
    return (df > 0) & (v > fdtri(np.maximum(df, 1), nu, quantile) * np.square(s_b))


# -----------------------------------------------------------------------------
# A label

def lent(declaration: Declaration, gate: Gate, n: int) -> tuple[float | None, int]:
    """(s_B, nu) of the bank that is lent to a gate at n pairs; (None, 0) where there is none."""
    return (None, 0) if gate.unlent and n >= gate.unlent.n else bank_of(declaration.noise, gate.metric)


def unlent(declaration: Declaration, runs: list[RunSummary]) -> dict[str, Unlent]:
    """{metric: from how many pairs on, and why, its bank is not lent} for the metrics whose bank is refused.

    The looks are replayed: at a look of n pairs only the runs on the first n seeds count.
    """
    if declaration.spread_test is None:  # declared before there was this test
        return {}
    banked = [metric for metric in METRICS if bank_of(declaration.noise, metric)[1]]
    why = _other_threads(declaration.noise, runs) if banked else None
    found = {metric: Unlent(0, why) if why else _first_look(declaration, runs, metric) for metric in banked}
    return {metric: one for metric, one in found.items() if one}


def _other_threads(noise: Noise, runs: list[RunSummary]) -> str | None:
    """How many threads a run takes is known only after it has run: on a CPU they change its rounding and its speed."""
    others = {run.threads for run in runs} - {None, noise.threads}
    if noise.threads is None or not others:
        return None
    return (f"a banked run took {noise.threads} threads, a run of this label {max(others)}; bank the control with as "
            "many jobs side by side as a protocol has (make noise JOBS=)")


def _first_look(declaration: Declaration, runs: list[RunSummary], metric: str) -> Unlent | None:
    s_b, nu = bank_of(declaration.noise, metric)
    if not s_b > 0:  # copies, which stats.compare refuses by name
        return None
    x = values_of(declaration, runs, metric)
    for n in declaration.looks:
        if disagrees(x[:, :n], s_b, nu, declaration.spread_test):
            v, df = pooled_variance(x[:, :n])
            runs_spread, banked = (f"{METRICS[metric].spread(s):.3g}{METRICS[metric].unit}"
                                   for s in (math.sqrt(v), s_b))
            return Unlent(n, f"within an arm the runs spread {runs_spread} (df {df}), the banked ones {banked} "
                             f"(df {nu}), which is above the {declaration.spread_test:.0%} point of F")
    return None


def values_of(declaration: Declaration, runs: list[RunSummary], metric: str) -> np.ndarray:
    """[arms, seeds] as gates compare them; nan where there is no value. An arm of another workload is left out."""
    arms = [CONTROL, *(arm.name for arm in declaration.candidates if not arm.profile_changes)]
    x = np.full((len(arms), len(declaration.seeds)), np.nan)
    for run in runs:
        value = measured(run, metric)
        if run.arm in arms and run.seed in declaration.seeds and value is not None and math.isfinite(value):
            if not METRICS[metric].log or value > 0:
                where = arms.index(run.arm), declaration.seeds.index(run.seed)
                x[where] = math.log(value) if METRICS[metric].log else value
    return x


def own_spread_decides(looks) -> str:
    """The way on, for a label whose bank is refused."""
    if looks[-1] < MIN_PAIRS_WITHOUT_BANK:
        return f"declare {MIN_PAIRS_WITHOUT_BANK} seeds under a new label, or bank anew with `make noise SEEDS=8`"
    return f"from {MIN_PAIRS_WITHOUT_BANK} pairs on their own spread decides"
