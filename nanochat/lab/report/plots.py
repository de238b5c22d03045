"""
The picture of a protocol: validation curves over step and over training time, and the paired differences.

The verdict is the title. Differences are drawn as gains: up is better. The bar of a mean is the interval of the
verdict, as in every table. Thin lines and dots are single runs; thick lines and bars are means. So the spread from seed
to seed is seen beside the mean. The functions take numbers and write a file. Other pictures take pyplot from here.
"""

import textwrap
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # no window, no display needed

import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)
import numpy as np  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from nanochat.common import atomic_writer  # noqa: E402
from nanochat.lab.metrics import METRICS  # noqa: E402
from nanochat.lab.report.curves import as_arrays, axis_of_changes, from_first_timed, limits, mean_curve  # noqa: E402
from nanochat.lab.report.gains import pair_gains, primary_gate, shown  # noqa: E402
from nanochat.lab.report.result_file import ResultFile  # noqa: E402
from nanochat.lab.report.sentence import title as verdict_title  # noqa: E402

# Okabe & Ito (2008), told apart with every common colour blindness; the control is grey, not a colour.
COLORS = ("#4d4d4d", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))  # overlapping means stay visible
SIZE_IN, DPI = (15, 5), 100
TITLE_WIDTH, LEGEND_WIDTH = 160, 170  # characters of a line
NAME_WIDTH = 12  # of a candidate below its dots; the legend has the whole name
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.color": "#e6e6e6", "axes.axisbelow": True, "axes.titlesize": 12, "axes.titleweight": "bold",
         "axes.titlelocation": "left"}


