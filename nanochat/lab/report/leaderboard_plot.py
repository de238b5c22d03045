"""
The picture of a leaderboard: a row of two panels for each section, a line for each entry, the best on top.

Left: how far each entry is behind the best in val_bpb. Right: its speed, or its time to the target where there is one.
In both panels right is better. Dots are runs, diamonds are means. The bars are the intervals of the table. Names stand
beside the lines, so that there is no legend that could lie over one.
"""

import textwrap
from statistics import mean, median

import numpy as np
from matplotlib.ticker import MaxNLocator

from nanochat.lab.arms import CONTROL
from nanochat.lab.report.entries import BPB, SPEED, TIME, Entry
from nanochat.lab.report.plots import COLORS, STYLE, _save, plt
from nanochat.lab.report.sections import Section, distances

MOST_ENTRIES = 10  # of a section, best first
WIDTH_IN, LINE_IN, AROUND_IN = 12, 0.42, 1.5  # of the picture; for each entry; for title and axis of a section
NAME_LETTERS, NAME_LINES, TITLE_LETTERS = 34, 2, 110
FAR = 3  # times as far behind as the median entry: such an entry is named at the edge, so that others are told apart


def draw_leaderboard(path, sections: list[Section]) -> bool:
    """Write the picture, a row of panels a section; False, and no file, when no run ended with a val_bpb."""
    drawable = [(section, shown) for section in sections
                if (shown := [place for place, entry in enumerate(section.entries) if entry.values(BPB)])]
    if not drawable:
        return False
    heights = [AROUND_IN + LINE_IN * min(len(shown), MOST_ENTRIES) for _, shown in drawable]
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained")
        rows = np.atleast_1d(fig.subfigures(len(drawable), 1, height_ratios=heights))
        for row, (section, shown) in zip(rows, drawable):
            title = section.title + (f" (best {MOST_ENTRIES} of {len(shown)})" if len(shown) > MOST_ENTRIES else "")
            row.suptitle("\n".join(textwrap.wrap(title, TITLE_LETTERS)), x=0.01, ha="left", weight="bold", size=12)
            _panels(*row.subplots(1, 2, width_ratios=(1.3, 1)), section, shown[:MOST_ENTRIES])
        _save(fig, path)
        plt.close(fig)
    return True


def _panels(left, right, section: Section, shown: list[int]):
    """shown: places of the entries that are drawn."""
    _, apart = distances(section)
    by_time = section.entries[0].time(section.target) is not None
    entries = [section.entries[place] for place in shown]
    means = [mean(entry.values(BPB)) for entry in entries]
    best = min(means)
    behind = [value - best for value in means]
    limit = FAR * median(sorted(behind)[1:] or [0])
    for row, (place, entry) in enumerate(zip(shown, entries)):
        color = COLORS[0] if entry.arm == CONTROL else COLORS[2]
        half = apart[place].half if place in apart and not by_time else None  # by time, the table's is one of times
        if behind[row] <= limit:
            _line(left, row, [best - value for value in entry.values(BPB)], color, half)
        else:
            left.text(0.01, row, f"\u25c0 {behind[row]:.4f} worse", color=color, va="center",
                      transform=left.get_yaxis_transform())
        timed = TIME if by_time else SPEED
        _line(right, row, entry.values(timed) if not by_time or entry.time(section.target) is not None else [], color)
    _finish(left, [_name(entry) for entry in entries], "val_bpb against the best (bits per byte), right is better"
            + "\nbar: interval of the difference, as in the table" * (not by_time))
    left.axvline(0, color="black", lw=1, zorder=0)
    if by_time:
        right.invert_xaxis()
    _finish(right, [""] * len(entries), "time to the target (s), right is faster" if by_time else
            "tokens per second, right is faster")
    if not right.lines:  # an axis without a point would look like a measurement of 0
        right.set_axis_off()
        right.text(0.5, 0.5, "not measured", ha="center", va="center", color="gray", transform=right.transAxes)


def _line(ax, row: int, values: list[float], color, half: float | None = None):
    """Dots of the runs, a diamond for their mean, and a bar of +-half around it."""
    if not values:
        return
    ax.plot(values, np.full(len(values), row), "o", color=color, ms=5, alpha=0.4, mew=0)
    if half is not None:
        ax.errorbar(mean(values), row, xerr=half, color=color, lw=2, capsize=4)
    ax.plot(mean(values), row, "D", color=color, ms=8, mec="white")


def _finish(ax, names: list[str], label: str):
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel=label, ylim=(len(names) - 0.4, -0.6))  # the best on top
    ax.margins(x=0.06)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    ax.ticklabel_format(axis="x", style="plain", useOffset=False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def _name(entry: Entry) -> str:
    lines = textwrap.wrap(entry.name, NAME_LETTERS, break_on_hyphens=False) or ["-"]
    if len(lines) > NAME_LINES:
        lines = [*lines[:NAME_LINES - 1], lines[NAME_LINES - 1].rstrip(",") + " ..."]
    return "\n".join([*lines[:-1], f"{lines[-1]} (n {len(entry.ok)})"])
