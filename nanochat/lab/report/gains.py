"""
A gain in words, for the terminal, the HTML page and the draft of a LOG entry.

A gain d is control minus candidate, POSITIVE = candidate better. Example: a time to target of d = 0.0519 is shown as
"5.06 % less time to target". A verdict keeps ratios (times, train loss, tok/s) as differences of natural logs, which
can be added and averaged. Here they become percent, which is easier to read. After an early stop the measured gain is
optimistic, but its interval is not. So a headline quotes the lower bound.
"""

import math

from nanochat.lab.arms import CONTROL
from nanochat.lab.metrics import METRICS
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.facts import GateRow, Verdict


def gain_text(metric: str, d: float) -> str:
    """
    >>> gain_text("val_bpb", 0.0035), gain_text("val_bpb", -0.002), gain_text("time_to_target", 0.0519)
    ('0.0035 bpb better', '0.002 bpb worse', '5.06 % less time to target')
    >>> gain_text("tok_per_sec", -0.093)
    '8.88 % fewer tokens a second'
    """
    m = METRICS[metric]
    words = m.good if d >= 0 else m.bad
    if not m.log:
        return f"{abs(d):.4g} {words}"
    change = 100 * math.expm1(-m.sign * d)  # of the candidate's value, relative to the control's
    return f"{abs(change):.3g} % {words}"


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


def headline(verdict: Verdict) -> str:
    """A sentence with the lower bound of the gain, if a gain was shown; else the reason of the verdict."""
    gate, lo = primary_gate(verdict), shown_gain(verdict)
    if lo is not None and gate.mean is not None:
        price = "; every floor holds" if verdict.verdict == "promote" else ", at a price inside its floor"
        measured = f"(measured: {gain_text(gate.metric, gate.mean)}, {gate.n} seeds)"
        return f"at least {gain_text(gate.metric, lo)} {measured}{price}"
    return verdict.reason or "no runs yet"
