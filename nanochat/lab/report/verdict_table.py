"""
The gates of a verdict as rows: a table in the words of a user, and a second one with the numbers of the test.

Signs are those of a gain everywhere: plus is better, also for a metric like val_bpb, of which less is better.
"""

from nanochat.lab.metrics import METRICS
from nanochat.lab.report.gains import decimal, shown
from nanochat.lab.table import number, table
from nanochat.lab.verdict.facts import Declaration, GateRow, Verdict

HEADER = ["what", "change (+ is better)", "between", "may lose at most", "shown?"]
SHOWN = {"pass": "yes", "fail": "no", "cannot tell": "cannot tell"}
DETAIL_HEADER = ["gate", "role", "n", "level", "p", "change in sd", "limit in sd", "noise", "ideas/plan.md"]


def user_rows(verdict: Verdict, declaration: Declaration) -> list[list[str]]:
    """A row under HEADER for each gate."""
    return [_user_row(verdict, gate, declaration) for gate in verdict.gates]


def _user_row(verdict: Verdict, gate: GateRow, declaration: Declaration) -> list[str]:
    result = SHOWN.get(gate.result, gate.result or "")
    if gate.metric not in METRICS:
        return ["runs that diverge", "", "", "none", result]
    m, found = METRICS[gate.metric], shown(verdict, gate, declaration)
    name = f"{m.name} (decides)" if gate.role == "primary" else m.name
    if found.mean is None:
        return [name, "not measured", "", limit_text(gate), result]
    between = "" if None in (found.lo, found.hi) else f"{found.text(found.lo)} and {found.text(found.hi, m.unit)}"
    return [name, found.text(found.mean, m.unit), between or "not known", limit_text(gate), result]


def limit_text(gate: GateRow) -> str:
    """The loss that a floor allows, or the gain that the deciding metric has to show."""
    m = METRICS[gate.metric]
    size = decimal(m.change(-(gate.threshold or 0.0)), least=3 if gate.role == "floor" else 2) + m.unit
    if gate.role == "floor":
        return size
    return f"nothing: has to gain {size}" if gate.threshold else "nothing: has to gain"


def detail_rows(verdict: Verdict) -> list[list[str]]:
    """A row under DETAIL_HEADER for each gate."""
    return [_detail_row(gate) for gate in verdict.gates]


def _detail_row(gate: GateRow) -> list[str]:
    limit = None if gate.threshold_in_sd is None else 0.0 - gate.threshold_in_sd
    name = gate.gate if gate.gate == gate.metric else f"{gate.gate}: {gate.metric}"
    return [name, gate.role, number(gate.n, "d"), number(gate.level, ".3g"), number(gate.p, ".3g"),
            number(_zero(gate.mean_in_sd), "+.1f"), number(limit, "+.1f"), gate.noise_source or "", gate.section or ""]


def _zero(x: float | None) -> float | None:
    """Without the sign of a number that is shown as 0.0."""
    return 0.0 if x is not None and abs(x) < 0.05 else x


def gate_notes(verdict: Verdict) -> list[str]:
    return [f"{gate.gate}: {gate.note}" for gate in verdict.gates if gate.note]


def user_table(verdict: Verdict, declaration: Declaration) -> str:
    """Empty where no gate was reached."""
    return table(HEADER, user_rows(verdict, declaration)) if verdict.gates else ""


def detail_table(verdict: Verdict) -> str:
    return table(DETAIL_HEADER, detail_rows(verdict), left=2) if verdict.gates else ""
