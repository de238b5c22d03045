"""
One picture with the validation curves of any runs. Each curve has its name at its end, so no legend lies over a line.

    draw_runs("runs.png", {"mix 0.05, seed 1": [(0, 0, 0.0, 3.0), (10, 20480, 9.5, 2.8)]}, axis="step")

A point is (step, tokens or None, training seconds or None, val_bpb), as in lab/ledger/any_run.py.
"""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nanochat.common import atomic_writer
from nanochat.lab.report.plots import COLORS, DASHES, DPI, STYLE

AXES = {"step": (0, "step"), "tokens": (1, "training tokens"),
        "time": (2, "training time (s), without start-up and validation")}
WIDTH_IN, HEIGHT_IN, NAME_IN = 10, 5.5, 0.26  # of the picture; a name takes NAME_IN of its height
EARLY = 0.1  # share of the x axis whose steep fall may leave the picture at the top
MOST_LETTERS = 48


def draw_runs(path, curves: dict[str, list[tuple]], axis: str = "step"):
    """Write the picture to `path`. Raises ValueError where no run has a point on this axis."""
    at, label = AXES[axis]
    drawn = {name: points for name, curve in curves.items() if len(points := _points(curve, at))}
    if not drawn:
        raise ValueError(f"--x={axis}: no run says it beside a validation; choose another of {', '.join(AXES)}")
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(WIDTH_IN, max(HEIGHT_IN, len(drawn) * NAME_IN + 1)), layout="constrained")
        for k, points in enumerate(drawn.values()):
            ax.plot(*points.T, color=COLORS[k % len(COLORS)], ls=DASHES[k // len(COLORS) % len(DASHES)], lw=1.8,
                    marker="o" if len(points) < 3 else None)
        ax.set(xlabel=label, ylabel="validation loss (bits per byte), lower is better", ylim=_limits(drawn.values()))
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=at < 2, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(short_number))
        ax.ticklabel_format(axis="y", style="plain", useOffset=False)
        ax.margins(x=0.01)
        _name_ends(ax, drawn)
        with atomic_writer(path) as f:
            fig.savefig(f, dpi=DPI, format="png", bbox_inches="tight")
        plt.close(fig)


def _points(curve: list[tuple], at: int) -> np.ndarray:
    """[N, 2] of (x, val_bpb), in order. Over time, only the last validation before the clock starts is kept."""
    points = np.array([(p[at], p[3]) for p in curve if p[at] is not None and p[3] is not None], float).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    if at == 2:
        points = points[max(0, np.sum(points[:, 0] == 0) - 1):]
    return points[points[:, 0].argsort(kind="stable")]


def _limits(curves) -> tuple[float, float]:
    """The range of the losses after the first EARLY of the axis, with a margin; all of them where few are left."""
    curves = list(curves)
    last = max(points[-1, 0] for points in curves)
    late = np.concatenate([points[points[:, 0] >= EARLY * last, 1] for points in curves])
    if len(late) < 2 * len(curves):
        late = np.concatenate([points[:, 1] for points in curves])
    pad = 0.06 * (np.ptp(late) or abs(late[0]) or 1)
    return late.min() - pad, late.max() + pad


def _name_ends(ax, drawn: dict):
    """Each name to the right of the axes, at the height of its curve's end; crowded names are moved apart.

    A thin line leads from a curve's end to its name where that was moved, or where the curve ends earlier."""
    low, high = ax.get_ylim()
    left, right = ax.get_xlim()
    ends = {name: (points[-1, 0], (points[-1, 1] - low) / (high - low)) for name, points in drawn.items()}
    gap = NAME_IN / (ax.figure.get_figheight() - 1)  # of the height of the axes
    heights = spread([y for _, y in ends.values()], gap)
    for (name, (x, y)), height, line in zip(ends.items(), heights, ax.lines):
        start = (x - left) / (right - left)
        if abs(height - y) > gap / 4 or start < 0.97:
            ax.annotate("", (1.02, height), (start, y), xycoords="axes fraction", textcoords="axes fraction",
                        annotation_clip=False, arrowprops={"arrowstyle": "-", "color": line.get_color(), "lw": 0.6,
                                                           "alpha": 0.6, "shrinkA": 0, "shrinkB": 0})
        ax.text(1.025, height, _shortened(name), color=line.get_color(), va="center", transform=ax.transAxes,
                fontsize=10)


def spread(heights: list[float], gap: float) -> list[float]:
    """The heights, moved within 0..1 until any two are `gap` apart; the order stays.

    >>> spread([0.5, 0.5, 0.9], 0.1), spread([0.0, 0.0], 0.1)
    ([0.45, 0.55, 0.9], [0.0, 0.1])
    """
    blocks = []  # [mean height, members in order], each block a stack of names

    def within(mean, members):
        room = gap * (len(members) - 1) / 2
        return max(room, min(mean, 1 - room))
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        blocks.append([within(heights[i], [i]), [i]])
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (len(blocks[-1][1]) + len(blocks[-2][1])) / 2:
            upper, lower = blocks.pop(), blocks.pop()
            members = lower[1] + upper[1]
            blocks.append([within(sum(heights[j] for j in members) / len(members), members), members])
    placed = {j: mean + gap * (k - (len(members) - 1) / 2) for mean, members in blocks for k, j in enumerate(members)}
    return [round(placed[i], 6) for i in range(len(heights))]


def _shortened(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[:MOST_LETTERS - 3]}..."


def short_number(x: float, _=None) -> str:
    """
    >>> [short_number(x) for x in (0, 250, 1500, 12000, 2.5e6, 4e9)]
    ['0', '250', '1,500', '12k', '2.5M', '4B']
    """
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(x) >= size:
            return f"{x / size:g}{letter}"
    return f"{x / 1000:g}k" if abs(x) >= 10000 else f"{x:,.6g}"


def readable(names: list[str], facts: list[dict]) -> list[str]:
    """Names for a picture: arm and seed where a row has them (and the label, where the labels differ), else the run's
    own name. Two equal names get a number.

    >>> readable(["nc_m_d4_gate_s1", "d4"], [{"label": "m", "arm": "gate", "seed": 1}, {}])
    ['gate, seed 1', 'd4']
    """
    labels = {fact.get("label") for fact in facts} - {None}
    found = []
    for name, fact in zip(names, facts):
        if fact.get("arm"):
            place = f" ({fact['label']})" if len(labels) > 1 and fact.get("label") else ""
            name = f"{fact['arm']}{place}, seed {fact.get('seed')}"
        found.append(name)
    return [name if found.count(name) == 1 else f"{name} #{found[:i + 1].count(name)}" for i, name in enumerate(found)]
