"""
Two charts as inline SVG: validation curves, and gains with their intervals.

The charts are written by hand and not by matplotlib. So their colours are classes of the page, readable on light and
on dark, their text stays text, they need no other file, and each is a few KB. A nested <svg> clips lines at the plot.
"""

import math
from html import escape

import numpy as np

from nanochat.lab.report.curves import axis_of_changes, axis_of_values, from_first_timed, limits, mean_curve

# As wide as a phone: there a chart has its natural size, and its text the size of the page's.
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 360, 48, 16, 26, 48
CURVE_HEIGHT, ROW_HEIGHT, SIDE = 300, 74, 14
N_COLORS = 7  # classes c0 (control) to c6 of the page
DASHES = ("", "9 4", "2 3", "12 4 2 4")  # of the mean lines: two that overlap can both be seen


def ticks(lo: float, hi: float, most: int = 6) -> list[tuple[float, str]]:
    """Round values within [lo, hi], at most `most` of them, with just enough digits to tell them apart.

    >>> ticks(0.0, 1.0), ticks(2.61, 2.83, 3)
    ([(0.0, '0.0'), (0.2, '0.2'), (0.4, '0.4'), (0.6, '0.6'), (0.8, '0.8'), (1.0, '1.0')], [(2.7, '2.7'), (2.8, '2.8')])
    """
    def inside(step):
        return range(math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9) + 1)
    power = 10.0 ** math.floor(math.log10((hi - lo) / most))
    step = next(k * power for k in (1, 2, 5, 10, 20) if len(inside(k * power)) <= most)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(round(i * step, digits + 2), f"{i * step + 0:.{digits}f}") for i in inside(step)]


def _axis_ticks(axis, lo: float, hi: float, most: int = 6) -> list[tuple[float, str]]:
    """Ticks of an axis with a unit and an offset: (value in data, what is written there)."""
    return [(axis.offset + v * axis.unit, name)
            for v, name in ticks((lo - axis.offset) / axis.unit, (hi - axis.offset) / axis.unit, most)]


def scale(lo, hi, at_lo, at_hi):
    """A function from data to pixels: lo is drawn at at_lo, hi at at_hi, and None at the lower end."""
    return lambda value: at_lo if value is None else round(at_lo + (value - lo) / (hi - lo) * (at_hi - at_lo), 2)


def line(x0, y0, x1, y1, cls) -> str:
    return f'<line class="{cls}" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>'


def text(x, y, words, anchor="start", cls="") -> str:
    return f'<text class="{cls}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def frame(height: int, label: str, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">' + "".join(parts) + "</svg>"


# -----------------------------------------------------------------------------
# Validation curves

def curve_chart(arms: list[str], curves: dict, x: int, xlabel: str, shown: dict) -> str:
    """Validation curves over steps (x = 0) or over training time (x = 1). curves, shown: {(arm, seed): array [N, 3]}.

    The curves in `shown` enter the mean of their arm and set the range of y (all curves, where `shown` is empty). A
    diverged run is in `curves` alone: it is drawn, and may leave the picture at the top.
    """
    drawn = {key: from_first_timed(points) if x == 1 else points for key, points in curves.items()}
    drawn = {key: points for key, points in drawn.items() if len(points)}
    if not drawn:
        return ""
    ends = [points[:, x] for points in drawn.values()]
    lo, hi = min(e.min() for e in ends), max(e.max() for e in ends)
    to_x = scale(lo, hi if hi > lo else lo + 1, LEFT, WIDTH - RIGHT)
    y_range = limits(list((shown or curves).values()))
    axis, bottom = axis_of_values(*y_range), CURVE_HEIGHT - BOTTOM
    to_y = scale(*y_range, bottom, TOP)
    parts = [text(0, 14, f"{axis.name}bits per byte", cls="label")]
    parts += [line(LEFT, to_y(v), WIDTH - RIGHT, to_y(v), "grid") + text(LEFT - 5, to_y(v) + 5, name, "end", "tick")
              for v, name in _axis_ticks(axis, *y_range)]
    parts += [text(to_x(v), bottom + 19, name, "middle", "tick") for v, name in ticks(lo, hi if hi > lo else lo + 1, 5)]
    parts += [text((LEFT + WIDTH - RIGHT) / 2, CURVE_HEIGHT - 8, xlabel, "middle", "label")]
    parts += [f'<svg y="{TOP}" width="{WIDTH}" height="{bottom - TOP}" viewBox="0 {TOP} {WIDTH} {bottom - TOP}">',
              *_curves(arms, drawn, shown or curves, x, to_x, to_y), "</svg>"]
    return frame(CURVE_HEIGHT, f"validation bits per byte, {xlabel}", parts)


def later_half(curves: dict) -> dict:
    """The second half of the steps: there, arms whose losses are close can be told apart."""
    last = max((points[-1, 0] for points in curves.values()), default=0)
    late = {key: points[points[:, 0] >= last / 2] for key, points in curves.items()}
    return {key: points for key, points in late.items() if len(points) > 1}


def swatch(k: int) -> str:
    """The mean line of arm k, for a legend."""
    dashes = f' stroke-dasharray="{DASHES[k % len(DASHES)]}"' if DASHES[k % len(DASHES)] else ""
    return (f'<svg class="swatch" viewBox="0 0 30 8"><polyline class="thick c{k % N_COLORS}"{dashes} '
            'points="0,4 30,4"/></svg>')


