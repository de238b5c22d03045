"""
A miniseries: does a change that is better at one depth hold at other depths too? Each depth is a label of its own.

The verdict is read from the result files of these labels. Every depth has gates 1 (time to target), 5 (train loss) and
6 (val_bpb), with the margins of every protocol.

A miniseries filters candidates that another label has promoted. It is no second way to promotion: on its own it would
promote a change that does nothing as often as any of its depths does (`false_promotion`).
"""

from dataclasses import asdict, dataclass, field

from nanochat.config import FIELDS
from nanochat.lab.arms import CONTROL, parse_arm
from nanochat.lab.metrics import METRICS
from nanochat.lab.report.result_check import read_judged
from nanochat.lab.report.result_file import ResultFile, path_of
from nanochat.lab.table import table
from nanochat.lab.verdict.facts import GateRow, Verdict
from nanochat.options import tagged

GATES = {"final_train_loss": 5, "val_bpb": 6}  # floors that have to be shown at every depth; gate 1 is the primary
VAL_BPB_MARGIN = 0.005  # gate 6, also where val_bpb is the primary metric and so no floor
# Of the options of two depths: device_batch_size only cuts the same batch.
MAY_DIFFER = ("depth", "device_batch_size", *tagged(FIELDS, "name"))


@dataclass
class Depth:
    depth: int
    says: str  # promote | not worse | price | unsure | reject
    why: str
    found: Verdict

    def gate(self, metric: str) -> GateRow | None:
        return next((gate for gate in self.found.gates if gate.metric == metric), None)


@dataclass
class Robustness:
    """The verdict on one candidate."""
    candidate: str
    verdict: str  # promote | optional | inconclusive | reject
    reason: str
    rollback: str | None  # why it goes back to default-off
    depths: list[Depth] = field(default_factory=list)


def label_of(label: str, depth: int) -> str:
    return f"{label}_d{depth}"


def read_depths(folder, label: str, depths: list[int]) -> dict[int, ResultFile]:
    """{depth: results of its label}. Raises ValueError naming every depth that is missing or edited."""
    results, missing = {}, []
    for depth in depths:
        path = path_of(label_of(label, depth), folder)
        try:
            results[depth] = read_judged(path)
        except OSError:
            missing.append(f"depth {depth}: no {path}")
        except ValueError as e:
            missing.append(f"depth {depth}: {e}")
    if missing:
        raise ValueError(f"{'; '.join(missing)}: run it, the same command goes on")
    return results


# -----------------------------------------------------------------------------
# Matched conditions

def check_matched(results: dict[int, ResultFile]) -> list[str]:
    """Names of the candidates.

    Raises ValueError where the depths do not compare the same thing under the same conditions.
    """
    if not results:
        raise ValueError("no depths: expected at least one, as in --depths 2 4")
    first_depth, *others = results
    first = _conditions(first_depth, results[first_depth])
    for depth in others:
        conditions = _conditions(depth, results[depth])
        differ = [f"{name}: {first.get(name)} -> {conditions.get(name)}" for name in {**first, **conditions}
                  if first.get(name) != conditions.get(name)]
        if differ:
            raise ValueError(f"depth {depth} is not matched with depth {first_depth} ({'; '.join(differ)}): "
                             "expected the same candidates, gates and options at every depth; "
                             "run it again under another label")
    return list(first["candidates"])


def _conditions(depth: int, results: ResultFile) -> dict:
    """{name: value} of all that has to be the same at every depth."""
    settings, declared = results.settings, results.declaration
    flags = [*settings.profile_flags, *settings.machine_flags, *settings.common_flags]
    config = parse_arm(CONTROL, "", flags).config
    if config.depth != depth:
        raise ValueError(f"depth {depth}: {declared.label} was run at depth {config.depth}; use another label")
    options = {name: value for name, value in asdict(config).items() if name not in MAY_DIFFER}
    return {"candidates": {arm.name: arm.flags for arm in declared.candidates}, "profile": settings.profile,
            "dataset_id": results.provenance.get("dataset_id"),
            "primary": declared.primary, "fallback": declared.fallback,
            "min_gain": declared.min_gain if declared.min_gain_by_hand else None,
            "floors": [floor.to_json() for floor in declared.floors], **options}


# -----------------------------------------------------------------------------
# The verdict

def judge(results: dict[int, ResultFile]) -> list[Robustness]:
    """A verdict for each candidate, from {depth: results}. Raises ValueError for depths that do not fit together."""
    return [_robustness(name, [_depth(depth, found.verdicts, name) for depth, found in results.items()])
            for name in check_matched(results)]


