"""
Verdicts on made-up runs: which line of verdicts.md section 5 applies, and what is refused instead.

python -m pytest tests/test_gates.py -v
"""

import json
import math

import numpy as np
import pytest

from nanochat.lab import evidence
from nanochat.lab.arms import make_arms
from nanochat.lab.gates import declaration_changes, declare, is_decided, judge

CONTROL = [1.1020, 1.1035, 1.1011, 1.1027, 1.1040]
BETTER = [1.1001, 1.1022, 1.1003, 1.1004, 1.1031]  # case 4 of verdicts.md: p 0.0038


BANK = {"metrics": {"val_bpb": {"s_b": 0.0013, "nu": 9}, "time_to_target": {"s_b": 0.01, "nu": 9}, "wall_time": {"s_b": 0.01, "nu": 9},
                    "final_train_loss": {"s_b": 0.002, "nu": 9}, "tok_per_sec": {"s_b": 0.004, "nu": 9}}}
WHEN = "2026-01-01T00:00:00+00:00"


def declared(n, names=("candidate",), changes=None, floors=False, **options):
    """floors False: the primary metric alone, for tests of what decides it."""
    arms = make_arms([f"{name}: --matrix-lr=0.03" for name in names], [])
    declaration = declare("label", "smoke-cpu", arms, list(range(n)), changes or {}, WHEN, **options)
    return declaration if floors else declaration | {"floors": []}


def make_runs(metric="val_bpb", **values):
    """control=[...], candidate=[...] -> runs[]; a string instead of a number is a status without a value."""
    field = evidence.FIELD[metric]
    return [{"arm": arm, "seed": seed, "run_status": x if isinstance(x, str) else "ok", "profile_hash": "p", "val_bpb": None,
             "declared_at": WHEN, "started_at": WHEN, "training_sec": 600.0, field: None if isinstance(x, str) else x}
            for arm, row in values.items() for seed, x in enumerate(row)]


def verdict_of(declaration, **values):
    entry, = judge(declaration, make_runs(**values))
    json.dumps(entry, allow_nan=False)  # what is written is strict JSON
    return entry


def test_two_seeds_without_a_bank_are_inconclusive_and_say_what_settles_it():  # case 3
    entry = verdict_of(declared(2), control=CONTROL[:2], candidate=BETTER[:2])
    assert (entry["verdict"], entry["text"]) == ("inconclusive", "inconclusive (2 seeds, no noise bank)")
    assert entry["reason"] == "no noise banked: run `make noise SEEDS=8`"
    assert (entry["p"], entry["lo"], entry["hi"], entry["noise_source"]) == (1, None, None, "none")


def test_five_better_seeds_are_promoted_with_the_bound_in_the_reason():
    entry = verdict_of(declared(5), control=CONTROL, candidate=BETTER)
    assert (entry["verdict"], entry["n"], entry["df"]) == ("promote", 5, 4)
    assert entry["reason"] == "better by 0.00144 bpb (at least 0.0008236)"
    assert entry["p"] == pytest.approx(0.00379774, rel=1e-4)


def test_worse_candidate_is_rejected_with_the_bound():
    entry = verdict_of(declared(5), control=BETTER, candidate=CONTROL)
    assert (entry["verdict"], entry["reason"]) == ("reject", "worse by 0.00144 bpb (at least 0.0008236)")


def test_declared_min_gain_rejects_what_cannot_reach_it_and_nothing_else():
    near = [c + e for c, e in zip(CONTROL, (0.0001, -0.0001, 0.0002, -0.0002, 0.00005))]
    assert verdict_of(declared(5, min_gain=0.002), control=CONTROL, candidate=near)["reason"].startswith("a gain of 0.002 bpb is excluded")
    entry = verdict_of(declared(5), control=CONTROL, candidate=near)
    assert entry["verdict"] == "inconclusive" and "seeds would settle a gain of" in entry["reason"]
    assert entry["lo"] < 0 < entry["hi"] and entry["smallest_gain"] > 0


@pytest.mark.parametrize("n", [2, 5])
def test_equal_arms_are_called_identical(n):  # case 10
    entry = verdict_of(declared(n), control=CONTROL[:n], candidate=CONTROL[:n])
    assert (entry["verdict"], entry["reason"]) == ("reject", "identical to the control on every seed: nothing to promote")
    assert (entry["p"], entry["noise_source"]) == (0.5, "identical")


def test_holm_corrects_over_declared_candidates():
    alone = verdict_of(declared(5), control=CONTROL, candidate=BETTER)
    names = ["candidate", *(f"x{i}" for i in range(19))]
    values = {"control": CONTROL, "candidate": BETTER, **{name: CONTROL for name in names[1:]}}
    crowded = judge(declared(5, names), make_runs(**values))
    assert alone["verdict"] == "promote" and crowded[0]["verdict"] == "inconclusive"  # 0.0038 > 0.05 / 20
    assert crowded[0]["level"] == 0.05 / 20 and crowded[0]["lo"] < 0


