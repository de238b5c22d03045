"""
A gain in words: what the terminal, the HTML page and the LOG draft say about a gate, said in one place.

A gain d is control minus candidate, POSITIVE = candidate better. Ratios (times, train loss, tok/s) are differences of
natural logs there, which add up and average, and percent here, which people read. After an early stop the measured
gain is optimistic and its interval is not, so a headline quotes the lower bound.
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
    """The gate that decides; a verdict without gates is itself the only one, on val_bpb."""
    gates = [gate for gate in verdict.gates if gate.role == "primary"]
    metric = verdict.metric or "val_bpb"
    return gates[0] if gates else GateRow(metric, "primary", metric, n=verdict.n, mean=verdict.mean_gain, lo=verdict.lo,
                                          hi=verdict.hi)


def shown_gain(verdict: Verdict) -> float | None:
    """The lower bound of a gain that was shown; None where none was."""
    lo = primary_gate(verdict).lo
    return lo if verdict.verdict in ("promote", "optional") and lo is not None and lo > 0 else None


def headline(verdict: Verdict) -> str:
    """One sentence: for a promotion the lower bound of the gain, else the verdict's reason."""
    gate, lo = primary_gate(verdict), shown_gain(verdict)
    if lo is not None and gate.mean is not None:
        price = "; every floor holds" if verdict.verdict == "promote" else ", at a price inside its floor"
        measured = f"(measured: {gain_text(gate.metric, gate.mean)}, {gate.n} seeds)"
        return f"at least {gain_text(gate.metric, lo)} {measured}{price}"
    return verdict.reason or "no runs yet"
