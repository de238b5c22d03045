"""
A verdict, line by line as dev/DESIGN.md promises it: declare, refuse what proves nothing, test, correct, decide.

The metric is val_bpb at the end of a run (lower is better), d = control - candidate per seed. All that
decides is in the declaration, which is on disk before the first run; `judge` reads it and the finished runs,
and holds no state. There is no noise bank yet: below 5 seeds every verdict is inconclusive, from 5 on the
paired t of the runs themselves decides (stats.compare with nu = 0), Holm over the candidates.
"""

import math
from collections import Counter

import numpy as np

from nanochat.lab.arms import CONTROL
from nanochat.lab.stats import ALPHA, MIN_PAIRS_WITHOUT_BANK, compare, holm, seeds_needed, smallest_gain

METRIC = "val_bpb"
RERUN = ("crash", "oom", "timeout", "interrupted")  # says nothing about the arm: re-run it, never drop the pair
WHAT_SETTLES = f'run at least {MIN_PAIRS_WITHOUT_BANK} seeds, e.g. `make protocol SEEDS="1 2 3 4 5"`, same LABEL and CANDIDATE'


class Refusal(ValueError):
    """These runs can never give a verdict, whatever their numbers."""


# -----------------------------------------------------------------------------
# Before the first run

def declare(label, profile, arms, seeds, changes, min_gain, declared_at) -> dict:
    """What decides, fixed before the first run. changes: {arm: profile options it changes}."""
    n = len(seeds)
    return {
        "declared_at": declared_at, "label": label, "profile": profile, "primary_metric": METRIC, "margin": 0.0, "floors": [],
        "alpha": ALPHA, "min_gain": min_gain, "seeds": list(seeds), "looks": [n], "K": len(arms) - 1,
        "noise_source": "own" if n >= MIN_PAIRS_WITHOUT_BANK else "none",
        "arms": [{"name": arm.name, "flags": arm.flags, "profile_changes": changes.get(arm.name, [])} for arm in arms],
    }


def declaration_changes(old: dict, new: dict) -> list[str]:
    """What differs from an earlier declaration of the same label, beside its date."""
    return [f"{key}: {old.get(key)} -> {new[key]}" for key in new if key != "declared_at" and old.get(key) != new[key]]


# -----------------------------------------------------------------------------
# Refusals

def refuse_undeclared(declaration, runs):
    """What is wrong with the whole set of runs: duplicates, arms or seeds that were not declared."""
    cells = Counter((run["arm"], run["seed"]) for run in runs)
    twice = [cell for cell, n in cells.items() if n > 1]
    if twice:
        raise Refusal(f"duplicate rows for {twice[0]}: one cell is one run")
    declared = {(arm["name"], seed) for arm in declaration["arms"] for seed in declaration["seeds"]}
    foreign = cells.keys() - declared
    if foreign:
        raise Refusal(f"{sorted(foreign)[0]} was not declared before the first run; use a new label")


def paired_runs(declaration, runs, name) -> list[tuple[dict, dict]]:
    """(control, candidate) per declared seed. Raises Refusal where a pair is not there to be compared."""
    changes = next(arm["profile_changes"] for arm in declaration["arms"] if arm["name"] == name)
    if changes:
        raise Refusal(f"{name} is another workload than the control ({'; '.join(changes)}): different profiles are not compared")
    by_cell = {(run["arm"], run["seed"]): run for run in runs}
    pairs = []
    for seed in declaration["seeds"]:
        for arm in (CONTROL, name):
            run = by_cell.get((arm, seed))
            if run is None:
                raise Refusal(f"{arm} on seed {seed} has not been run: control and candidate need the same seeds")
            if run["run_status"] in RERUN:
                raise Refusal(f"{arm} on seed {seed} ended as {run['run_status']}: re-run it, the pair is never dropped")
        pairs.append((by_cell[CONTROL, seed], by_cell[name, seed]))
    if len(pairs) < 2:
        raise Refusal("fewer than 2 pairs: one seed shows one draw of the noise; add seeds")
    profiles = {run.get("profile_hash") for pair in pairs for run in pair}
    if len(profiles) > 1:
        raise Refusal(f"{name} and control differ in device, dataset or tokenizer: different profiles are not compared")
    return pairs


