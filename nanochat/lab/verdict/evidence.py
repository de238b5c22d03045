"""
From the runs of a label to the numbers that its gates test, pair by pair.

Example: control and candidate both ran on seeds 1337 and 2026, which makes two pairs. Each gate gets two differences.

A pair is control and candidate on one seed. No pair is ever dropped. A cell that crashed has to be run again. A cell
that diverged is a result of its own. Some runs can show nothing; the candidate then gets a refusal that says why.
A run that was not declared, or that began before its declaration, makes the whole label unusable.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from nanochat.lab.arms import CONTROL
from nanochat.lab.metrics import METRICS
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.facts import Declaration, DeclaredArm, TimeBySteps
from nanochat.lab.verdict.scores import refuse_scores, score_note
from nanochat.lab.verdict.stats import MIN_PAIRS_WITHOUT_BANK
from nanochat.lab.verdict.time_to_target import paired_differences, time_from_steps

RERUN = ("crash", "oom", "timeout", "interrupted")  # how a run ended, where its end says nothing about the arm
TIMED = ("tok_per_sec", "time_to_target", "wall_time")
MUST_AGREE = ("device", "dataset_id", "tokenizer_id")  # of all runs that are compared
Pair = tuple[RunSummary, RunSummary]  # control, candidate


class Refusal(ValueError):
    """The runs can never give a verdict, whatever their numbers are."""


class Unlent(NamedTuple):
    """A bank that is not lent to a label."""
    n: int  # pairs, from which on
    why: str


@dataclass
class Gate:
    metric: str
    role: str  # primary | floor
    margin: float
    d: list[float] = field(default_factory=list)  # control - candidate, positive = better; one per pair
    censored: bool = False  # some d is only a lower bound
    missed: str | None = None  # the reason, if it cannot pass
    note: str | None = None
    unlent: Unlent | None = None  # its bank is refused; lending.py finds out

    @property
    def n(self) -> int:
        return len(self.d)


@dataclass
class Evidence:
    n: int = 0  # leading pairs that are complete
    gates: list[Gate] = field(default_factory=list)  # primary first
    diverged: set[str] = field(default_factory=set)
    refusal: str | None = None
    # log(control / candidate) of (steps to target, step time), one per pair
    by_steps: list[tuple | None] = field(default_factory=list)
    spikes: str | None = None  # how the arms differ in runs with spikes of the gradient norm

    @property
    def stopped(self) -> str | None:
        """Why no further seed would change anything."""
        if self.refusal or self.diverged:
            return self.refusal or "diverged"
        if self.n >= 2 and not any(self.gates[0].d) and not self.gates[0].missed:
            return "identical"
        return None


def gather(declaration: Declaration, runs: list[RunSummary]) -> dict[str, Evidence]:
    """{candidate: Evidence}. Raises Refusal where the fault is in the whole set of runs, and not in one candidate's."""
    refuse_undeclared(declaration, runs)
    return {arm.name: _evidence(declaration, runs, arm) for arm in declaration.candidates}


def refuse_undeclared(declaration: Declaration, runs: list[RunSummary]):
    """Raise Refusal for a set of runs that does not fit its declaration.

    Reasons: two runs of one cell, an arm or a seed that was not declared, a declaration that was changed after it was
    written, a run that began before its declaration.
    """
    cells = Counter((run.arm, run.seed) for run in runs)
    twice = [cell for cell, n in cells.items() if n > 1]
    if twice:
        raise Refusal(f"duplicate rows for {twice[0]}: one cell is one run")
    declared = {(arm.name, seed) for arm in declaration.arms for seed in declaration.seeds}
    foreign = cells.keys() - declared
    if foreign:
        raise Refusal(f"{sorted(foreign)[0]} was not declared before the first run; use a new label")
    if len(declaration.arms) - 1 != declaration.K or len(declaration.seeds) != declaration.looks[-1]:
        raise Refusal("the declaration contradicts itself: its arms, seeds and looks were changed after it was written")
    for run in runs:
        if run.declared_at and run.started_at and run.started_at < run.declared_at:
            raise Refusal(f"{run.arm} on seed {run.seed} began at {run.started_at}, before its declaration of "
                          f"{run.declared_at}: a clock ran backwards, or it was not declared")