def test_divergence_rejects_a_candidate_and_not_the_innocent():
    values = dict(control=CONTROL, candidate=[*BETTER[:4], "diverged"], other=BETTER)
    first, second = judge(declared(5, ["candidate", "other"]), make_runs(**values))
    assert (first["verdict"], first["reason"]) == ("reject", "a candidate run diverged where the control did not")
    assert second["verdict"] == "promote" and second["level"] == 0.025  # the diverged one still counts in K


@pytest.mark.parametrize("candidate", [BETTER, [*BETTER[:4], "diverged"]])
def test_diverged_control_is_at_fault_whatever_the_candidate_does(candidate):
    entry = verdict_of(declared(5), control=[*CONTROL[:4], "diverged"], candidate=candidate)
    assert (entry["verdict"], entry["reason"]) == ("inconclusive", "the control itself failed: fix the baseline first")


@pytest.mark.parametrize("status", ["crash", "oom", "timeout", "interrupted"])
@pytest.mark.parametrize("arm", ["control", "candidate"])
def test_failed_cell_is_rerun_never_dropped(status, arm):
    values = dict(control=list(CONTROL), candidate=list(BETTER))
    values[arm][2] = status
    entry = verdict_of(declared(5), **values)
    assert entry["verdict"] is None and f"{arm} on seed 2 ended as {status}: re-run it" in entry["reason"]


def broken(kind):
    declaration, runs = declared(5), make_runs(control=CONTROL, candidate=BETTER)
    if kind == "one pair":
        declaration, runs = declared(1), make_runs(control=CONTROL[:1], candidate=BETTER[:1])
    elif kind == "nan":
        runs[7]["val_bpb"] = math.nan
    elif kind == "no value":
        runs[7]["val_bpb"] = None
    elif kind == "unequal seeds":
        del runs[7]
    elif kind == "duplicate":
        runs.append(dict(runs[3]))
    elif kind == "undeclared seed":
        runs.append({**runs[3], "seed": 99})
    elif kind == "undeclared arm":
        runs.append({**runs[3], "arm": "stranger"})
    elif kind == "other device":
        runs[6]["profile_hash"] = "q"
    elif kind == "other workload":
        declaration = declared(5, changes={"candidate": ["--depth 4 -> 6"]})
    elif kind == "began before":
        runs[7]["started_at"] = "2025-12-31T23:59:59+00:00"
    elif kind == "more candidates":
        declaration["arms"].append({"name": "late", "flags": "", "profile_changes": []})
    elif kind == "undeclared look":
        declaration["seeds"] = declaration["seeds"] + [5]
    elif kind == "infinite":
        runs[2]["val_bpb"] = math.inf
    elif kind == "bank without spread":
        declaration = declared(5, noise={"metrics": {"val_bpb": {"s_b": 0.0, "nu": 9}}})
    elif kind == "copied":
        runs = make_runs(control=CONTROL, candidate=[c - 0.002 for c in CONTROL])
    return declaration, runs


@pytest.mark.parametrize("kind, message", [
    ("one pair", "fewer than 2 pairs"), ("nan", "not a finite number"), ("no value", "not a finite number"),
    ("unequal seeds", "need the same seeds"), ("duplicate", "duplicate rows"), ("undeclared seed", "not declared"),
    ("undeclared arm", "not declared"), ("other device", "different profiles"), ("other workload", "--depth 4 -> 6"),
    ("copied", "rounded or copied"), ("began before", "a clock ran backwards"), ("more candidates", "contradicts itself"),
    ("undeclared look", "contradicts itself"), ("infinite", "not a finite number"), ("bank without spread", "duplicates of each other")])
def test_broken_runs_get_the_named_refusal_and_never_a_verdict(kind, message):
    entry, = judge(*broken(kind))
    assert entry["verdict"] is None and entry["text"] == "no verdict" and message in entry["reason"]


def test_declaration_holds_what_decides_and_says_what_changed():
    old, new = declared(2), declared(5, min_gain=0.002)
    assert (old["noise_source"], new["noise_source"], new["K"], new["looks"], new["alpha"]) == ("none", "own", 1, [5], 0.05)
    assert declared(2, noise=BANK)["noise_source"] == "bank" and declared(2, noise=BANK)["min_gain"] == 0.0013
    assert declared(12, noise=BANK, until_decided=True)["looks"] == list(range(2, 13))
    assert declared(12, until_decided=True)["looks"] == list(range(5, 13))
    assert declared(6, noise=BANK, source="own")["noise_source"] == "own"
    assert declaration_changes(old, {**old, "declared_at": "later"}) == []
    changed = declaration_changes(old, new)
    assert "seeds: [0, 1] -> [0, 1, 2, 3, 4]" in changed and "min_gain: None -> 0.002" in changed


