"""
A gain in words, and the one interval that is shown for it, in pictures, tables and sentences alike.

A gain d is control minus candidate, POSITIVE = candidate better. Example: a time to target of d = 0.0519 is shown as
"5.06 % less time to target". A verdict keeps ratios (times, train loss, tok/s) as differences of natural logs, which
can be added and averaged. Here they become percent, which is easier to read.
"""

import math
from typing import NamedTuple

from nanochat.lab.arms import CONTROL
from nanochat.lab.metrics import METRICS
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.facts import Declaration, GateRow, Verdict
from nanochat.lab.verdict.gate_rows import hi_at_alpha

MOST_DECIMALS = 8  # losses are float32: what is smaller than that is no change

def gain_text(metric: str, d: float) -> str:
    """
    >>> gain_text("val_bpb", 0.0035), gain_text("val_bpb", -0.002), gain_text("time_to_target", 0.0519)
    ('0.0035 bpb better', '0.002 bpb worse', '5.06 % less time to target')
    >>> gain_text("tok_per_sec", -0.093)
    '8.88 % fewer tokens a second'
    """
    m = METRICS[metric]
    words = m.good if d >= 0 else m.bad
    return f"{abs(m.change(d)):.3g} % {words}" if m.log else f"{decimal(d)} {words}"


def decimal(x: float, least: int = 4) -> str:
    """The size of a number with `least` significant digits, trailing zeros dropped, and never with an exponent.

    >>> decimal(0.0035), decimal(-2.362e-05), decimal(0.0000362, least=2), decimal(250.0), decimal(0.0)
    ('0.0035', '0.00002362', '0.000036', '250', '0')
    """
    if not x:
        return "0"
    text = f"{abs(x):.{max(0, least - 1 - math.floor(math.log10(abs(x))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class Interval(NamedTuple):
    """Bounds of a gain, in the unit of the gate (logs for ratios); None: there is no bound."""
    lo: float | None
    hi: float | None


def interval(verdict: Verdict, gate: GateRow, declaration: Declaration) -> Interval:
    """The interval by which the verdict judged the gate: every page, picture and sentence shows this one.

    A candidate is promoted when the lower bounds clear their margins, at the level of the look. It is rejected when an
    upper bound stays below, at the level of the whole label. With one look and one candidate the two levels are equal.
    """
    if gate.result == "fail" or (verdict.verdict == "reject" and gate.role == "primary"):
        return Interval(gate.lo, hi_at_alpha(gate, declaration))
    return Interval(gate.lo, gate.hi)


class Shown(NamedTuple):
    """A gain and its interval as people read it, plus = better: in percent, or in bits per byte."""
    mean: float | None
    lo: float | None
    hi: float | None
    digits: int  # decimals that are worth showing

    def text(self, x: float | None, unit: str = "") -> str:
        """
        >>> Shown(-2.003, -3.23, -0.76, 1).text(-2.003, " %")
        '-2.0 %'
        """
        if x is None:
            return "unknown"
        rounded = f"{x:+.{self.digits}f}"
        return (rounded.replace("-", "+") if float(rounded) == 0 else rounded) + unit


def shown(verdict: Verdict, gate: GateRow, declaration: Declaration) -> Shown:
    """The change of a gate for people, with two digits of half the interval, or of the change where it has none.

    Of a percentage no number has more than three digits: 20.0 % (19.6 to 20.5).
    """
    m = METRICS[gate.metric]
    mean, lo, hi = (None if x is None else m.change(x) for x in (gate.mean, *interval(verdict, gate, declaration)))
    size = (hi - lo) / 2 if None not in (lo, hi) else abs(mean or 0.0)
    largest = max((abs(x) for x in (mean, lo, hi) if x is not None), default=0.0)
    digits = digits_of(size)
    digits = min(digits, 1 + digits_of(largest)) if m.log and largest else digits
    limits = [m.change(x) for x in _limits(verdict, gate, declaration)]
    return Shown(mean, lo, hi, told_apart([(x, limit) for x in (lo, hi) for limit in limits], digits))


def _limits(verdict: Verdict, gate: GateRow, declaration: Declaration) -> list[float]:
    """The gains that the bounds of a gate were compared with."""
    limit = 0.0 - (gate.threshold or 0.0)
    if gate.role == "floor":
        return [limit]
    wanted = [declaration.min_gain] if verdict.verdict == "reject" and declaration.min_gain is not None else []
    return [0.0, limit, *wanted]


def told_apart(pairs: list[tuple[float | None, float]], digits: int) -> int:
    """`digits`, or as many more as it takes that no bound is rounded to the limit that it keeps or breaks.

    >>> told_apart([(-10.04, -10.0)], 1), told_apart([(-10.0, -10.0), (None, 0.0)], 1)
    (2, 1)
    """
    def is_hidden(x, limit):
        return x is not None and x != limit and abs(x - limit) <= 0.5 * 10.0 ** -digits
    while digits < MOST_DECIMALS and any(is_hidden(*pair) for pair in pairs):
        digits += 1
    return digits


def digits_of(size: float) -> int:
    """Decimals that show two digits of a number of this size, at most MOST_DECIMALS.

    >>> digits_of(13.5), digits_of(0.003), digits_of(0.00012), digits_of(0.0)
    (0, 4, 5, 4)
    """
    return min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(size)))) if size > 0 else 4


def pair_gains(metric: str, runs: list[RunSummary], candidate: str) -> list[tuple[int, float]]:
    """(seed, d) of every pair in which both runs ended ok and have the metric, in the order of the runs."""
    m = METRICS[metric]
    values = {(run.arm, run.seed): getattr(run, m.key) for run in runs if run.run_status == "ok"}
    pairs = [(seed, value, values.get((candidate, seed))) for (arm, seed), value in values.items() if arm == CONTROL]
    if m.log:
        return [(seed, m.sign * math.log(a / b)) for seed, a, b in pairs if a and b]
    return [(seed, m.sign * (a - b)) for seed, a, b in pairs if a is not None and b is not None]


def primary_gate(verdict: Verdict) -> GateRow:
    """The gate that decides. A verdict without gates is read as a single gate, on val_bpb if it names no metric."""
    gates = [gate for gate in verdict.gates if gate.role == "primary"]
    metric = verdict.metric or "val_bpb"
    return gates[0] if gates else GateRow(metric, "primary", metric, n=verdict.n, mean=verdict.mean_gain, lo=verdict.lo,
                                          hi=verdict.hi)


def shown_gain(verdict: Verdict) -> float | None:
    """The lower bound of the gain, if a gain was shown; else None."""
    lo = primary_gate(verdict).lo
    return lo if verdict.verdict in ("promote", "optional") and lo is not None and lo > 0 else None

