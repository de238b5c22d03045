"""
Verdicts on made-up runs: which line of verdicts.md section 5 applies, and what is refused instead.

python -m pytest tests/test_gates.py -v
"""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest

from nanochat.lab.report.text import checks
from nanochat.lab.verdict.declaration import declaration_changes
from nanochat.lab.verdict.facts import Declaration, DeclaredArm, MetricNoise, Noise, Verdict
from nanochat.lab.verdict.gates import judge
from nanochat.lab.verdict.stats import seeds_needed
from tests.gates_case import BANK, BETTER, CONTROL, declared, edit, make_runs


def verdict_of(declaration, **values):
    entry, = judge(declaration, make_runs(**values))
    text = json.dumps(entry.to_json(), allow_nan=False)  # what is written is strict JSON
    assert Verdict.from_json(json.loads(text)) == entry, "and what is read is what was written"
    return entry


def test_two_seeds_without_a_bank_are_inconclusive_and_say_what_settles_it():  # case 3
    entry = verdict_of(declared(2), control=CONTROL[:2], candidate=BETTER[:2])
    assert (entry.verdict, entry.text) == ("inconclusive", "inconclusive (2 seeds, no noise bank)")
    assert entry.reason == "no noise banked: run `make noise SEEDS=8`"
    assert (entry.p, entry.lo, entry.hi, entry.noise_source) == (1, None, None, "none")


def test_foreign_control_is_not_sent_to_bank_noise():
    declaration = declared(2)
    control, candidate = declaration.arms
    declaration = replace(declaration, arms=[replace(control, flags="tree=../nanochat"), candidate])
    reason = verdict_of(declaration, control=CONTROL[:2], candidate=BETTER[:2]).reason
    assert "make noise" not in reason and "5 seeds decide by their own spread" in reason


def test_five_better_seeds_are_promoted_with_the_bound_in_the_reason():
    entry = verdict_of(declared(5), control=CONTROL, candidate=BETTER)
    assert (entry.verdict, entry.n, entry.df) == ("promote", 5, 4)
    assert entry.reason == "better by 0.00144 bpb (at least 0.0008236)"
    assert entry.p == pytest.approx(0.00379774, rel=1e-4)


def test_worse_candidate_is_rejected_with_the_bound():
    entry = verdict_of(declared(5), control=BETTER, candidate=CONTROL)
    assert (entry.verdict, entry.reason) == ("reject", "worse by 0.00144 bpb (at least 0.0008236)")


def test_declared_min_gain_rejects_what_cannot_reach_it_and_nothing_else():
    near = [c + e for c, e in zip(CONTROL, (0.0001, -0.0001, 0.0002, -0.0002, 0.00005))]
    excluded = verdict_of(declared(5, min_gain=0.002), control=CONTROL, candidate=near).reason
    assert excluded.startswith("a gain of 0.002 bpb is excluded")
    entry = verdict_of(declared(5), control=CONTROL, candidate=near)
    assert entry.verdict == "inconclusive" and "seeds would settle a gain of" in entry.reason
    assert entry.lo < 0 < entry.hi and entry.smallest_gain > 0


def test_declaration_of_an_older_version_is_still_the_same():
    new = declared(2)
    def without(key):
        stored = new.to_json()
        del stored[key]
        return Declaration.from_json(stored)
    assert not declaration_changes(without("horizons_differ"), new)
    assert "horizons_differ" not in without("horizons_differ").to_json(), "it is kept as it is"
    assert declaration_changes(without("primary"), new) == ["primary: None -> val_bpb"]


def test_sign_flips_and_seeds_needed_stand_beside_the_t():
    d = [a - b for a, b in zip(CONTROL, BETTER)]
    entry = verdict_of(declared(5, min_gain=0.0005), control=CONTROL, candidate=BETTER)
    assert min(d) > 0 and entry.sign_flip_p == 1 / 32  # every seed better: one sign pattern of 32
    assert entry.seeds_needed == seeds_needed(0.0005, statistics.stdev(d) / math.sqrt(2), 0, entry.level)
    assert verdict_of(declared(2), control=CONTROL[:2], candidate=BETTER[:2]).sign_flip_p is None


