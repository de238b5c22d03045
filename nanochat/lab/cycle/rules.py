"""
The rules of a cycle, as pure functions of result files and the ledger. cycle/walk.py goes through the phases:

    0 noise   1 theory slice   2 sweeps around the winner   3 shape and fusion   4 miniseries   5 promotion

A label is finished when each of its candidates has a verdict and no declared look is left for it. A label may promote
several candidates. The candidate with the largest lower bound of its gain is carried into the next label. A
candidate whose verdict is "optional" is not carried: it gains, but at a price inside its floor.
"""

import math
import shlex
from dataclasses import dataclass, field

from nanochat.config import FIELDS
from nanochat.lab.arms import CONTROL, parse_arm
from nanochat.lab.cycle.miniseries import Robustness
from nanochat.lab.ledger.experiments import NOISE
from nanochat.lab.ledger.workload import OF_A_CELL, options_of
from nanochat.lab.profiles import Profile
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.verdict.facts import Stored, Verdict, read_list
from nanochat.options import tagged

PHASES = ("noise and baseline banked", "theory slice", "sweeps around the winner", "shape and fusion", "miniseries",
          "promotion")
PLATEAU_GAIN = 0.02  # of a full cycle; two in a row below it, and nothing promoted, are a plateau
FUTILE = 0.10  # a candidate with a smaller chance to pass at the last look gets no more seeds


@dataclass(frozen=True)
class Step(Stored):
    """A line of the cycle's record: a label or a phase of the walk, and its state."""
    phase: int  # position in PHASES
    what: str
    state: str  # done | open | skipped
    why: str


@dataclass(frozen=True)
class CycleRecord(Stored):
    """The record of a walk, as results/<label>_cycle.json holds it."""
    label: str
    timestamp: str | None = None  # UTC
    profile: str | None = None  # its name
    flags: str = ""  # of every arm, from the start
    accepted: list[str] = field(default_factory=list)  # flags that its labels have promoted
    phases: list[Step] = field(default_factory=list)
    stopped: str | None = None  # where and why, if not at its end
    complete: bool = False  # finished runs ended it, not a lack of runs
    improvement: float = 0.0  # a share, robust: its lower bound at every depth
    promoted: bool = False  # by its miniseries

    def to_json(self) -> dict:
        entry = super().to_json()
        return {"timestamp": entry.pop("timestamp"), **entry}

    @classmethod
    def _read(cls, entry):
        return {"phases": read_list(Step, entry.get("phases"))}


@dataclass(frozen=True)
class Past:
    """An earlier verdict on a candidate with these flags."""
    label: str
    flags: str
    seeds: list[int]
    verdict: str | None


@dataclass(frozen=True)
class Winner:
    """A promoted candidate."""
    found: Verdict
    flags: str  # options that it adds to the control


@dataclass(frozen=True)
class Status:
    """The state of a label, as its result file shows it."""
    finished: bool
    why: str
    winner: Winner | None = None


# -----------------------------------------------------------------------------
# One label

def label_status(results: ResultFile | None, flags: str = "") -> Status:
    """The status of a label. results: its result file, or None. flags: flags that every arm must have had."""
    if not results or not results.verdicts:
        return Status(False, "not run yet")
    missing = [word for word in shlex.split(flags) if word not in results.settings.common_flags]
    if missing:
        return Status(False, f"was run without {' '.join(missing)}")
    verdicts, looks = results.verdicts, results.declaration.looks
    is_open = [f"{found.candidate}: {found.reason}" for found in verdicts if has_looks_left(looks, found)]
    if is_open:
        return Status(False, "; ".join(is_open))
    best = winner(verdicts)
    if best:
        return Status(True, f"{best.candidate} ({best.reason})", Winner(best, flags_of(results, best.candidate)))
    said = ", ".join(f"{found.candidate} {found.verdict}" for found in verdicts)
    return Status(True, f"nothing promoted: {said}")


def flags_of(results: ResultFile, candidate: str) -> str:
    return next(arm.flags for arm in results.declaration.arms if arm.name == candidate)


def has_looks_left(looks: list[int], found: Verdict) -> bool:
    """True if there is no verdict, or an undecided verdict that more of the declared seeds could still decide."""
    if found.verdict != "inconclusive":
        return found.verdict is None
    chance = found.chance_at_max
    return found.n < looks[-1] and not (chance is not None and chance < FUTILE)


def winner(verdicts: list[Verdict]) -> Verdict | None:
    """The promoted candidate with the largest lower bound; None where nothing is promoted."""
    promoted = [found for found in verdicts if found.verdict == "promote"]
    return max(promoted, key=lambda found: -math.inf if found.lo is None else found.lo, default=None)


