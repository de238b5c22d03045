"""
The rows of a verdict's table: the demand of each gate and its finding, in its unit and in sd of one control run.
"""

import math

from nanochat.lab.arms import CONTROL
from nanochat.lab.verdict.evidence import Evidence, Gate
from nanochat.lab.verdict.facts import Declaration, GateRow, bank_of
from nanochat.lab.verdict.stats import Comparison, t_above

SECTION = {"time_to_target": "7.1 gate 1", "wall_time": "7.1 gate 2", "final_train_loss": "7.1 gate 5",
           "val_bpb": "7.1 gate 6", "tok_per_sec": "7.1 throughput"}  # of ideas/plan.md
UNIT = {"val_bpb": "bpb"}  # the others are logs
LOOSE_FLOOR = 5  # sd: a margin above it passes nearly anything


def gate_row(declaration: Declaration, gate: Gate, test: Comparison, plain: Comparison) -> GateRow:
    """A gate's row. test: at the level of the look. plain: at the level of the whole label, by which it can fail."""
    s_b, nu = bank_of(declaration.noise, gate.metric)
    refused = gate.unlent if gate.unlent and test.n >= gate.unlent.n else None
    in_sd = test.margin / s_b if s_b else None
    asked = {"gate": gate.metric, "role": gate.role, "metric": gate.metric, "unit": UNIT.get(gate.metric, "log"),
             "threshold": test.margin, "threshold_in_sd": in_sd, "section": SECTION[gate.metric], "n": test.n}
    if test.source == "missed":
        result = "fail" if gate.metric == "time_to_target" else "cannot tell"
        return GateRow(**asked, result=result, note=gate.missed)
    loose = f"loose: its margin is {in_sd:.1f} sd" if gate.role == "floor" and s_b and in_sd > LOOSE_FLOOR else None
    not_lent = f"the bank is not lent from {max(refused.n, 2)} pairs on: {refused.why}" if refused else None
    note = "; ".join(filter(None, (loose, not_lent, gate.note))) or None
    numbers = {"mean": test.mean, "mean_in_sd": test.mean / s_b if s_b else None, "lo": test.lo, "hi": test.hi,
               "level": test.level, "p": test.p}
    passes = "pass" if test.p <= test.level else "fail" if plain.hi < -test.margin else "cannot tell"
    return GateRow(**asked, note=note, noise_source=_source(test, nu, refused), result=passes,
                   **{name: finite(value) for name, value in numbers.items()})


def _source(test: Comparison, nu: int, refused) -> str:
    own = "own: the bank is not lent" if refused else "own: spreads more than the bank" if nu else "own"
    return {"bank": f"bank nu={nu}", "own": own, "bank-only": "bank-only: missed targets",
            "none": "none: the bank is not lent" if refused else "none"}.get(test.source, test.source)


def stability_row(e: Evidence) -> GateRow:
    """Gate 3: no run diverged. The row is a count; there is no test behind it. Spikes are told, and decide nothing."""
    result = "pass" if not e.diverged else "cannot tell" if CONTROL in e.diverged else "fail"
    note = f"diverged: {', '.join(sorted(e.diverged))}" if e.diverged else e.spikes
    return GateRow("no instability", "count", "run_status", unit="", n=e.n, result=result, section="7.1 gate 3",
                   note=note)


def hi_at_alpha(gate: GateRow, declaration: Declaration) -> float | None:
    """The upper bound of a gate at the level of the whole label, by which it can fail. None where there is none.

    A row keeps its bounds at the level of the look. Both bounds are a number of standard errors from the mean, so the
    one level gives the other.
    """
    if gate.hi is None or gate.lo is None or gate.level is None or gate.level == declaration.alpha:
        return gate.hi
    nu, source = bank_of(declaration.noise, gate.metric)[1], gate.noise_source or ""
    own = source.startswith("own") or not nu
    df = gate.n - 1 if own else nu if source.startswith("bank-only") else nu + gate.n - 1
    se = (gate.mean - gate.lo) / t_above(gate.level, df)
    return gate.mean + t_above(declaration.alpha, df) * se


def largest_harm(rows: list[tuple[GateRow, float | None]], noise: float) -> GateRow | None:
    """The gate that rejects: of the gates that are shown to do harm, the one with the largest. None without any.

    rows: (gate, its upper bound at the level of the whole label). A floor's loss is measured in its limit, the loss of
    the primary gate in `noise`, the sd of a run in the unit of that gate.
    """
    def harm(row):
        scale = row.threshold if row.role == "floor" else noise
        return -row.mean / scale if scale > 0 else math.inf
    broken = [row for row, hi in rows if hi is not None and hi < (-row.threshold if row.role == "floor" else 0)]
    return max(broken, key=harm, default=None)


def finite(value):
    """The number, or None where it is infinite or nan: JSON has no infinity, so an open bound is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
