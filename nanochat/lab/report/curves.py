"""
What is drawn of validation curves, as numbers: the mean over seeds, where the clock starts, how much of the fall is shown.

A curve is an array [N, 3] of (step, training seconds or NaN, val_bpb); the PNG and the HTML page draw the same ones.
"""

import numpy as np

EARLY = 0.2  # share of the steps whose steep fall may leave the picture at the top


def as_arrays(curves: dict) -> dict:
    """{(arm, seed): [(step, seconds or None, val_bpb), ...]} as arrays; a loss that is no number, and an empty curve, is left out."""
    arrays = {key: np.array(points, dtype=float).reshape(-1, 3) for key, points in curves.items()}
    arrays = {key: points[np.isfinite(points[:, 2])] for key, points in arrays.items()}
    return {key: points for key, points in arrays.items() if len(points)}


def from_first_timed(points):
    """The clock skips the first steps: of the validations at time 0 only the last one says where it starts."""
    points = points[np.isfinite(points[:, 1])]
    return points[max(0, np.sum(points[:, 1] == 0) - 1):]


def mean_curve(runs) -> np.ndarray:
    """Mean over runs of (step, time, bpb) at the steps that all of them have validated."""
    if not runs:
        return np.empty((0, 3))
    steps = sorted(set.intersection(*(set(points[:, 0]) for points in runs)))
    return np.array([np.mean([points[points[:, 0] == step][0] for points in runs], axis=0) for step in steps]).reshape(-1, 3)


def limits(runs) -> tuple[float, float]:
    """Range of val_bpb to show."""
    last = max(points[-1, 0] for points in runs)
    late = np.concatenate([points[points[:, 0] >= EARLY * last, 2] for points in runs])
    if len(late) < 3 * len(runs):  # too few validations to leave one out
        late = np.concatenate([points[:, 2] for points in runs])
    pad = 0.05 * (np.ptp(late) or abs(late[0]) or 1)
    return late.min() - pad, late.max() + pad