def common_winner(statuses: list[Status], labels: list[ResultFile]) -> Winner | None:
    """The candidate that every label (lengths of a horizon) promotes, with its worst verdict; None without one."""
    if not all(status.winner for status in statuses):
        return None
    by_label = [{found.candidate: found for found in results.verdicts if found.verdict == "promote"}
                for results in labels]
    names = [name for name in by_label[0] if all(name in promoted for promoted in by_label)]
    worst = [min((promoted[name] for promoted in by_label), key=lambda found: found.lo) for name in names]
    best = winner(worst)
    return best and Winner(best, flags_of(labels[0], best.candidate))


def relative_gain(results: ResultFile, found: Verdict) -> float:
    """The lower bound of a candidate's gain, as a share of the control: 0.02 is 2 %. Never below 0."""
    if found.lo is None or found.lo <= 0:
        return 0.0
    if results.declaration.primary != "val_bpb":
        return 1 - math.exp(-found.lo)  # logs of times
    control = [run.val_bpb for run in results.runs if run.arm == CONTROL and run.val_bpb is not None]
    return found.lo * len(control) / sum(control)


# -----------------------------------------------------------------------------
# The bank

def banked_seeds(rows: list[dict], profile: Profile, flags: str, dataset_id: str | None = None) -> set[int]:
    """Seeds of the control runs that the ledger has for this profile with these flags, on these data (None: any)."""
    wanted = vars(parse_arm(CONTROL, "", [*profile.flags, *shlex.split(flags)]).config)
    names = [name for name in FIELDS if name not in (*OF_A_CELL, *tagged(FIELDS, "machine"))]
    own = NOISE, CONTROL, "ok", profile.name
    rows = [row for row in rows if dataset_id in (None, row["dataset_id"])]
    return {row["seed"] for row in rows if (row["label"], row["arm"], row["status"], row["profile"]) == own
            and (found := options_of(row)) and all(found[name] == wanted[name] for name in names)}


# -----------------------------------------------------------------------------
# Plateau, rollback, re-entry

def plateau(cycles: list[CycleRecord]) -> tuple[bool, str]:
    """(reached, why) from the cycles so far, oldest first. Cycles that were not walked to an end do not count."""
    full = [cycle for cycle in cycles if cycle.complete]
    if len(full) < 2:
        return False, f"full cycles: {len(full)}, a plateau needs two: the deferred architectures stay deferred"
    last = full[-2:]
    gains = ", ".join(f"{cycle.label} {cycle.improvement:.1%}" for cycle in last)
    promoted = [cycle.label for cycle in last if cycle.promoted]
    large = [cycle.label for cycle in last if cycle.improvement >= PLATEAU_GAIN]
    if promoted:
        return False, f"no plateau: {', '.join(promoted)} promoted through the miniseries (robust improvement: {gains})"
    if large:
        return False, f"no plateau: {', '.join(large)} gained {PLATEAU_GAIN:.0%} or more (robust improvement: {gains})"
    return True, (f"plateau: two full cycles below {PLATEAU_GAIN:.0%} ({gains}), none promoted: "
                  "deferred architectures may be reconsidered")


def rollback(miniseries: Robustness, complexity: str | None = None, reasoning: str | None = None) -> list[str]:
    """Reasons why a change goes back to default-off; [] where it stays.

    A regression at some depth is measured. The other two reasons are written down by a person who judges the change:
    complexity out of proportion, and behaviour that is harder to reason about.
    """
    worse = [f"depth {d.depth}: {d.why}" for d in miniseries.depths if d.says == "reject"]
    reasons = [f"cross-depth regression ({'; '.join(worse)})"] if worse else []
    reasons += [f"complexity out of proportion: {complexity}"] if complexity else []
    return reasons + ([f"harder to reason about: {reasoning}"] if reasoning else [])


def reentry(earlier: list[Past], label: str, flags: str, seeds: list[int], *, deferred=False,
            at_plateau=False) -> list[str]:
    """Why a candidate may not be tried (again); [] where it may.

    A rejected candidate may be tried again under a new label with new seeds. A deferred architecture may be tried only
    at a plateau.
    """
    refusals = []
    for past in earlier:
        if past.verdict != "reject" or sorted(shlex.split(past.flags)) != sorted(shlex.split(flags)):
            continue
        if past.label == label:
            refusals.append(f"{flags} was rejected under {label}: it comes back under a new label")
        elif shared := sorted(set(past.seeds) & set(seeds)):
            refusals.append(f"{flags} was rejected under {past.label} on seeds {', '.join(map(str, shared))} too: "
                            "new seeds are needed")
    if deferred and not at_plateau:
        refusals.append(f"{flags} is deferred until there is a plateau: two full cycles below {PLATEAU_GAIN:.0%}, "
                        "nothing promoted")
    return refusals
