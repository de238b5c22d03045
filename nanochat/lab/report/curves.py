"""
Validation curves as they are drawn: the mean over seeds, the start of the clock, the range of y, the unit of an axis.

A curve is an array [N, 3] of (step, training seconds or NaN, val_bpb). The PNG and the HTML page draw the same arrays.
"""

import math
from typing import NamedTuple

import numpy as np

EARLY = 0.2  # share of the steps whose steep fall may leave the picture at the top


def as_arrays(curves: dict) -> dict:
    """{(arm, seed): [(step, seconds or None, val_bpb), ...]} as {(arm, seed): array [N, 3]}.

    Points whose loss is not a finite number are left out, and so are curves without any other point.
    """
    arrays = {key: np.array(points, dtype=float).reshape(-1, 3) for key, points in curves.items()}
    arrays = {key: points[np.isfinite(points[:, 2])] for key, points in arrays.items()}
    return {key: points for key, points in arrays.items() if len(points)}


def from_first_timed(points):
    """The curve from the start of the clock on, for a drawing over time.

    The clock skips the first steps, so several validations may stand at time 0. Only the last of them is kept.
    """
    points = points[np.isfinite(points[:, 1])]
    return points[max(0, np.sum(points[:, 1] == 0) - 1):]


def mean_curve(runs) -> np.ndarray:
    """Mean over runs of (step, time, bpb), at the steps at which all of them were validated."""
    if not runs:
        return np.empty((0, 3))
    steps = sorted(set.intersection(*(set(points[:, 0]) for points in runs)))
    return np.array([np.mean([points[points[:, 0] == step][0] for points in runs], axis=0)
                     for step in steps]).reshape(-1, 3)


def limits(runs) -> tuple[float, float]:
    """(low, high) of val_bpb to show: the range after the first EARLY of the steps, with a margin of 5 %."""
    last = max(points[-1, 0] for points in runs)
    late = np.concatenate([points[points[:, 0] >= EARLY * last, 2] for points in runs])
    if len(late) < 3 * len(runs):  # too few validations to leave any out
        late = np.concatenate([points[:, 2] for points in runs])
    pad = 0.05 * (np.ptp(late) or abs(late[0]) or 1)
    return late.min() - pad, late.max() + pad


class Axis(NamedTuple):
    """Ticks show (value - offset) / unit, which takes few digits; `name` stands before the unit in the label."""
    offset: float
    unit: float
    name: str


def axis_of_changes(lo: float, hi: float) -> Axis:
    """An axis around 0. A change of 0.00015 is shown as 0.15, and the label says that the unit is 10^-3.

    >>> axis_of_changes(-0.05, 0.02).name, axis_of_changes(-0.0001, 0.00015).name, axis_of_changes(0, 3e-6).name
    ('', '10\u207b\u00b3 ', '10\u207b\u2076 ')
    """
    size = max(abs(lo), abs(hi))
    if size >= 0.02 or size == 0:
        return Axis(0.0, 1.0, "")
    return Axis(0.0, 1e-3, "10\u207b\u00b3 ") if size >= 1e-4 else Axis(0.0, 1e-6, "10\u207b\u2076 ")


def axis_of_values(lo: float, hi: float) -> Axis:
    """An axis away from 0. Between 2.641230 and 2.641270 the ticks show the digits after 2.6412.

    >>> axis_of_values(2.6, 3.1), axis_of_values(2.641230, 2.641270)
    (Axis(offset=0.0, unit=1.0, name=''), Axis(offset=2.6412, unit=1e-05, name='2.6412 + 10^-5 x '))
    """
    if hi - lo >= 0.005 * max(abs(lo), abs(hi), 1e-3):
        return Axis(0.0, 1.0, "")
    power = math.floor(math.log10(hi - lo))
    offset = round(math.floor(lo / 10 ** (power + 1)) * 10 ** (power + 1), max(0, -power - 1))
    return Axis(offset, 10.0 ** power, f"{offset:.{max(0, -power - 1)}f} + 10^{power} x ")