def test_four_null_candidates_promote_something_in_at_most_five_percent_of_protocols():
    rng, names = np.random.default_rng(1), ["a", "b", "c", "d"]
    declaration, promoted, trials = declared(5, names), 0, 600
    for _ in range(trials):
        x = rng.normal(2.5, 0.001, size=(5, 5)).tolist()
        promoted += any(e["verdict"] == "promote" for e in judge(declaration, make_runs(control=x[0], **dict(zip(names, x[1:])))))
    assert promoted / trials < 0.045 + 3 * math.sqrt(0.045 * 0.955 / trials)  # 4.5 % in verdicts.md section 8.1


# -----------------------------------------------------------------------------
# With a bank, floors and looks

def full_runs(control, candidate, **others):
    """Runs with every metric: val_bpb as given, others={field: (control value, candidate value)} for all seeds."""
    runs = make_runs(control=control, candidate=candidate)
    rng = np.random.default_rng(0)
    for run in runs:
        for name in ("final_train_loss", "tok_per_sec_median", "training_sec"):
            value = others.get(name, (3.0, 3.0))[run["arm"] != "control"]
            run[name] = value * float(np.exp(rng.normal(0, 1e-3)))
    return runs


def test_two_seeds_with_a_bank_decide():  # case 1
    entry, = judge(declared(2, noise=BANK), make_runs(control=[1.1032, 1.1018], candidate=[1.0989, 1.0991]))
    assert (entry["verdict"], entry["df"], entry["noise_source"]) == ("promote", 10, "bank")
    assert entry["p"] == pytest.approx(0.00972441, rel=1e-4) and entry["lo"] == pytest.approx(0.00121817, rel=1e-4)


def floor_case(d_bpb):
    """Case 12: seconds decide, val_bpb is a floor; control 1 + d."""
    declaration = declared(3, noise=BANK, primary="time_to_target", target={"metric": "val_bpb", "threshold": 1.1, "source": "by hand"})
    declaration["floors"] = [{"metric": "val_bpb", "margin": 0.005}]
    runs = make_runs("time_to_target", control=[100.0, 101.0, 99.5], candidate=[95.0, 95.5, 94.8])
    for run in runs:
        run["val_bpb"] = 1.1 + (d_bpb[run["seed"]] if run["arm"] == "control" else 0.0)
    return judge(declaration, runs)[0]


def test_faster_at_a_price_inside_the_floor_is_optional():  # case 12
    entry = floor_case([-0.0021, -0.0035, -0.0018])
    assert (entry["verdict"], entry["reason"]) == ("optional", "better by 0.05189 (at least 0.03852), at a price in val_bpb inside its floor")
    time, bpb, _ = entry["gates"]
    assert (time["df"] if "df" in time else entry["df"]) == 11 and time["p"] == pytest.approx(1.18111e-05, rel=1e-4)
    assert bpb["p"] == pytest.approx(0.0130267, rel=1e-4) and bpb["result"] == "pass" and bpb["threshold_in_sd"] == pytest.approx(3.846, rel=1e-3)


def test_faster_and_as_good_is_promoted_and_faster_and_much_worse_is_rejected():  # case 12
    assert floor_case([0.0001, -0.0005, 0.0008])["verdict"] == "promote"
    entry = floor_case([-0.0091, -0.0085, -0.0078])
    assert (entry["verdict"], entry["reason"]) == ("reject", "val_bpb is worse than its floor allows")
    assert entry["gates"][1]["p"] == pytest.approx(0.997770, rel=1e-4) and entry["gates"][1]["result"] == "fail"


def test_candidate_that_misses_the_target_cannot_pass_gate_1_unless_gate_2_was_declared():  # case 9
    target = {"metric": "val_bpb", "threshold": 1.1, "source": "by hand"}
    runs = make_runs("time_to_target", control=[512.0, None], candidate=[None, None])
    entry, = judge(declared(2, noise=BANK, primary="time_to_target", target=target), runs)
    assert entry["verdict"] == "inconclusive" and "candidate missed the target" in entry["reason"] and entry["gates"][0]["result"] == "fail"
    for run in runs:
        run["training_sec"] = 600.0 if run["arm"] == "control" else 500.0
    entry, = judge(declared(2, noise=BANK, primary="time_to_target", fallback="wall_time", target=target), runs)
    assert entry["verdict"] == "promote" and entry["gates"][0]["gate"] == "wall_time" and "fallback" in entry["gates"][0]["note"]


