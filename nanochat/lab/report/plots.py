"""
The picture of a protocol: validation curves over step and over training time, and the paired differences.

Thin lines and dots are single runs; thick lines and bars are means. So the spread from seed to seed is seen beside the
mean. The functions take numbers and write a file. Other pictures of the lab take pyplot from here.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, no display needed

import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)
import numpy as np  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from nanochat.common import atomic_writer  # noqa: E402
from nanochat.lab.report.curves import as_arrays, from_first_timed, limits, mean_curve  # noqa: E402
from nanochat.lab.report.result_file import Delta  # noqa: E402
from nanochat.lab.verdict.stats import ALPHA, t_above  # noqa: E402

# Okabe & Ito (2008), told apart with every common colour blindness; the control is grey, not a colour.
COLORS = ("#4d4d4d", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))  # overlapping means stay visible
SIZE_IN, DPI = (15, 5), 100
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.color": "#e6e6e6", "axes.axisbelow": True, "axes.titlesize": 12, "axes.titleweight": "bold",
         "axes.titlelocation": "left"}


def draw_protocol(path, name: str, arms: list[str], curves: dict, deltas: list[Delta]) -> bool:
    """Write the picture; False, and no file, when no run has a validation.

    curves: {(arm, seed): [(step, training seconds or None, val_bpb), ...]}.
    """
    curves = as_arrays(curves)
    if not curves:
        return False
    with plt.rc_context(STYLE):
        widths = (1, 1, 0.9) if arms[1:] else (1, 1)  # noise has no pairs
        fig, (over_step, over_time, *paired) = plt.subplots(1, len(widths), figsize=SIZE_IN, width_ratios=widths,
                                                            layout="constrained")
        _curves(over_step, arms, curves, x=0)
        _curves(over_time, arms, curves, x=1)
        over_step.set(xlabel="step", ylabel="validation loss (bits per byte)", title="Over steps")
        over_step.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 2.5, 5, 10]))
        over_time.set(xlabel="training time (s), without start-up and validation",
                      ylabel="validation loss (bits per byte)", title="Over training time")
        n = len({seed for _, seed in curves})
        title = f"thick: mean of {n} seeds; thin: each" if n > 1 else None
        over_step.legend(frameon=False, title=title, alignment="left")
        if paired:
            _paired(paired[0], arms[1:], deltas)
        fig.suptitle(f"protocol {name}, {n} seed{'s' * (n > 1)}", x=0.01, ha="left", fontsize=14)
        _save(fig, path)
        plt.close(fig)
    return True


def _save(fig, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as f:
        fig.savefig(f, dpi=DPI, format="png")


def _curves(ax, arms, curves, x: int):
    """x: 0 = step, 1 = training time."""
    for k, arm in enumerate(arms):
        mine = [from_first_timed(points) if x == 1 else points for (a, _), points in curves.items() if a == arm]
        color = COLORS[k % len(COLORS)]
        for points in mine:
            ax.plot(points[:, x], points[:, 2], color=color, lw=1, alpha=0.55, marker="." if len(points) < 3 else None)
        mean = mean_curve(mine)
        if len(mean):
            ax.plot(mean[:, x], mean[:, 2], color=color, lw=2.6, ls=DASHES[k % len(DASHES)], label=arm,
                    marker="o" if len(mean) < 3 else None)
    ax.set_ylim(*limits(list(curves.values())))
    ax.margins(x=0.02)


def _paired(ax, candidates, deltas):
    """Candidate minus control, a dot a seed; the mean with the interval that n pairs give by themselves."""
    ticks, names, has_bar = [], [], False
    for k, arm in enumerate(candidates):
        pairs = [(delta.seed, delta.candidate_minus_control_bpb) for delta in deltas
                 if delta.candidate == arm and delta.candidate_minus_control_bpb is not None]
        d = np.array([bpb for _, bpb in pairs])
        color = COLORS[(k + 1) % len(COLORS)]
        spread = len(candidates) == 1 and len(d) <= 8  # room for a place, and a name, for each seed
        xs = np.arange(len(d)) if spread else k + np.linspace(-0.25, 0.05, len(d)) if len(d) else np.empty(0)
        ax.plot(xs, d, "o", color=color, ms=7, alpha=0.8)
        at = len(d) if spread else k + 0.25
        has_bar |= _mean_bar(ax, at, d, color)
        ticks += [*xs, at] if spread else [k]
        seeds = [f"seed {seed}" if len(d) < 4 else str(seed) for seed, _ in pairs]
        names += [*seeds, "mean"] if spread else [arm]
    ax.axhline(0, color="black", lw=1)
    ax.set_xticks(ticks, names, rotation=0 if sum(map(len, names)) <= 40 else 90, fontsize=10)
    ax.set_xlim(-0.6, max(ticks, default=0) + 0.6)
    ax.grid(axis="x", visible=False)
    ax.ticklabel_format(axis="y", style="plain", useOffset=False)
    who = f": {candidates[0]}" if len(candidates) == 1 and len(candidates[0]) <= 24 else ""
    ax.set(title=f"Paired differences{who}", ylabel="candidate minus control (bits per byte)")
    _name_sides(ax, has_bar)


def _mean_bar(ax, x, d, color) -> bool:
    """The mean of d, and its interval where there is one; says whether there is."""
    if len(d) >= 2:
        half = t_above(ALPHA, len(d) - 1) * np.std(d, ddof=1) / np.sqrt(len(d))
        ax.errorbar(x, d.mean(), yerr=half, color=color, lw=2, capsize=5)
    if len(d):
        ax.plot(x, d.mean(), "D", color=color, ms=9, mec="white")
    return len(d) >= 2


def _name_sides(ax, has_bar):
    """Make room for zero and for two notes: the side of zero that is good, and the meaning of the bar."""
    values = np.array([0.0, *np.concatenate([line.get_ydata() for line in ax.lines])], dtype=float)
    bars = [y for bar in ax.collections for path in bar.get_paths() for y in path.vertices[:, 1]]
    lo, hi = min(values.min(), *bars, 0), max(values.max(), *bars, 0)
    pad = 0.2 * (hi - lo) or 0.001
    ax.set_ylim(lo - pad, hi + pad)
    grey = dict(color="#666666", fontsize=10, transform=ax.transAxes)
    ax.text(0.02, 0.975, "above 0: worse", va="top", **grey)
    ax.text(0.02, 0.025, "below 0: better", va="bottom", **grey)
    if has_bar:
        ax.text(0.98, 0.025, f"bar: {1 - 2 * ALPHA:.0%} interval, paired t", va="bottom", ha="right", **grey)