def test_time_by_steps_tells_a_better_step_from_a_faster_one():
    def with_steps(run):  # the candidate needs 10 % fewer steps, give or take, and its steps take 20 % longer
        steps, dt = (45, 120.0) if run.arm == "candidate" else (50, 100.0)
        return replace(run, steps_to_target=steps + 0.1 * run.seed ** 2, dt_median_ms=dt)
    runs = [with_steps(run) for run in make_runs(control=CONTROL, candidate=BETTER)]
    found = judge(declared(5), runs)[0].by_steps
    assert found.step_time == pytest.approx(-math.log(1.2))
    assert found.steps == pytest.approx(math.log(50 / 45), abs=0.005)
    assert found.mean == pytest.approx(found.steps + found.step_time) and found.lo < found.mean < found.hi < 0
    assert "(9.88 % fewer steps, each 20 % longer)" in checks(judge(declared(5), runs)[0])[1]
    edit(runs, 0, steps_to_target=None)
    assert judge(declared(5), runs)[0].by_steps is None


@pytest.mark.parametrize("n", [2, 5])
def test_equal_arms_are_called_identical(n):  # case 10
    entry = verdict_of(declared(n), control=CONTROL[:n], candidate=CONTROL[:n])
    assert (entry.verdict, entry.reason) == ("reject", "identical to the control on every seed: nothing to promote")
    assert (entry.p, entry.noise_source) == (0.5, "identical")


def test_holm_corrects_over_declared_candidates():
    alone = verdict_of(declared(5), control=CONTROL, candidate=BETTER)
    names = ["candidate", *(f"x{i}" for i in range(19))]
    values = {"control": CONTROL, "candidate": BETTER, **{name: CONTROL for name in names[1:]}}
    crowded = judge(declared(5, names), make_runs(**values))
    assert alone.verdict == "promote" and crowded[0].verdict == "inconclusive"  # 0.0038 > 0.05 / 20
    assert crowded[0].level == 0.05 / 20 and crowded[0].lo < 0


def test_divergence_rejects_a_candidate_and_not_the_innocent():
    values = dict(control=CONTROL, candidate=[*BETTER[:4], "diverged"], other=BETTER)
    first, second = judge(declared(5, ["candidate", "other"]), make_runs(**values))
    assert (first.verdict, first.reason) == ("reject", "a candidate run diverged where the control did not")
    assert second.verdict == "promote" and second.level == 0.025  # the diverged one still counts in K


@pytest.mark.parametrize("candidate", [BETTER, [*BETTER[:4], "diverged"]])
def test_diverged_control_is_at_fault_whatever_the_candidate_does(candidate):
    entry = verdict_of(declared(5), control=[*CONTROL[:4], "diverged"], candidate=candidate)
    assert (entry.verdict, entry.reason) == ("inconclusive", "the control itself failed: fix the baseline first")


@pytest.mark.parametrize("status", ["crash", "oom", "timeout", "interrupted"])
@pytest.mark.parametrize("arm", ["control", "candidate"])
def test_failed_cell_is_rerun_never_dropped(status, arm):
    values = dict(control=list(CONTROL), candidate=list(BETTER))
    values[arm][2] = status
    entry = verdict_of(declared(5), **values)
    assert entry.verdict is None and f"{arm} on seed 2 ended as {status}: re-run it" in entry.reason


