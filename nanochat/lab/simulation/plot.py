"""
The picture of the simulation: the chance, in every cell, to promote a candidate that gains nothing.

5 % is promised. Cells that keep the promise and cells that break it stand side by side.
"""

import numpy as np

from nanochat.lab.report import plots
from nanochat.lab.simulation.draws import (
    AUTOCORRELATED,
    DIVERGES,
    DRIFT,
    ELSEWHERE,
    EQUAL,
    OUTLIERS,
    STUDENT,
    UNLUCKY,
    VARIANCE,
    WILD,
)
from nanochat.lab.simulation.made_up_runs import ALWAYS, MOST_FALSE

PROMISED = 5.0
HOLDS, BREAKS, QUIET = "#0072b2", "#d55e00", "#666666"
MARKERS = {1: "o", 4: "s", 10: "^"}  # by the number of candidates
SIZE_IN = (15, 6.5)


def groups(rows) -> list[tuple[str, list[dict]]]:
    """(name, rows) of the columns: on the left the cells that the promise covers (data EQUAL), then the others.

    Where the rule that judges was simulated (tables 9), it alone is drawn, beside a bank that is lent without a test.
    """
    ours = [row for row in rows if row["measure"] == "false_promotion" and row["table"] != "8.4"]
    judging = [row for row in ours if row["table"].startswith("9")]
    named = _judging(judging) if judging else _lent_always(ours)
    return [(name, found) for name, found in named if found]


def _some(rows, *data, looked=None, rho=None, always=None):
    return [row for row in rows if row["data"] in data and (looked is None or looked == ("-" in row["n"]))
            and (rho is None or row["rho"] == rho) and (always is None or always == (row["rule"] in ALWAYS))]


def _lent_always(rows):
    x2, x4 = VARIANCE
    return [("fixed n,\nno correlation", _some(rows, EQUAL, looked=False, rho=0)),
            ("fixed n,\ncorrelation 0.5", _some(rows, EQUAL, looked=False, rho=0.5)),
            ("fixed n,\ncorrelation 0.9", _some(rows, EQUAL, looked=False, rho=0.9)),
            ("seeds added\nuntil decided", _some(rows, EQUAL, looked=True)),
            ("5 % of runs with\n5x the noise", _some(rows, OUTLIERS)),
            ("candidate has\n2x the variance", _some(rows, x2)), ("candidate has\n4x the variance", _some(rows, x4)),
            ("bank at its 10th\npercentile; nu 4, 9, 19", _some(rows, UNLUCKY))]


def _judging(rows):
    x2, x4 = VARIANCE
    half, third, thirtieth, double = ELSEWHERE
    return [("fixed n", _some(rows, EQUAL, looked=False, rho=0)),
            ("pairs\ncorrelated", [row for row in _some(rows, EQUAL) if row["rho"]]),
            ("until\ndecided", _some(rows, EQUAL, looked=True, rho=0)),
            ("bank 1/2,\nlent\nalways", _some(rows, half, always=True)), ("bank\n1/2", _some(rows, half, always=False)),
            ("bank 1/3,\nlent\nalways", _some(rows, third, always=True)),
            ("bank\n1/3", _some(rows, third, always=False)), ("bank\n1/30", _some(rows, thirtieth, always=False)),
            ("bank\nx 2", _some(rows, double, always=False)), ("bank low\nby luck", _some(rows, UNLUCKY)),
            ("5 %\noutliers", _some(rows, OUTLIERS)), ("t with\n3 df", _some(rows, STUDENT)),
            ("candidate\n2x the\nvariance", _some(rows, x2)), ("candidate\n4x the\nvariance", _some(rows, x4)),
            ("each run\nlike the one\nbefore", _some(rows, AUTOCORRELATED)), ("common\ndrift", _some(rows, DRIFT)),
            ("another\ndiverges", _some(rows, DIVERGES)), ("another's\nwild run", _some(rows, WILD))]


def draw_error_rates(path, rows: list[dict], protocols: int) -> bool:
    """Draw the rows of made_up_runs.check. Returns False, and writes no file, where no row is a false promotion."""
    columns = groups(rows)
    if not columns:
        return False
    with plots.plt.rc_context(plots.STYLE):
        fig, ax = plots.plt.subplots(figsize=SIZE_IN, layout="constrained")
        top = max(max(row["found"], row["target"]) for _, found in columns for row in found)
        for x, (_, found) in enumerate(columns):
            _column(ax, x, found)
            over = sum(row["found"] > MOST_FALSE for row in found)
            ax.text(x, top * 1.04, f"{over} of {len(found)}\nabove" if over else f"all {len(found)}\nwithin",
                    ha="center", va="bottom", color=BREAKS if over else HOLDS, fontsize=10)
        ax.axhline(PROMISED, color="black", lw=1)
        ax.text(len(columns) - 0.42, PROMISED, "5 %\npromised", va="center", fontsize=10)
        ax.set_xticks(range(len(columns)), [name for name, _ in columns], fontsize=9)
        ax.set(xlim=(-0.5, len(columns) - 0.45), ylim=(0, top * 1.22), ylabel="protocols that promote something (%)",
               xlabel="a dot is a cell of the table; in a column the number of seeds grows to the right")
        _name_sides(ax, sum(found[0]["data"] == EQUAL for _, found in columns), len(columns), top * 1.15)
        ax.set_title(f"Chance to promote a candidate that gains nothing ({protocols:,} protocols a dot)")
        ax.grid(axis="x", visible=False)
        _legend(ax, own_noise=any(not row["nu"] for _, found in columns for row in found))
        plots._save(fig, path)
        plots.plt.close(fig)
    return True


def _name_sides(ax, sound, columns, y):
    for first, last, text in ((0, sound, "as assumed"), (sound, columns, "an assumption fails")):
        if last > first:
            ax.text((first + last - 1) / 2, y, text, ha="center", va="bottom", fontsize=11, fontweight="bold",
                    color=QUIET)
    if 0 < sound < columns:
        ax.axvline(sound - 0.5, color=QUIET, lw=1, ls=(0, (2, 3)))


def _column(ax, x, found):
    """One dot for each cell, fewer seeds to the left. Cells without a bank are open; a grey dash marks the target."""
    order = sorted(found, key=lambda row: (len(row["n"]), row["n"], row["K"], row["nu"]))
    for at, row in zip(x + np.linspace(-0.36, 0.36, len(order)) if len(order) > 1 else [x], order):
        ax.plot([at - 0.02, at + 0.02], [row["target"]] * 2, color=QUIET, lw=1)
        color = BREAKS if row["found"] > MOST_FALSE else HOLDS
        ax.plot(at, row["found"], MARKERS[row["K"]], color=color, mfc=color if row["nu"] else "white", ms=5, alpha=0.85)


def _legend(ax, own_noise: bool):
    handles = [ax.plot([], [], marker, color=QUIET, ms=6, label=f"{K} candidate{'s' * (K > 1)}")[0]
               for K, marker in MARKERS.items()]
    handles += [ax.plot([], [], "s", color=color, ms=7, label=label)[0] for color, label in
                ((HOLDS, "keeps the promise"), (BREAKS, f"breaks it (above {MOST_FALSE} %)"))]
    if own_noise:
        handles += ax.plot([], [], "o", color=QUIET, mfc="white", ms=6, label="open: own noise, no bank")
    handles += ax.plot([], [], "_", color=QUIET, ms=6, label="target")
    ax.legend(handles=handles, loc="upper right", ncols=2, frameon=False, bbox_to_anchor=(1, 0.86))
