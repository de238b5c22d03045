"""
The rules of a cycle, as pure functions over what result files and the ledger say; cycle/walk.py goes through the phases.

    0 noise   1 theory slice   2 sweeps around the winner   3 shape and fusion   4 miniseries   5 promotion

A label is finished when each of its candidates has a verdict and no declared look is left for it. What a label
promotes with the largest lower bound is carried into the next one; a price inside a floor is not carried.
"""

import math
import shlex
from dataclasses import dataclass

from nanochat.config import FIELDS
from nanochat.lab.arms import CONTROL, parse_arm
from nanochat.lab.ledger.experiments import NOISE
from nanochat.lab.ledger.workload import OF_A_CELL, options_of
from nanochat.lab.profiles import Profile
from nanochat.options import tagged

PHASES = ("noise and baseline banked", "theory slice", "sweeps around the winner", "shape and fusion", "miniseries", "promotion")
PLATEAU_GAIN = 0.02  # of a full cycle; two in a row below it, and nothing promoted, are a plateau
FUTILE = 0.10  # a candidate with a smaller chance to pass at the last look gets no more seeds


@dataclass(frozen=True)
class Status:
    """What the result file of one label says."""
    finished: bool
    why: str
    winner: dict | None = None  # its verdict entry, with "flags"


# -----------------------------------------------------------------------------
# One label

def label_status(facts: dict | None, flags: str = "") -> Status:
    """facts: of results/<label>_latest.json, {} or None where there is none; flags: those that every arm has to have had."""
    if not facts or not facts.get("verdicts"):
        return Status(False, "not run yet")
    missing = [word for word in shlex.split(flags) if word not in facts["settings"]["common_flags"]]
    if missing:
        return Status(False, f"was run without {' '.join(missing)}")
    flags_of = {arm["name"]: arm["flags"] for arm in facts["declaration"]["arms"]}
    entries = [entry | {"flags": flags_of[entry["candidate"]]} for entry in facts["verdicts"]]
    is_open = [f"{entry['candidate']}: {entry['reason']}" for entry in entries if has_looks_left(facts["declaration"], entry)]
    if is_open:
        return Status(False, "; ".join(is_open))
    best = winner(entries)
    if best:
        return Status(True, f"{best['candidate']} ({best['reason']})", best)
    return Status(True, "nothing promoted: " + ", ".join(f"{entry['candidate']} {entry['verdict']}" for entry in entries))


def has_looks_left(declaration: dict, entry: dict) -> bool:
    """No verdict at all, or an undecided one that more of its declared seeds could still decide."""
    if entry["verdict"] != "inconclusive":
        return entry["verdict"] is None
    chance = entry.get("chance_at_max")
    return entry["n"] < declaration["looks"][-1] and not (chance is not None and chance < FUTILE)


def winner(entries: list[dict]) -> dict | None:
    """The promoted candidate with the largest lower bound; None where nothing is promoted."""
    promoted = [entry for entry in entries if entry["verdict"] == "promote"]
    return max(promoted, key=lambda entry: -math.inf if entry.get("lo") is None else entry["lo"], default=None)


def common_winner(statuses: list[Status], facts: list[dict]) -> dict | None:
    """The candidate that every label promotes (lengths of a horizon), with its worst entry; None where there is none."""
    by_label = [{entry["candidate"]: entry for entry in f["verdicts"] if entry["verdict"] == "promote"} for f in facts]
    names = [name for name in by_label[0] if all(name in promoted for promoted in by_label)] if all(s.winner for s in statuses) else []
    worst = [min((promoted[name] for promoted in by_label), key=lambda entry: entry["lo"]) for name in names]
    best = winner(worst)
    return best and best | {"flags": next(arm["flags"] for arm in facts[0]["declaration"]["arms"] if arm["name"] == best["candidate"])}