def draw_protocol(path, name: str, results: ResultFile, curves: dict) -> bool:
    """Write the picture; False, and no file, when no run has a validation.

    curves: {(arm, seed): [(step, training seconds or None, val_bpb), ...]}.
    """
    curves, arms = as_arrays(curves), [arm.name for arm in results.declaration.arms]
    if not curves:
        return False
    with plt.rc_context(STYLE):
        widths = (1, 1, 0.9) if arms[1:] else (1, 1)  # noise has no pairs
        fig, (over_step, over_time, *paired) = plt.subplots(1, len(widths), figsize=SIZE_IN, width_ratios=widths,
                                                            layout="constrained")
        ok = {(run.arm, run.seed) for run in results.runs if run.run_status == "ok"}
        good = {key: points for key, points in curves.items() if key in ok} or curves
        for ax, x in ((over_step, 0), (over_time, 1)):
            _curves(ax, arms, curves, good, x)
        n = len({seed for _, seed in curves})
        over_step.set(xlabel="step", ylabel="validation loss (bits per byte)",
                      title="Over steps" + (f" (thick: mean of {n} seeds)" if n > 1 else ""))
        over_step.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 2.5, 5, 10]))
        over_time.set(xlabel="training time (s), without start-up and validation",
                      ylabel="validation loss (bits per byte)", title="Over training time")
        if paired:
            _paired(paired[0], arms[1:], results)
        handles, labels = over_step.get_legend_handles_labels()  # below the panels, where no curve runs
        columns = max(1, LEGEND_WIDTH // (max(map(len, arms)) + 8))
        fig.legend(handles, labels, frameon=False, loc="outside lower left", ncols=columns)
        fig.suptitle(textwrap.fill(_title(name, results), TITLE_WIDTH), x=0.01, ha="left", fontsize=13)
        _save(fig, path)
        plt.close(fig)
    return True


def _title(name: str, results: ResultFile) -> str:
    """The verdict: of a single candidate in a sentence, of several as a list, of many as counts."""
    verdicts = results.verdicts
    if len(verdicts) == 1:
        return f"{name}, {verdict_title(verdicts[0], results.declaration)}"
    said = ", ".join(f"{verdict.candidate} {verdict.verdict or 'no verdict'}" for verdict in verdicts)
    if len(said) > TITLE_WIDTH - len(name):
        words = Counter(verdict.verdict or "no verdict" for verdict in verdicts)
        said = ", ".join(f"{n} {word}" for word, n in words.most_common())
    return f"{name}: {said or 'runs of the control'}"


def _save(fig, path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as f:
        fig.savefig(f, dpi=DPI, format="png")


def _curves(ax, arms, curves, good, x: int):
    """x: 0 = step, 1 = training time. good: the curves that enter the means and the range of y; others may leave it."""
    for k, arm in enumerate(arms):
        color = COLORS[k % len(COLORS)]
        for points in _of_arm(curves, arm, x):
            ax.plot(points[:, x], points[:, 2], color=color, lw=1, alpha=0.55, marker="." if len(points) < 3 else None)
        mean = mean_curve(_of_arm(good, arm, x))
        if len(mean):
            ax.plot(mean[:, x], mean[:, 2], color=color, lw=2.6, ls=DASHES[k % len(DASHES)], label=arm,
                    marker="o" if len(mean) < 3 else None)
    ax.set_ylim(*limits(list(good.values())))
    ax.margins(x=0.02)


def _of_arm(curves, arm, x: int) -> list:
    return [from_first_timed(points) if x == 1 else points for (a, _), points in curves.items() if a == arm]


class Gains(NamedTuple):
    """Of one candidate, in the unit of the axis: a dot a seed, and the mean with its interval."""
    seeds: list[int]
    d: np.ndarray
    mean: float | None
    lo: float | None
    hi: float | None


def _gains(results: ResultFile, candidate: str) -> Gains:
    verdict = next((one for one in results.verdicts if one.candidate == candidate), None)
    if verdict is None:
        pairs = pair_gains("val_bpb", results.runs, candidate)
        return Gains([seed for seed, _ in pairs], np.array([d for _, d in pairs]), None, None, None)
    gate = primary_gate(verdict)
    pairs, found = pair_gains(gate.metric, results.runs, candidate), shown(verdict, gate, results.declaration)
    pairs = pairs[:gate.n or None]
    return Gains([seed for seed, _ in pairs], np.array([METRICS[gate.metric].change(d) for _, d in pairs]), found.mean,
                 found.lo, found.hi)


def _paired(ax, candidates, results: ResultFile):
    """The gain of each candidate on the deciding metric. Up is better."""
    metric = METRICS[results.verdicts[0].metric or "val_bpb" if results.verdicts else "val_bpb"]
    gains = [_gains(results, arm) for arm in candidates]
    values = [0.0, *(x for one in gains for x in (*one.d, one.mean, one.lo, one.hi) if x is not None)]
    axis = axis_of_changes(min(values), max(values))
    ticks, names = [], []
    for k, (arm, one) in enumerate(zip(candidates, gains)):
        d = one.d / axis.unit
        color = COLORS[(k + 1) % len(COLORS)]
        spread = len(candidates) == 1 and len(d) <= 8  # room for a place, and a name, for each seed
        xs = np.arange(len(d)) if spread else k + np.linspace(-0.25, 0.05, len(d)) if len(d) else np.empty(0)
        ax.plot(xs, d, "o", color=color, ms=7, alpha=0.8)
        at = len(d) if spread else k + 0.25
        _mean_bar(ax, at, one, axis.unit, color)
        ticks += [*xs, at] if spread else [k]
        seeds = [f"seed {seed}" if len(d) < 4 else str(seed) for seed in one.seeds]
        names += [*seeds, "mean"] if spread else [_short(arm)]
    ax.axhline(0, color="black", lw=1)
    ax.set_xticks(ticks, names, rotation=0 if sum(map(len, names)) <= 40 else 90, fontsize=10)
    ax.set_xlim(-0.6, max(ticks, default=0) + 0.6)
    ax.grid(axis="x", visible=False)
    ax.ticklabel_format(axis="y", style="plain", useOffset=False)
    who = f": {candidates[0]}" if len(candidates) == 1 and len(candidates[0]) <= 24 else ""
    unit = "%" if metric.log else f"{axis.name}bits per byte"
    ax.set(title=f"Gain over the control{who}", ylabel=f"{metric.name}, change ({unit})")
    _name_sides(ax, values, axis.unit, any(one.lo is not None for one in gains))


def _short(name: str) -> str:
    """Its start and its end: in a sweep, names differ at the end."""
    return name if len(name) <= NAME_WIDTH else f"{name[:4]}\u2026{name[5 - NAME_WIDTH:]}"


def _mean_bar(ax, x, one: Gains, unit: float, color):
    """The mean, with its interval where there is one."""
    if one.mean is None:
        return
    if None not in (one.lo, one.hi):
        ax.errorbar(x, one.mean / unit, yerr=[[(one.mean - one.lo) / unit], [(one.hi - one.mean) / unit]], color=color,
                    lw=2, capsize=5)
    ax.plot(x, one.mean / unit, "D", color=color, ms=9, mec="white")


def _name_sides(ax, values, unit: float, has_bar: bool):
    """Make room for zero and for two notes: the side of zero that is good, and the meaning of the bar."""
    lo, hi = min(values) / unit, max(values) / unit
    pad = 0.2 * (hi - lo) or 1.0
    ax.set_ylim(lo - pad, hi + pad)
    grey = dict(color="#666666", fontsize=10, transform=ax.transAxes)
    ax.text(0.02, 0.975, "above 0: better", va="top", **grey)
    ax.text(0.02, 0.025, "below 0: worse", va="bottom", **grey)
    bar = "bar: interval of the verdict" if has_bar else "no bar: the noise is not known"
    ax.text(0.98, 0.025, bar, va="bottom", ha="right", **grey)