def differences(pairs) -> list[float]:
    """control - candidate, positive = candidate better; only of pairs in which both ended ok."""
    d = []
    for control, candidate in pairs:
        for run in (control, candidate):
            if run[METRIC] is None or not math.isfinite(run[METRIC]):
                raise Refusal(f"{run['arm']} on seed {run['seed']} is {run['run_status']} with {METRIC} {run[METRIC]}: "
                              "not a finite number")
        d.append(control[METRIC] - candidate[METRIC])
    return d


# -----------------------------------------------------------------------------
# Decision

def judge(declaration: dict, runs: list[dict]) -> list[dict]:
    """One verdict per declared candidate, in the order declared."""
    names = [arm["name"] for arm in declaration["arms"] if arm["name"] != CONTROL]
    first = [_evidence(declaration, runs, name) for name in names]
    p_values = [evidence["gate"].p if evidence.get("gate") else 1.0 for evidence in first]
    steps = holm(p_values, declaration["alpha"])
    return [_verdict(declaration, name, evidence, *step) for name, evidence, step in zip(names, first, steps)]


def _evidence(declaration, runs, name) -> dict:
    """Exactly one of refused, diverged, or gate (with the differences d)."""
    try:
        refuse_undeclared(declaration, runs)
        pairs = paired_runs(declaration, runs, name)
        diverged = {run["arm"] for pair in pairs for run in pair if run["run_status"] == "diverged"}
        if diverged:
            return {"diverged": diverged}
        d = differences(pairs)
        return {"d": d, "gate": compare(d, margin=declaration["margin"], alpha=declaration["alpha"])}
    except ValueError as e:
        return {"refused": str(e)}


def _verdict(declaration, name, evidence, passes, level) -> dict:
    entry = {"candidate": name, "verdict": None, "text": None, "reason": None, "metric": METRIC, "n": len(declaration["seeds"])}
    if "refused" in evidence:
        return entry | {"text": "no verdict", "reason": evidence["refused"]}
    if "diverged" in evidence:
        verdict, reason = _decide_diverged(evidence["diverged"])
        return entry | {"verdict": verdict, "text": verdict, "reason": reason}
    d, plain = evidence["d"], evidence["gate"]
    gate = compare(d, margin=declaration["margin"], alpha=level)  # the interval at this candidate's Holm step
    s = float(np.std(d, ddof=1)) / math.sqrt(2)  # as of one run; the pairs' correlation is already in it
    verdict, reason = decide(gate, plain.hi, passes, declaration["min_gain"], s)
    text = verdict if gate.source != "none" else f"{verdict} ({gate.n} seeds, no noise bank)"
    numbers = {"mean_gain": gate.mean, "se": gate.se, "df": gate.df, "p": gate.p, "level": level, "lo": gate.lo, "hi": gate.hi,
               "hi_at_alpha": plain.hi, "noise_source": gate.source, "smallest_gain": smallest_gain(gate.n, s, alpha=level)}
    return entry | {"verdict": verdict, "text": text, "reason": reason} | {k: _finite(v) for k, v in numbers.items()}


def _decide_diverged(diverged) -> tuple[str, str]:
    if CONTROL in diverged:
        return "inconclusive", "the control itself failed: fix the baseline first"
    return "reject", "a candidate run diverged where the control did not"


def decide(gate, hi5: float, passes: bool, min_gain: float | None, s: float) -> tuple[str, str]:
    """(verdict, reason): the first line that applies. hi5: upper bound at plain alpha; s: sd of one run."""
    if gate.source == "identical":
        return "reject", "identical to the control on every seed: nothing to promote"
    if gate.source == "none":
        return "inconclusive", f"{gate.n} seeds without banked noise cannot tell a gain from luck: {WHAT_SETTLES}"
    if passes:
        return "promote", f"better by {gate.mean:.4g} bpb (at least {gate.lo:.4g})"
    if hi5 < 0:
        return "reject", f"worse by {-gate.mean:.4g} bpb (at least {-hi5:.4g})"
    if min_gain is not None and hi5 < min_gain:
        return "reject", f"a gain of {min_gain:.4g} bpb is excluded: at most {hi5:.4g}"
    wanted = min_gain or abs(gate.mean)
    n = seeds_needed(wanted, s, alpha=gate.level)
    seeds = f"about {max(n, gate.n + 1)}" if n else "more than 64"
    return "inconclusive", f"the gain lies in [{gate.lo:.4g}, {gate.hi:.4g}] bpb; {seeds} seeds would settle a gain of {wanted:.4g}"


def _finite(value):
    """JSON has no infinity: a bound that is not there is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