def broken(kind):
    declaration, runs = declared(5), make_runs(control=CONTROL, candidate=BETTER)
    if kind == "one pair":
        declaration, runs = declared(1), make_runs(control=CONTROL[:1], candidate=BETTER[:1])
    elif kind == "nan":
        edit(runs, 7, val_bpb=math.nan)
    elif kind == "no value":
        edit(runs, 7, val_bpb=None)
    elif kind == "unequal seeds":
        del runs[7]
    elif kind == "duplicate":
        runs.append(replace(runs[3]))
    elif kind == "undeclared seed":
        runs.append(replace(runs[3], seed=99))
    elif kind == "undeclared arm":
        runs.append(replace(runs[3], arm="stranger"))
    elif kind == "other device":
        edit(runs, 6, profile_hash="q")
    elif kind == "other workload":
        declaration = declared(5, changes={"candidate": ["--depth 4 -> 6"]})
    elif kind == "began before":
        edit(runs, 7, started_at="2025-12-31T23:59:59+00:00")
    elif kind == "more candidates":
        declaration.arms.append(DeclaredArm("late", ""))
    elif kind == "undeclared look":
        declaration.seeds.append(5)
    elif kind == "infinite":
        edit(runs, 2, val_bpb=math.inf)
    elif kind == "bank without spread":
        declaration = declared(5, noise=Noise("bank", metrics={"val_bpb": MetricNoise(0.0, 9)}))
    elif kind == "copied":
        runs = make_runs(control=CONTROL, candidate=[c - 0.002 for c in CONTROL])
    return declaration, runs


@pytest.mark.parametrize("kind, message", [
    ("one pair", "fewer than 2 pairs"), ("nan", "not a finite number"), ("no value", "not a finite number"),
    ("unequal seeds", "need the same seeds"), ("duplicate", "duplicate rows"), ("undeclared seed", "not declared"),
    ("undeclared arm", "not declared"), ("other device", "different profiles"), ("other workload", "--depth 4 -> 6"),
    ("copied", "rounded or copied"), ("began before", "a clock ran backwards"),
    ("more candidates", "contradicts itself"), ("undeclared look", "contradicts itself"),
    ("infinite", "not a finite number"), ("bank without spread", "duplicates of each other")])
def test_broken_runs_get_the_named_refusal_and_never_a_verdict(kind, message):
    entry = judge(*broken(kind))[0]
    assert entry.verdict is None and entry.text == "no verdict" and message in entry.reason


def test_declaration_holds_what_decides_and_says_what_changed():
    old, new = declared(2), declared(5, min_gain=0.002)
    assert (old.noise_source, new.noise_source, new.K, new.looks, new.alpha) == ("none", "own", 1, [5], 0.05)
    assert declared(2, noise=BANK).noise_source == "bank" and declared(2, noise=BANK).min_gain == 0.0013
    assert declared(12, noise=BANK, until_decided=True).looks == list(range(3, 13))
    assert declared(12, until_decided=True).looks == list(range(5, 13))
    assert declared(6, noise=BANK, source="own").noise_source == "own"
    assert declaration_changes(old, replace(old, declared_at="later")) == []
    for declaration in (old, new, declared(12, noise=BANK, until_decided=True, floors=True)):
        assert Declaration.from_json(json.loads(json.dumps(declaration.to_json()))) == declaration
    changed = declaration_changes(old, new)
    assert "seeds: [0, 1] -> [0, 1, 2, 3, 4]" in changed and "min_gain: None -> 0.002" in changed


def test_four_null_candidates_promote_something_in_at_most_five_percent_of_protocols():
    rng, names = np.random.default_rng(1), ["a", "b", "c", "d"]
    declaration, promoted, trials = declared(5, names), 0, 600
    for _ in range(trials):
        x = rng.normal(2.5, 0.001, size=(5, 5)).tolist()
        found = judge(declaration, make_runs(control=x[0], **dict(zip(names, x[1:]))))
        promoted += any(verdict.verdict == "promote" for verdict in found)
    assert promoted / trials < 0.045 + 3 * math.sqrt(0.045 * 0.955 / trials)  # 4.5 % in verdicts.md section 8.1
