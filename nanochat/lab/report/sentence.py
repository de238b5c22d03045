"""
The first line of a verdict: a sentence that a reader understands who knows neither t tests nor this repository.

    Not shown: gate changes val_bpb by 0.0000 (between 0.0030 worse and 0.0030 better); 8 control runs vary by 0.0036.
    It is 5 % slower (somewhere from 19 % slower to 8 % faster), too noisy to exclude the 10 % that you allow: rerun on
    an idle machine.

A terminal, the report, the picture's title and the draft of a LOG entry take it from here. It depends on the stored
verdict and its declaration alone.
"""

from typing import NamedTuple

from nanochat.lab.metrics import METRICS
from nanochat.lab.report.gains import Shown, decimal, digits_of, interval, primary_gate, shown
from nanochat.lab.verdict.evidence import TIMED
from nanochat.lab.verdict.facts import Declaration, GateRow, Noise, Verdict, bank_of
from nanochat.lab.verdict.gate_rows import largest_harm
from nanochat.lab.verdict.looks import FUTILE


class Words(NamedTuple):
    """A change of a metric as a verb phrase; {} is its size. The last two name the sides of an interval."""
    none: str
    good: str
    bad: str
    better: str
    worse: str


WORDS = {
    "val_bpb": Words("changes val_bpb by {}", "makes val_bpb {} better", "makes val_bpb {} worse", "better", "worse"),
    "final_train_loss": Words("changes the train loss by {}", "has a {} lower train loss", "has a {} higher train loss",
                              "lower", "higher"),
    "tok_per_sec": Words("changes the speed by {}", "is {} faster", "is {} slower", "faster", "slower"),
    "time_to_target": Words("changes the time to the target by {}", "needs {} less time to the target",
                            "needs {} more time to the target", "less", "more"),
    "wall_time": Words("changes the training time by {}", "trains in {} less time", "trains in {} more time", "less",
                       "more"),
}


def sentence(verdict: Verdict, declaration: Declaration, noise: Noise | None = None) -> str:
    """One or two sentences: what was found, how sure that is, and the next step. noise: of the declaration, if None."""
    case = Case(verdict, declaration, noise or declaration.noise)
    lead, *clauses = _clauses(case)
    first, rest = clauses[0], clauses[1:]
    return " ".join([f"{lead}: {first}", *rest])


def title(verdict: Verdict, declaration: Declaration) -> str:
    """The first clause of the sentence, for a picture: "inconclusive. Not shown: gate changes ..."."""
    lead, first, *_ = _clauses(Case(verdict, declaration, None))
    return f"{verdict.verdict or 'no verdict'}. {lead}: {first.split('; ')[0].split(', which')[0].rstrip('.')}"


class Case(NamedTuple):
    verdict: Verdict
    declaration: Declaration
    noise: Noise | None

    @property
    def subject(self) -> str:
        name = self.verdict.candidate
        return "the candidate" if name == "candidate" else name

    @property
    def primary(self) -> GateRow:
        return primary_gate(self.verdict)

    @property
    def floors(self) -> list[GateRow]:
        return [gate for gate in self.verdict.gates if gate.role == "floor"]

    @property
    def is_control_again(self) -> bool:
        """An A/A test: the arm has the options of the control."""
        arms = {arm.name: arm.flags for arm in self.declaration.arms}
        return bool(self.declaration.arms) and arms.get(self.verdict.candidate) == self.declaration.arms[0].flags


def _clauses(case: Case) -> list[str]:
    """[lead, first sentence, further sentences]: the first branch that applies, in the order of verdict/gates.py."""
    verdict = case.verdict
    if verdict.verdict is None:
        return ["Not judged", (verdict.reason or "no run has ended yet").rstrip(".") + "."]
    if any(gate.role == "count" for gate in verdict.gates) and len(verdict.gates) == 1:
        return _diverged(case)
    if verdict.noise_source == "identical" or case.primary.noise_source == "identical":
        return _identical(case)
    if case.primary.mean is None or case.primary.metric not in METRICS:
        why = (verdict.reason or "").replace("candidate missed", f"{case.subject} missed")
        return ["Cannot tell", f"{why}, so its time to the target is not known.",
                "Under a new label, set an easier target, or train longer."]
    if verdict.verdict == "reject":
        return _rejected(case)
    found = _promoted(case) if verdict.verdict in ("promote", "optional") else _undecided(case)
    again = "It has the options of the control, so whatever differs here is chance."
    return [*found, again] if case.is_control_again else found


# -----------------------------------------------------------------------------
# The verdicts

