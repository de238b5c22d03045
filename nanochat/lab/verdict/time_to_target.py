"""
Time to target: the training time at which a run's validation first reached a threshold declared before the run.

A measured time is interpolated between two validations. The time of the validation itself would be as coarse as their
spacing, which once made a winner out of noise. An extrapolated time is a guess with a named method. It is shown, but
never ranked with measured times and never tested.

A curve is a list of (step, training seconds or None, value), as results.curve gives it. Lower values are better.

>>> crossing([(0, 0.0, 3.0), (10, 8.0, 2.0)], 2.25)
6.0
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from nanochat.lab.verdict.stats import ALPHA, MIN_PAIRS_WITHOUT_BANK, compare, t_above

POWER_LAW, MIN_POINTS = "power law", 5  # three parameters, and two points over to judge the fit by
LAST_K = 4  # validations that the linear method uses
LINEAR = f"last-{LAST_K} linear"
POOR_FIT = 0.05  # root mean square residual, as a share of the span of the fitted values
EXPONENTS = (0.02, 5.0)  # of the power law: the curve is nearly a logarithm at the least, nearly a step at the most


# -----------------------------------------------------------------------------
# Measured

def crossing(curve, threshold: float) -> float | None:
    """Training seconds at which the value was first at or below the threshold; None where it never was.

    The clock skips a run's first steps: 0.0 means that the threshold was reached before it started. Raises ValueError
    for a value that is not finite, and for steps or seconds that do not rise.
    """
    return _first_below([(sec, value) for _, sec, value in _checked(curve) if sec is not None], threshold)


def crossing_step(curve, threshold: float) -> float | None:
    """The step at which the value was first at or below the threshold, as crossing; it may be a fraction of a step."""
    return _first_below([(step, value) for step, _, value in _checked(curve)], threshold)


def _first_below(points, threshold) -> float | None:
    before = None
    for x, value in points:
        if value <= threshold:
            if before is None:
                return float(x)
            share = (before[1] - threshold) / (before[1] - value)
            return float(before[0] + share * (x - before[0]))
        before = x, value
    return None


def _checked(curve) -> list[tuple]:
    curve = [tuple(point) for point in curve]
    for step, sec, value in curve:
        if not all(map(math.isfinite, [step, value] + ([] if sec is None else [sec]))):
            raise ValueError(f"validation at step {step}: {value} after {sec} s is not a finite number; "
                             "a diverged run has a status, not a time")
    for (step, sec, _), (later, later_sec, _) in zip(curve, curve[1:]):
        if later <= step or (None not in (sec, later_sec) and later_sec < sec):
            raise ValueError(f"the clock runs backwards: step {step} at {sec} s, then step {later} at {later_sec} s")
    return curve


# -----------------------------------------------------------------------------
# Guessed

def extrapolate(curve, threshold: float) -> tuple[float | None, str, str | None]:
    """(seconds, method, None), or (None, method, the reason for no guess).

    With MIN_POINTS validations or more, a power law a + b t^-c through all of them. With fewer, a line through the
    last LAST_K.
    """
    points = np.array([(sec, value) for _, sec, value in _checked(curve) if sec], dtype=float).reshape(-1, 2)
    method = POWER_LAW if len(points) >= MIN_POINTS else LINEAR
    if len(points) < LAST_K:
        return None, method, f"too few points: {len(points)} validations on the clock, {LAST_K} are needed"
    sec, values = points.T
    if values.min() <= threshold:
        return None, method, "crossing in the past: the threshold was reached, which is measured, not extrapolated"
    if np.polyfit(sec[-LAST_K:], values[-LAST_K:], 1)[0] >= 0:
        return None, method, f"slope not improving over the last {LAST_K} validations"
    at, refusal = (_power_law if method == POWER_LAW else _line)(sec, values, threshold)
    if refusal is None and at <= sec[-1]:
        refusal = f"crossing in the past: at {at:.4g} s by the fit, and not reached after {sec[-1]:.4g} s"
    return (None, method, refusal) if refusal else (float(at), method, None)


def _power_law(sec, values, threshold) -> tuple[float | None, str | None]:
    """Least squares. For a given exponent the law is linear in a and b, so only the exponent is searched."""
    scale = sec[-1]  # in this unit the times are at most 1, and their powers stay within range

    def solve(log_c):
        x = np.stack([np.ones_like(sec), (sec / scale) ** -np.exp(log_c)], axis=1)
        coefficients = np.linalg.lstsq(x, values, rcond=None)[0]
        return coefficients, x @ coefficients

    def misfit(log_c):
        return float(np.sum((solve(log_c)[1] - values) ** 2))
    grid = np.linspace(*np.log(EXPONENTS), 60)
    best = int(np.argmin([misfit(log_c) for log_c in grid]))
    low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    log_c = minimize_scalar(misfit, bounds=(low, high), method="bounded", options={"xatol": 1e-9}).x
    (a, b), fitted = solve(log_c)
    if refusal := _poor(values, fitted):
        return None, refusal
    if b <= 0:
        return None, "slope not improving: the fitted curve does not fall"
    if threshold <= a:
        return None, f"threshold below the asymptote: {threshold:.5g} is not above {a:.5g}"
    return scale * (b / (threshold - a)) ** (1 / np.exp(log_c)), None


def _line(sec, values, threshold) -> tuple[float | None, str | None]:
    slope, at_zero = np.polyfit(sec[-LAST_K:], values[-LAST_K:], 1)
    if refusal := _poor(values[-LAST_K:], at_zero + slope * sec[-LAST_K:]):
        return None, refusal
    return (threshold - at_zero) / slope, None


def _poor(values, fitted) -> str | None:
    share = float(np.sqrt(np.mean((values - fitted) ** 2)) / np.ptp(values))
    return (f"poor fit: residuals of {share:.0%} of the span, at most {POOR_FIT:.0%} are taken"
            if share > POOR_FIT else None)


# -----------------------------------------------------------------------------
# Compared

def paired_differences(control_times, candidate_times, budget: float) -> tuple[list[float], bool, str | None]:
    """(log(control / candidate) of each pair, whether some are only lower bounds, why the gate cannot pass).

    A time of None is a target missed within `budget` seconds. Where the control missed it, the budget is taken for its
    time. The true time is longer, so the true difference is at least the one returned. Where a candidate missed it,
    there are no differences.
    """
    if len(control_times) != len(candidate_times):
        raise ValueError(f"{len(control_times)} control and {len(candidate_times)} candidate times: "
                         "expected one of each a seed")
    for time in [budget, *control_times, *candidate_times]:
        if time is not None and not (math.isfinite(time) and time > 0):
            raise ValueError(f"a time to target of {time} s: expected seconds above 0; a target that is reached before "
                             "the clock starts is too easy, declare a lower one")
    missed = [i for i, time in enumerate(candidate_times) if time is None]
    if missed:
        return [], False, f"candidate missed the target on pair {missed[0]}"
    d = [math.log((budget if control is None else control) / candidate)
         for control, candidate in zip(control_times, candidate_times)]
    return d, None in control_times, None


def threshold_from_bank(finals) -> float:
    """Worst final value of the banked control runs + 1 sigma.

    Each of these runs reached it, and the sigma leaves room for a control run that is a little worse. Raises
    ValueError for fewer than two runs, and for runs that do not differ.
    """
    if len(finals) < 2 or not all(map(math.isfinite, finals)) or np.ptp(finals) == 0:
        raise ValueError(f"final values {list(finals)}: a threshold needs two banked runs or more that differ; "
                         "run `make noise SEEDS=8`")
    return float(np.max(finals) + np.std(finals, ddof=1))


def refuse_missed(threshold: float, lowest: dict):
    """Raise ValueError where a banked run missed the threshold. lowest: {seed: its lowest value, or None}."""
    for seed, value in lowest.items():
        if value is None or not value <= threshold:
            raise ValueError(f"target {threshold:.6g}: "
                             f"the banked control run on seed {seed} missed it (lowest {value}); "
                             "declare one that every banked run reached")


@dataclass(frozen=True)
class TimeInterval:
    """log(control / candidate) of steps to target x step time; lo and hi are one-sided bounds, each at `level`."""
    mean: float
    se: float
    df: float
    lo: float
    hi: float
    level: float


def time_from_steps(d_steps, d_dt, alpha: float = ALPHA) -> TimeInterval:
    """Time to target = steps to target x median step time. The interval takes the noise of both into account.

    d_steps, d_dt: log(control / candidate) of each pair. Neither uses a bank: rows of the ledger do not keep the steps
    to a target, and the speed of a machine changes from day to day. Raises ValueError for too few pairs to know the
    spread of the steps.
    """
    steps = compare(d_steps)
    if steps.se is None:
        raise ValueError(f"{steps.n} pairs: "
                         f"steps to a target need {MIN_PAIRS_WITHOUT_BANK} to have a spread of their own")
    if len(d_dt) < 2 or not np.isfinite(d_dt).all():
        raise ValueError(f"step times {list(d_dt)}: expected a finite number for each of 2 pairs or more")
    parts = [(steps.se ** 2, steps.df), (float(np.var(d_dt, ddof=1)) / len(d_dt), len(d_dt) - 1)]
    # The logarithm of a product is a sum, so the variances add. Their sum is no chi-square; these degrees of freedom
    # make it nearly one (Satterthwaite 1946, Biometrics Bulletin 2:110).
    v = sum(part for part, _ in parts)
    df = v ** 2 / sum(part ** 2 / df for part, df in parts if part) if v else math.inf
    mean, se = steps.mean + float(np.mean(d_dt)), math.sqrt(v)
    half = t_above(alpha, df) * se if v else 0.0
    return TimeInterval(mean, se, df, mean - half, mean + half, alpha)