def _evidence(declaration: Declaration, runs: list[RunSummary], arm: DeclaredArm) -> Evidence:
    try:
        pairs = paired_runs(declaration, runs, arm)
        refuse_scores(pairs)
        diverged = {run.arm for pair in pairs for run in pair if run.run_status == "diverged"}
        gates = [] if diverged else make_gates(declaration, pairs)
        by_steps = [] if diverged else [_step_ratios(*pair) for pair in pairs]
        return Evidence(len(pairs), gates, diverged, by_steps=by_steps, spikes=spikes(pairs))
    except ValueError as e:
        return Evidence(refusal=str(e))


def spikes(pairs: list[Pair]) -> str | None:
    """A sentence where the arms differ in the number of runs with spikes; None where they do not, or did not count.

    A spike is a gradient norm above ten times its running median. Runs that go through one spread more, so an arm with
    spikes is judged on another noise than the bank's.
    """
    if any(run.grad_spikes is None for pair in pairs for run in pair):
        return None
    counts = [sum(run.grad_spikes > 0 for run in side) for side in zip(*pairs)]
    if counts[0] == counts[1]:
        return None
    said = [f"{side[0].arm} in {count} of {len(pairs)} runs" for side, count in zip(zip(*pairs), counts)]
    return f"spikes of the gradient norm: {', '.join(said)}"


def paired_runs(declaration: Declaration, runs: list[RunSummary], arm: DeclaredArm) -> list[Pair]:
    """(control, candidate) of the leading seeds that both have run. Raises Refusal where a pair cannot be compared.

    A fixed protocol has one look, so every declared seed has to have run. With several looks, the seeds after the
    latest look may be missing: they have not been run yet.
    """
    if arm.profile_changes:
        raise Refusal(f"{arm.name} is another workload than the control ({'; '.join(arm.profile_changes)}): "
                      "different profiles are not compared")
    by_cell = {(run.arm, run.seed): run for run in runs}
    pairs, ended = [], None
    for seed in declaration.seeds:
        cells = by_cell.get((CONTROL, seed)), by_cell.get((arm.name, seed))
        for name, run in zip((CONTROL, arm.name), cells):
            if run is not None and run.run_status in RERUN:
                raise Refusal(f"{name} on seed {seed} ended as {run.run_status}: re-run it, the pair is never dropped")
            if run is None and len(declaration.looks) == 1:
                raise Refusal(f"{name} on seed {seed} has not been run: control and candidate need the same seeds")
        if cells[1] is not None and (ended is not None or cells[0] is None):
            raise Refusal(f"{arm.name} on seed {seed} has run, but not its pair or an earlier seed: "
                          "seeds are taken in the declared order")
        if None in cells:
            ended = seed
        else:
            pairs.append(cells)
    if len(pairs) < 2:
        raise Refusal("fewer than 2 pairs: one seed shows one draw of the noise; add seeds")
    _refuse_other_workload(declaration, arm, pairs)
    return pairs


def _refuse_other_workload(declaration: Declaration, arm: DeclaredArm, pairs: list[Pair]):
    """Raise Refusal where the runs differ in a value that has to be equal in all runs that are compared."""
    for name in _must_agree(declaration):
        found = {getattr(run, name) for pair in pairs for run in pair}
        if len(found) > 1:
            raise Refusal(f"the runs of {arm.name} and its control differ in {name}: "
                          f"{', '.join(sorted(map(str, found)))}; different profiles are not compared: "
                          "run both arms on one machine, on the same data")


def _must_agree(declaration: Declaration) -> tuple[str, ...]:
    """Device and data always agree.

    Usually so does the whole profile. Where the length of a run is under test, profiles differ by design. So they do
    where the shape is under test, at a matched budget; then the limit that ended the run agrees.
    """
    if declaration.horizons_differ:
        return MUST_AGREE
    return (*MUST_AGREE, "bound" if declaration.matched_budget else "profile_hash")


# -----------------------------------------------------------------------------
# Differences