def _diverged(case: Case) -> list[str]:
    if case.verdict.verdict == "reject":
        return ["Diverged", f"a run of {case.subject} diverged where the control did not: try a lower learning rate, "
                            "or leave the change out."]
    return ["Cannot tell", "a run of the control itself diverged, so there is nothing to compare with: fix the "
                           "baseline first."]


def _identical(case: Case) -> list[str]:
    same = f"{case.subject} ended exactly as the control on each of {case.verdict.n} seeds"
    if case.is_control_again:
        return ["No difference, as it should be", f"{same}, and it has the options of the control."]
    return ["No difference", f"{same}: there is nothing to promote. Do its options do anything in this profile?"]


def _promoted(case: Case) -> list[str]:
    """The lower bound comes first: after an early stop the measured gain is optimistic, and the bound is not."""
    found, metric = _shown(case, case.primary), case.primary.metric
    at_least = WORDS[metric].good.format(f"at least {_size(metric, found, found.lo)}")
    measured = f"measured: {_size(metric, found, found.mean)}, at most {_size(metric, found, found.hi)}"
    first = f"{case.subject} {at_least} ({measured}){_noise(case)}."
    if case.verdict.verdict == "promote":
        return ["Better", first, *(["Every limit on its cost holds."] if case.floors else [])]
    price = [gate for gate in case.floors if (hi := interval(case.verdict, gate, case.declaration).hi) is not None
             and hi < 0]
    told = [f"It {_change(case, gate)}, within the {_limit(gate)} that you allow." for gate in price]
    return ["Better, at a price", first, *told]


def _rejected(case: Case) -> list[str]:
    verdict, primary = case.verdict, case.primary
    rows = [(gate, interval(verdict, gate, case.declaration).hi) for gate in verdict.gates if gate.mean is not None]
    harm = largest_harm(rows, _sd_of_run(case))
    if harm and harm.role == "floor":
        return ["Too costly", f"{case.subject} {_change(case, harm)}, more than the {_limit(harm)} that you allow.",
                f"It {_change(case, primary)}{_noise(case)}."]
    first = f"{case.subject} {_change(case, primary)}"
    if harm:
        return ["Worse", f"{first}{_noise(case)}."]
    if verdict.min_gain is None:
        return ["Rejected", f"{first}{_noise(case)}.", _end(verdict.reason or "")]
    return ["No gain worth having", f"{first}, which rules out a gain of {_worth(case)}."]


def _sd_of_run(case: Case) -> float:
    """The sd of one run in the unit of the deciding metric, as the verdict took it: harms are compared by it."""
    s_b, nu = bank_of(case.declaration.noise, case.primary.metric)
    lent = nu and "not lent" not in (case.primary.noise_source or "")
    return s_b if lent else (case.verdict.se or 0.0) * (case.verdict.n / 2) ** 0.5


def _worth(case: Case) -> str:
    """The gain that was excluded, and why it is the one worth having. It is rounded to a value that is excluded too."""
    metric, found = case.primary.metric, _shown(case, case.primary)
    gain = METRICS[metric].change(case.verdict.min_gain)
    by_hand = bool(case.declaration.min_gain_by_hand)
    texts = [decimal(gain, least) for least in range(3 if by_hand else 2, 10)]
    size = next((text for text in texts if float(text) > round(found.hi, found.digits)), texts[-1])
    if by_hand:
        return f"{size}{METRICS[metric].unit}, as you asked for{_noise(case)}"
    if metric == "wall_time":
        return f"{size} %, the least that is worth having{_noise(case)}"
    own = "" if (case.verdict.noise_source or "").startswith("bank") else _noise(case)
    return f"{size}{METRICS[metric].unit}, as much as control runs vary by{own}"


def _undecided(case: Case) -> list[str]:
    verdict, looks = case.verdict, case.declaration.looks
    first = f"{case.subject} {_change(case, case.primary)}"
    if case.primary.lo is None:
        on = f" on {verdict.n} seeds, which may be luck" if verdict.n else ""
        return ["Cannot tell", f"{first}{on}.", _end(verdict.reason or "")]
    doubt = _doubt(case)
    if looks and verdict.n < looks[-1] and not _is_futile(verdict):
        after = min((n for n in looks if n > verdict.n), default=looks[-1])
        return ["Not yet", f"{first}{_noise(case)}.", *doubt,
                f"The next check is planned at {after} seeds, the last at {looks[-1]}: the same command goes on."]
    if asked := _asked(case):
        return ["Better, and perhaps by too little", f"{first}, where {asked} has to be shown{_noise(case)}.", *doubt,
                *_seeds(case)]
    if case.primary.result == "pass":
        return ["Better, at a cost that is not known well enough", f"{first}{_noise(case)}.", *doubt]
    return ["Not shown", f"{first}{_noise(case)}.", *doubt, *_seeds(case)]