def _depth(depth: int, verdicts: list[Verdict], name: str) -> Depth:
    """The verdict of one depth on the candidate. Raises ValueError where that depth has no verdict."""
    found = next((verdict for verdict in verdicts if verdict.candidate == name), None)
    if found is None or found.verdict is None:
        who, why = (name, found.reason) if found else ("the candidate", "no cell has been run")
        raise ValueError(f"depth {depth}: no verdict on {who} ({why}): run it to its end")
    if found.verdict in ("promote", "reject"):
        return Depth(depth, found.verdict, found.reason, found)
    if found.verdict == "optional":
        return Depth(depth, "price", found.reason, found)
    unsure = not_shown(found)
    if unsure:
        return Depth(depth, "unsure", "; ".join(unsure), found)
    return Depth(depth, "not worse", "gates 5 and 6 are shown, and no gate is shown worse", found)


def not_shown(found: Verdict) -> list[str]:
    """The gates that keep an undecided verdict from "not worse": a floor that is not shown, or a gate shown worse."""
    gates = {gate.metric: gate for gate in found.gates}
    if not gates.keys() & GATES.keys():
        return [found.reason]
    out = []
    for metric, n in GATES.items():
        gate = gates.get(metric)
        if gate is None:
            out.append(f"gate {n} ({metric}) was not judged")
        elif not _within(gate):
            out.append(f"gate {n} ({metric}) is not shown to be within its margin")
    for gate in gates.values():
        if (gate.role == "primary" or gate.metric in GATES) and gate.hi is not None and gate.hi < 0:
            out.append(f"{gate.metric} is shown worse")
    return out


def _within(gate: GateRow) -> bool:
    if gate.role == "primary" and gate.metric == "val_bpb":  # its own margin asks for "better"
        return gate.lo is not None and gate.lo > -VAL_BPB_MARGIN
    return gate.result == "pass"


def _robustness(name: str, depths: list[Depth]) -> Robustness:
    """promote: every depth says promote or not worse, and one of them promote. A reject anywhere means rollback."""
    def at(*says):
        return [d for d in depths if d.says in says]
    gains, rejects, doubts = at("promote", "price"), at("reject"), at("price", "unsure")
    rollback = "; ".join(f"depth {d.depth}: {d.why}" for d in rejects) or None
    if rejects:
        reason = f"rejected at {_listed(rejects)}: rollback to default-off"
        return Robustness(name, "optional" if gains else "reject", reason, rollback, depths)
    if not gains:
        return Robustness(name, "inconclusive", "no depth shows a gain", rollback, depths)
    if doubts:
        return Robustness(name, "optional", "; ".join(f"depth {d.depth}: {d.why}" for d in doubts), rollback, depths)
    return Robustness(name, "promote", f"better at {_listed(at('promote'))}, and no depth is worse", rollback, depths)


def _listed(depths) -> str:
    return "depth " + ", ".join(str(d.depth) for d in depths)


def false_promotion(depths: int, alpha: float) -> float:
    """Chance that some depth promotes a change that does nothing: the error rate of a miniseries alone.

    >>> round(false_promotion(3, 0.05), 3)
    0.143
    """
    return 1 - (1 - alpha) ** depths


# -----------------------------------------------------------------------------
# Report

def results_table(verdicts: list[Robustness], alpha: float) -> str:
    def gate_cell(d, metric):
        gate = d.gate(metric)
        return gate.result if gate else ""
    def gain_cell(found, x):
        m = METRICS[found.metric or "val_bpb"]
        return "" if x is None else f"{m.change(x):{'+.2f' if m.log else '+.5f'}}{m.unit}"
    def gain_cells(found):
        hi = found.hi_at_alpha if found.verdict == "reject" else found.hi  # as in every report: report/gains.py
        return [gain_cell(found, x) for x in (found.mean_gain, found.lo, hi)]
    rows = [[v.candidate, str(d.depth), d.says, str(d.found.n), *gain_cells(d.found),
             *(gate_cell(d, metric) for metric in GATES)] for v in verdicts for d in v.depths]
    header = ["candidate", "depth", "says", "n", "change (+ is better)", "at least", "at most",
              *(f"gate {n}" for n in GATES.values())]
    lines = ["", table(header, rows), ""]
    for v in verdicts:
        lines.append(f"miniseries {v.candidate}: {v.verdict}\n  {v.reason}")
        lines += [f"  rollback to default-off: {v.rollback}"] if v.rollback else []
    n = max(len(v.depths) for v in verdicts)
    if n > 1:
        percent = 100 * false_promotion(n, alpha)
        lines.append(f"A change that does nothing passes {n} depths in up to {percent:.0f} % of cases: "
                     "this confirms what another label has promoted, and promotes nothing by itself")
    return "\n".join(lines)


def summary(verdicts: list[Robustness]) -> list[dict]:
    """The verdicts for JSON, each with the verdicts and bounds of all depths."""
    def at_depth(d):
        return {"depth": d.depth, "says": d.says, "why": d.why, "n": d.found.n, "mean_gain": d.found.mean_gain,
                "lo": d.found.lo, "hi": d.found.hi}
    return [{"candidate": v.candidate, "verdict": v.verdict, "reason": v.reason, "rollback": v.rollback,
             "depths": [at_depth(d) for d in v.depths]} for v in verdicts]