def make_gates(declaration: Declaration, pairs: list[Pair]) -> list[Gate]:
    """The primary gate, or its declared fallback where the candidate missed the target, then the floors."""
    primary = make_gate(pairs, declaration.primary, "primary", declaration.margin)
    if primary.missed and declaration.fallback:
        note = f"fallback: {primary.missed}"
        primary = make_gate(pairs, declaration.fallback, "primary", min(-math.log(1.03), declaration.margin or 0.0))
        primary.note = note
    gates = [primary, *(make_gate(pairs, floor.metric, "floor", floor.margin) for floor in declaration.floors)]
    for gate in gates:
        gate.note = "; ".join(filter(None, (gate.note, score_note(gate.metric, pairs)))) or None
    return gates


def make_gate(pairs: list[Pair], metric: str, role: str, margin: float) -> Gate:
    gate = Gate(metric, role, margin)
    if metric in TIMED:
        gate.note = _untimely(pairs)
    if metric == "time_to_target":
        times = [[run.time_to_target_sec for run in side] for side in zip(*pairs)]
        budget = min(run.training_sec for pair in pairs for run in pair)
        gate.d, gate.censored, gate.missed = paired_differences(*times, budget)
        if gate.missed:
            seed = next(run.seed for _, run in pairs if run.time_to_target_sec is None)
            gate.missed = f"candidate missed the target on seed {seed}"
        return gate
    if role == "floor" and any(measured(run, metric) is None for pair in pairs for run in pair):
        gate.missed = "not measured in every run"
        return gate
    for control, candidate in pairs:
        difference = _value(control, metric) - _value(candidate, metric)
        gate.d.append(METRICS[metric].sign * difference)
    return gate


def measured(run: RunSummary, metric: str) -> float | None:
    """The value of a metric as the run has it, before any logarithm is taken."""
    return getattr(run, METRICS[metric].key)


def _value(run: RunSummary, metric: str) -> float:
    x = measured(run, metric)
    if x is None or not math.isfinite(x) or (METRICS[metric].log and x <= 0):
        raise Refusal(f"{run.arm} on seed {run.seed} is {run.run_status} with {METRICS[metric].key} {x}: "
                      "not a finite number")
    return math.log(x) if METRICS[metric].log else x


def _step_ratios(control: RunSummary, candidate: RunSummary) -> tuple[float, float] | None:
    ratios = [(control.steps_to_target, candidate.steps_to_target), (control.dt_median_ms, candidate.dt_median_ms)]
    return tuple(math.log(a / b) for a, b in ratios) if all(a and b for a, b in ratios) else None


def time_by_steps(e: Evidence, n: int) -> TimeBySteps | None:
    """Time to target as steps x median step time, over the first n pairs.

    Example: a candidate needs 10 % fewer steps, and each step takes 5 % longer. This split shows both parts. It is
    shown beside the measured time, and only the measured time decides. None where n is below MIN_PAIRS_WITHOUT_BANK:
    fewer pairs give the steps no spread of their own.
    """
    found = e.by_steps[:n]
    if len(found) < MIN_PAIRS_WITHOUT_BANK or None in found:
        return None
    steps, step_time = map(list, zip(*found))
    try:
        time = time_from_steps(steps, step_time)
    except ValueError:  # equal ratios in every pair: copied, not measured
        return None
    return TimeBySteps(time.mean, time.lo, time.hi, time.level, len(found), sum(steps) / len(found),
                       sum(step_time) / len(found))


def _untimely(pairs: list[Pair]) -> str | None:
    """A note that names overloaded runs, or None. Raises Refusal for a pair whose cells ran under different protocols.

    Speeds are only compared between cells that took turns on one machine.
    """
    apart = [control.seed for control, candidate in pairs if control.declared_at != candidate.declared_at]
    if apart:
        raise Refusal(f"control and candidate of seed {apart[0]} ran under different protocols: their speeds do not "
                      "compare; FRESH=1 runs both")
    loaded = [f"{run.arm} s{run.seed}" for pair in pairs for run in pair if run.overloaded]
    return f"overloaded: {', '.join(loaded)}" if loaded else None