def _asked(case: Case) -> str | None:
    """The gain that has to be shown, where a smaller one is; else None."""
    gate = case.primary
    return _plain(gate.metric, -gate.threshold) if gate.threshold and 0 < gate.lo < -gate.threshold else None


def _is_futile(verdict: Verdict) -> bool:
    return verdict.chance_at_max is not None and verdict.chance_at_max < FUTILE


def _seeds(case: Case) -> list[str]:
    verdict = case.verdict
    if not verdict.seeds_needed or verdict.seeds_needed <= verdict.n:
        return []
    return [f"About {verdict.seeds_needed} seeds would show a gain of "
            f"{_plain(case.primary.metric, verdict.min_gain)}."]


def _doubt(case: Case) -> list[str]:
    """The floor that is furthest from being shown, and how to show it."""
    open_ones = [gate for gate in case.floors if gate.result != "pass"]
    if not open_ones:
        return []
    gate = min(open_ones, key=lambda gate: _headroom(gate))
    if gate.mean is None:
        name = "speed" if gate.metric == "tok_per_sec" else METRICS[gate.metric].name
        return [f"Its {name} was not measured in every run, so the {_limit(gate)} that you allow "
                "cannot be checked."]
    if gate.result == "fail":
        return [f"It {_change(case, gate)}, more than the {_limit(gate)} that you allow."]
    cure = "rerun on an idle machine" if gate.metric in TIMED else "add seeds"
    if gate.lo is None:
        return [f"It {_change(case, gate)} on these seeds, and how noisy that is is not known."]
    return [f"It {_change(case, gate)}, too noisy to exclude the {_limit(gate)} that you allow: {cure}."]


def _headroom(gate: GateRow) -> float:
    """How far the lower bound lies above the limit, in limits; the least is the most doubtful."""
    return float("-inf") if gate.lo is None or not gate.threshold else (gate.lo + gate.threshold) / gate.threshold


# -----------------------------------------------------------------------------
# Changes, limits and noise in words

def _shown(case: Case, gate: GateRow) -> Shown:
    return shown(case.verdict, gate, case.declaration)


def _change(case: Case, gate: GateRow) -> str:
    """ "makes val_bpb 0.0012 better (between 0.0003 worse and 0.0027 better)"; no bounds where there are none."""
    found, words = _shown(case, gate), WORDS[gate.metric]
    size = _size(gate.metric, found, found.mean)
    phrase = words.none if float(size.split()[0]) == 0 else words.good if found.mean > 0 else words.bad
    return phrase.format(size) + _bounds(gate.metric, found)


def _bounds(metric: str, found: Shown) -> str:
    if found.lo is None or found.hi is None:
        return ""
    words = WORDS[metric]
    def side(x):
        return words.better if x > 0 else words.worse
    lo, hi = (_size(metric, found, x) for x in (found.lo, found.hi))
    if side(found.lo) == side(found.hi):
        ends = sorted((lo, hi), key=lambda text: float(text.split()[0]))
        return f" (somewhere from {ends[0]} to {ends[1]} {side(found.lo)})"
    if METRICS[metric].log:
        return f" (somewhere from {lo} {side(found.lo)} to {hi} {side(found.hi)})"
    return f" (between {lo} {side(found.lo)} and {hi} {side(found.hi)})"


def _size(metric: str, found: Shown, x: float | None) -> str:
    return "unknown" if x is None else f"{abs(x):.{found.digits}f}{METRICS[metric].unit}"


def _plain(metric: str, d: float) -> str:
    """A gain without an interval, to three digits."""
    return decimal(METRICS[metric].change(d), least=3) + METRICS[metric].unit


def _limit(gate: GateRow) -> str:
    """The loss that a floor allows. -log 0.9 of the tokens a second are 10 %."""
    return _plain(gate.metric, -gate.threshold)


def _noise(case: Case) -> str:
    """The noise that the test took, after a semicolon; empty where it took none."""
    metric, verdict = case.primary.metric, case.verdict
    banked = case.noise.metrics.get(metric) if case.noise else None
    if banked and (verdict.noise_source or "").startswith("bank"):
        who, s = (f"{banked.n} control runs" if banked.n else "control runs"), banked.s_b
    elif verdict.se:
        who, s = f"the differences of its {verdict.n} pairs", verdict.se * verdict.n ** 0.5
    else:
        return ""
    spread = METRICS[metric].spread(s)
    censored = ", and the gain counts a control that missed the target as one that reached it last"
    return (f"; {who} vary by {spread:.{digits_of(spread)}f}{METRICS[metric].unit}"
            + (censored if (case.primary.noise_source or "").startswith("bank-only") else ""))


def _end(text: str) -> str:
    """A reason as a sentence of its own."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")