def relative_gain(facts: dict, entry: dict) -> float:
    """What a candidate is shown to gain at least, as a share of the control: 0.02 is 2 %. Never below 0."""
    lo = entry.get("lo")
    if lo is None or lo <= 0:
        return 0.0
    if facts["declaration"]["primary"] != "val_bpb":
        return 1 - math.exp(-lo)  # logs of times
    control = [run["val_bpb"] for run in facts["runs"] if run["arm"] == CONTROL and run["val_bpb"] is not None]
    return lo * len(control) / sum(control)


# -----------------------------------------------------------------------------
# The bank

def banked_seeds(rows: list[dict], profile: Profile, flags: str) -> set[int]:
    """Seeds of the control runs that the ledger has for this profile with these flags."""
    wanted = vars(parse_arm(CONTROL, "", [*profile.flags, *shlex.split(flags)]).config)
    names = [name for name in FIELDS if name not in (*OF_A_CELL, *tagged(FIELDS, "machine"))]
    return {row["seed"] for row in rows if (row["label"], row["arm"], row["status"], row["profile"]) == (NOISE, CONTROL, "ok", profile.name)
            and (found := options_of(row)) and all(found[name] == wanted[name] for name in names)}


# -----------------------------------------------------------------------------
# Plateau, rollback, re-entry

def plateau(cycles: list[dict]) -> tuple[bool, str]:
    """(reached, why) from the cycles so far, oldest first: dicts with label, complete, improvement (a share, robust: its lower
    bound at every depth) and promoted (by its miniseries). Cycles that were not walked to an end do not count."""
    full = [cycle for cycle in cycles if cycle["complete"]]
    if len(full) < 2:
        return False, f"full cycles: {len(full)}, a plateau needs two: the deferred architectures stay deferred"
    last = full[-2:]
    gains = ", ".join(f"{cycle['label']} {cycle['improvement']:.1%}" for cycle in last)
    promoted = [cycle["label"] for cycle in last if cycle["promoted"]]
    large = [cycle["label"] for cycle in last if cycle["improvement"] >= PLATEAU_GAIN]
    if promoted:
        return False, f"no plateau: {', '.join(promoted)} promoted through the miniseries (robust improvement: {gains})"
    if large:
        return False, f"no plateau: {', '.join(large)} gained {PLATEAU_GAIN:.0%} or more (robust improvement: {gains})"
    return True, f"plateau: two full cycles below {PLATEAU_GAIN:.0%} ({gains}), none promoted: deferred architectures may be reconsidered"


def rollback(miniseries: dict, complexity: str | None = None, reasoning: str | None = None) -> list[str]:
    """Reasons why a change goes back to default-off; [] where it stays. miniseries: its summary of the candidate.

    The first is measured; the others a person judges and writes down: complexity out of proportion, behaviour harder to reason about.
    """
    worse = [f"depth {d['depth']}: {d['why']}" for d in miniseries["depths"] if d["says"] == "reject"]
    reasons = [f"cross-depth regression ({'; '.join(worse)})"] if worse else []
    reasons += [f"complexity out of proportion: {complexity}"] if complexity else []
    return reasons + ([f"harder to reason about: {reasoning}"] if reasoning else [])


def reentry(earlier: list[dict], label: str, flags: str, seeds: list[int], *, deferred=False, at_plateau=False) -> list[str]:
    """Why a candidate may not be tried (again); [] where it may. earlier: dicts with label, flags, seeds, verdict.

    A rejected candidate comes back under a new label with new seeds; a deferred architecture only at a plateau.
    """
    refusals = []
    for past in earlier:
        if past["verdict"] != "reject" or sorted(shlex.split(past["flags"])) != sorted(shlex.split(flags)):
            continue
        if past["label"] == label:
            refusals.append(f"{flags} was rejected under {label}: it comes back under a new label")
        elif shared := sorted(set(past["seeds"]) & set(seeds)):
            refusals.append(f"{flags} was rejected under {past['label']} on seeds {', '.join(map(str, shared))} too: new seeds are needed")
    if deferred and not at_plateau:
        refusals.append(f"{flags} is deferred until there is a plateau: two full cycles below {PLATEAU_GAIN:.0%}, nothing promoted")
    return refusals