def test_slower_than_the_throughput_floor_is_rejected_however_good():
    declaration = declared(3, noise=BANK, floors=True)
    runs = full_runs([1.11, 1.12, 1.10], [1.09, 1.10, 1.08], tok_per_sec_median=(1000.0, 800.0))
    entry, = judge(declaration, runs)
    assert (entry["verdict"], entry["reason"]) == ("reject", "tok_per_sec is worse than its floor allows")
    assert [g["gate"] for g in entry["gates"]] == ["val_bpb", "final_train_loss", "tok_per_sec", "no instability"]
    runs = full_runs([1.11, 1.12, 1.10], [1.09, 1.10, 1.08], tok_per_sec_median=(1000.0, 960.0))
    assert judge(declaration, runs)[0]["verdict"] == "optional"  # slower, inside the floor


def test_floor_that_was_not_measured_cannot_be_shown():
    entry, = judge(declared(3, noise=BANK, floors=True), make_runs(control=[1.11, 1.12, 1.10], candidate=[1.09, 1.10, 1.08]))
    assert entry["verdict"] == "inconclusive" and "not shown to be within its floor" in entry["reason"]
    assert entry["gates"][2]["result"] == "cannot tell" and "not measured" in entry["gates"][2]["note"]


def seeds_until_decided(gain, rng, K=1):
    names = [f"c{k}" for k in range(K)]
    declaration = declared(12, names, noise=BANK, until_decided=True)
    control = rng.normal(1.1, 0.0013, 12)
    arms = {name: rng.normal(1.1 - gain, 0.0013, 12) for name in names}
    for n in declaration["looks"]:
        runs = make_runs(control=control[:n].tolist(), **{name: x[:n].tolist() for name, x in arms.items()})
        if all(is_decided(declaration, runs).values()):
            break
    return n, judge(declaration, runs)


def test_looks_stop_when_decided_and_the_verdict_says_so():
    n, (entry,) = seeds_until_decided(4 * 0.0013, np.random.default_rng(3))
    assert n < 12 and entry["verdict"] == "promote" and entry["n"] == n and entry["level"] < 0.05
    n, (entry,) = seeds_until_decided(-2 * 0.0013, np.random.default_rng(3))
    assert n < 12 and entry["verdict"] == "reject" and entry["chance_at_max"] < 0.1


def test_undecided_look_asks_for_more_seeds():
    declaration = declared(12, noise=BANK, until_decided=True)
    entry, = judge(declaration, make_runs(control=[1.1, 1.1013], candidate=[1.0995, 1.1002]))
    assert entry["verdict"] == "inconclusive" and entry["reason"].endswith("add seeds") and not is_decided(declaration, make_runs(
        control=[1.1, 1.1013], candidate=[1.0995, 1.1002]))["candidate"]


def test_gap_in_the_seeds_is_refused_and_never_skipped():
    declaration = declared(12, noise=BANK, until_decided=True)
    runs = [run for run in make_runs(control=CONTROL, candidate=BETTER) if (run["arm"], run["seed"]) != ("candidate", 2)]
    entry, = judge(declaration, runs)
    assert entry["verdict"] is None and "declared order" in entry["reason"]


@pytest.mark.parametrize("seed", range(40))
def test_damaged_runs_are_refused_or_judged_as_if_whole(seed):
    """Random damage to good runs: a verdict may only come out where the damage is none (order of rows, fields not read)."""
    rng = np.random.default_rng(seed)
    declaration, runs = declared(5), make_runs(control=CONTROL, candidate=BETTER)
    damage = rng.choice(["drop", "nan", "twice", "seed", "arm", "profile", "status", "clock", "text"])
    run = runs[rng.integers(len(runs))]
    if damage == "drop":
        runs.remove(run)
    elif damage == "twice":
        runs.append(dict(run))
    else:
        run |= {"nan": {"val_bpb": math.nan}, "seed": {"seed": 77}, "arm": {"arm": "x"}, "profile": {"profile_hash": "q"},
                "status": {"run_status": str(rng.choice(["crash", "oom", "timeout", "interrupted"]))},
                "clock": {"started_at": "2020-01-01T00:00:00+00:00"}, "text": {"val_bpb": None}}[damage]
    rng.shuffle(runs)
    entry, = judge(declaration, runs)
    assert entry["verdict"] is None and entry["text"] == "no verdict" and entry["reason"], damage


def test_order_of_rows_decides_nothing():
    runs = make_runs(control=CONTROL, candidate=BETTER)
    assert judge(declared(5), runs[::-1]) == judge(declared(5), runs)