def _curves(arms, drawn, shown, x, to_x, to_y) -> list[str]:
    thin, thick = [], []
    for k, arm in enumerate(arms):
        mine = {seed: points for (a, seed), points in drawn.items() if a == arm}
        for seed, points in mine.items():
            title = f"{arm} seed {seed}, last {points[-1, 2]:.5f}"
            thin.append(_polyline(points, x, to_x, to_y, f"thin c{k % N_COLORS}", "", title))
        good = [points for seed, points in mine.items() if (arm, seed) in shown]
        mean = mean_curve(good)
        if len(mean):
            thick.append(_polyline(mean, x, to_x, to_y, f"thick c{k % N_COLORS}", DASHES[k % len(DASHES)],
                                   f"{arm}, mean of {len(good)}"))
    return thin + thick


# Seven parameters: the points, how they are placed, and how the line looks.
def _polyline(points, x, to_x, to_y, cls, dash, title) -> str:
    at = [(to_x(point[x]), to_y(point[2])) for point in points]
    if len(at) == 1:
        return (f'<circle class="{cls} dot" cx="{at[0][0]}" cy="{at[0][1]}" r="4">'
                f'<title>{escape(title)}</title></circle>')
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (f'<polyline class="{cls}"{dashes} points="' + " ".join(f"{a},{b}" for a, b in at)
            + f'"><title>{escape(title)}</title></polyline>')


# -----------------------------------------------------------------------------
# Gains

def gain_chart(label: str, rows: list[dict], margin: float | None, unit: str = "") -> str:
    """A strip for each candidate: dots are seeds, the diamond is their mean, the bar is the interval of the mean.

    Right of 0 the candidate is better. rows: {"name", "color" (index of the arm), "gains" [(seed, d), ...], "mean",
    "lo", "hi", "value" (in words)}; a mean of None was not measured, a bound of None is open, and without both bounds
    there is no bar. margin: the loss that a
    floor allows, drawn as a line at -margin; with None or 0 only the line at zero is drawn. unit: of all numbers.
    """
    height = ROW_HEIGHT * len(rows) + BOTTOM
    lo, hi = _gain_range(rows, margin)
    axis, to_x, bottom = axis_of_changes(lo, hi), scale(lo, hi, SIDE, WIDTH - SIDE), height - BOTTOM
    parts = [line(to_x(v), bottom, to_x(v), bottom + 4, "axis") + text(to_x(v), bottom + 19, name, "middle", "tick")
              for v, name in _axis_ticks(axis, lo, hi, 5)]
    parts += [line(SIDE, bottom, WIDTH - SIDE, bottom, "axis")]
    for i, row in enumerate(rows):
        parts += [*_lines_of(i * ROW_HEIGHT, to_x, margin), *_strip(row, i * ROW_HEIGHT, to_x)]
    parts += [text(SIDE, height - 8, "\u2190 worse", "start", "label"),
              text(WIDTH / 2, height - 8, axis.name + unit, "middle", "label"),
              text(WIDTH - SIDE, height - 8, "better \u2192", "end", "label")]
    return frame(height, label, parts)


def _gain_range(rows, margin) -> tuple[float, float]:
    values = [0.0, -(margin or 0.0)] + [d for row in rows for _, d in row["gains"]]
    values += [row[key] for row in rows for key in ("mean", "lo", "hi") if row[key] is not None]
    pad = 0.08 * float(np.ptp(values)) or 0.001
    return min(values) - pad, max(values) + pad


def _lines_of(top, to_x, margin) -> list[str]:
    """The lines at zero and at the limit of a strip, below its text."""
    y0, y1 = top + 42, top + ROW_HEIGHT
    parts = []
    if margin:
        edge = to_x(-margin)
        parts = [f'<rect class="beyond" x="{SIDE}" y="{y0}" width="{round(edge - SIDE, 2)}" height="{y1 - y0}"/>',
                 line(edge, y0, edge, y1, "margin")]
    return [*parts, line(to_x(0), y0, to_x(0), y1, "zero")]


def _strip(row, top, to_x) -> list[str]:
    color, y = f"c{row['color'] % N_COLORS}", top + 57
    name = row["name"] if len(row["name"]) <= 36 else row["name"][:35] + "\u2026"
    parts = [text(SIDE, top + 15, name, cls="name"), text(SIDE, top + 36, row["value"], cls="value")]
    if row["mean"] is not None and (row["lo"], row["hi"]) != (None, None):
        x0, x1 = (to_x(row["lo"]), WIDTH - SIDE if row["hi"] is None else to_x(row["hi"]))
        parts.append(line(x0, y, x1, y, f"bar {color}"))
        parts += [line(x, y - 6, x, y + 6, f"bar {color}") for x, bound in ((x0, row["lo"]), (x1, row["hi"]))
                  if bound is not None]
    for seed, d in row["gains"]:
        title = escape(f"{row['name']} seed {seed}: {d:+.5g}")
        parts.append(f'<circle class="dot seed {color}" cx="{to_x(d)}" cy="{y}" r="4"><title>{title}</title></circle>')
    if row["mean"] is not None:
        x = to_x(row["mean"])
        parts.append(f'<path class="mean {color}" d="M{x} {y - 7} l7 7 l-7 7 l-7 -7 z"/>')
    return parts
