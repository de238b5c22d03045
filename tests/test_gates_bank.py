"""
Verdicts with a bank, floors, targets and looks, and what damaged runs are refused with.

python -m pytest tests/test_gates_bank.py -v
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from nanochat.lab.arms import make_arms
from nanochat.lab.verdict.declaration import Proposal, declare
from nanochat.lab.verdict.facts import Floor, Target
from nanochat.lab.verdict.gates import is_decided, judge
from tests.gates_case import BANK, BETTER, CONTROL, WHEN, declared, edit, make_runs

TARGET = Target("val_bpb", 1.1, "by hand")


def full_runs(control, candidate, **others):
    """Runs with every metric: val_bpb as given, others={field: (control value, candidate value)} for all seeds."""
    rng, names = np.random.default_rng(0), ("final_train_loss", "tok_per_sec_median", "training_sec")
    def measured(run, name):
        return others.get(name, (3.0, 3.0))[run.arm != "control"] * float(np.exp(rng.normal(0, 1e-3)))
    return [replace(run, **{name: measured(run, name) for name in names})
            for run in make_runs(control=control, candidate=candidate)]


def test_two_seeds_with_a_bank_decide():  # case 1
    entry, = judge(declared(2, noise=BANK), make_runs(control=[1.1032, 1.1018], candidate=[1.0989, 1.0991]))
    assert (entry.verdict, entry.df, entry.noise_source) == ("promote", 10, "bank")
    assert entry.p == pytest.approx(0.00972441, rel=1e-4) and entry.lo == pytest.approx(0.00121817, rel=1e-4)


def floor_case(d_bpb):
    """Case 12: seconds decide, val_bpb is a floor; control 1 + d."""
    declaration = declared(3, noise=BANK, primary="time_to_target", target=TARGET)
    runs = make_runs("time_to_target", control=[100.0, 101.0, 99.5], candidate=[95.0, 95.5, 94.8])
    runs = [replace(run, val_bpb=1.1 + (d_bpb[run.seed] if run.arm == "control" else 0.0)) for run in runs]
    return judge(replace(declaration, floors=[Floor("val_bpb", 0.005)]), runs)[0]


def test_faster_at_a_price_inside_the_floor_is_optional():  # case 12
    entry = floor_case([-0.0021, -0.0035, -0.0018])
    assert entry.verdict == "optional"
    # Logarithms of seconds: 1 - exp(-0.05189) and 1 - exp(-0.03852). A reason is read by people, in percent.
    assert entry.reason == ("better by 5.057 % (at least 3.779 %), at a price in val_bpb inside its floor")
    time, bpb, _ = entry.gates
    assert entry.df == 11 and time.p == pytest.approx(1.18111e-05, rel=1e-4)
    assert bpb.p == pytest.approx(0.0130267, rel=1e-4) and bpb.result == "pass"
    assert bpb.threshold_in_sd == pytest.approx(3.846, rel=1e-3)


def test_faster_and_as_good_is_promoted_and_faster_and_much_worse_is_rejected():  # case 12
    assert floor_case([0.0001, -0.0005, 0.0008]).verdict == "promote"
    entry = floor_case([-0.0091, -0.0085, -0.0078])
    assert (entry.verdict, entry.reason) == ("reject", "val_bpb is worse than its floor allows")
    assert entry.gates[1].p == pytest.approx(0.997770, rel=1e-4) and entry.gates[1].result == "fail"


def test_candidate_that_misses_the_target_cannot_pass_gate_1_unless_gate_2_was_declared():  # case 9
    runs = make_runs("time_to_target", control=[512.0, None], candidate=[None, None])
    entry, = judge(declared(2, noise=BANK, primary="time_to_target", target=TARGET), runs)
    assert (entry.verdict, entry.gates[0].result) == ("inconclusive", "fail")
    assert "candidate missed the target on seed 0" in entry.reason
    runs = [replace(run, training_sec=600.0 if run.arm == "control" else 500.0) for run in runs]
    entry, = judge(declared(2, noise=BANK, primary="time_to_target", fallback="wall_time", target=TARGET), runs)
    assert entry.verdict == "promote" and entry.gates[0].gate == "wall_time" and "fallback" in entry.gates[0].note


def test_runs_of_different_lengths_are_judged_by_their_time_to_one_target_and_not_by_where_they_end():
    arms = make_arms(["short: --num-iterations=40"], ["--num-iterations=60"])
    plan = Proposal("label", "smoke-cpu", arms, [0, 1, 2], primary="time_to_target", target=TARGET)
    declaration = declare(plan, {}, BANK, WHEN)
    assert [floor.metric for floor in declaration.floors] == ["tok_per_sec"] and declaration.horizons_differ
    runs = full_runs([1.0, 1.01, 1.02], [1.09, 1.08, 1.09], tok_per_sec_median=(1000.0, 1000.0))
    def of_its_length(run):
        arm, sec = ("short", 80.0) if run.arm == "candidate" else (run.arm, 100.0)
        return replace(run, arm=arm, profile_hash=arm, time_to_target_sec=sec, device="cpu: one", dataset_id="d",
                       tokenizer_id="t")
    runs = [of_its_length(run) for run in runs]
    assert judge(declaration, runs)[0].verdict == "promote"
    edit(runs, -1, dataset_id="another")
    assert "differ in dataset_id: another, d" in judge(declaration, runs)[0].reason
    with pytest.raises(ValueError, match="different wall times by design"):
        replace(plan, fallback="wall_time")


SHAPES = make_arms(["candidate: --depth=3"], ["--target-flops=1e12"])
LENGTHS = make_arms(["candidate: --num-iterations=40"], ["--num-iterations=60"])


@pytest.mark.parametrize("field", ["device", "dataset_id", "tokenizer_id", "profile_hash", "bound"])
@pytest.mark.parametrize("arms, by_design", [(None, {"bound"}), (SHAPES, {"profile_hash"}),
                                             (LENGTHS, {"profile_hash", "bound"})])
@pytest.mark.parametrize("which", [0, 2, -1])  # a run of the control, then of the candidate
def test_runs_of_two_machines_or_of_two_data_sets_are_not_compared(field, arms, by_design, which):
    declaration = declared(5)
    if arms:
        timed = arms is LENGTHS
        plan = Proposal("label", "smoke-cpu", arms, list(range(5)), "time_to_target" if timed else "val_bpb",
                        target=TARGET if timed else None)
        declaration = replace(declare(plan, {}, None, WHEN), floors=[])
    runs = [replace(run, device="cpu: one", dataset_id="d", tokenizer_id="t", bound="flops", profile_hash="p",
                    time_to_target_sec=100 * run.val_bpb) for run in make_runs(control=CONTROL, candidate=BETTER)]
    assert judge(declaration, runs)[0].verdict == "promote"
    edit(runs, which, **{field: "another"})
    entry, = judge(declaration, runs)
    assert entry.verdict == ("promote" if field in by_design else None)
    assert field in by_design or f"differ in {field}: another, " in entry.reason


def test_slower_than_the_throughput_floor_is_rejected_however_good():
    declaration = declared(3, noise=BANK, floors=True)
    better = [1.101, 1.102, 1.100], [1.081, 1.082, 1.0805]
    runs = full_runs(*better, tok_per_sec_median=(1000.0, 800.0))
    entry, = judge(declaration, runs)
    assert (entry.verdict, entry.reason) == ("reject", "tok_per_sec is worse than its floor allows")
    assert [g.gate for g in entry.gates] == ["val_bpb", "final_train_loss", "tok_per_sec", "no instability"]
    runs = full_runs(*better, tok_per_sec_median=(1000.0, 960.0))
    assert judge(declaration, runs)[0].verdict == "optional"  # slower, inside the floor


def test_reason_of_a_reject_is_the_largest_harm_in_limits_and_in_noise():
    """0.22 bpb is 169 sd of a run; 20 % fewer tokens a second are twice the limit. The floor came first in the list."""
    declaration = declared(3, noise=BANK, floors=True)
    control, a_bit_worse = [1.101, 1.102, 1.100], [1.1025, 1.1032, 1.1011]
    def reason(candidate, speed):
        entry, = judge(declaration, full_runs(control, candidate, tok_per_sec_median=(1000.0, speed)))
        assert entry.verdict == "reject"
        return entry.reason
    assert reason([x + 0.22 for x in a_bit_worse], 800.0).startswith("worse by 0.22")
    assert reason(a_bit_worse, 300.0) == "tok_per_sec is worse than its floor allows", "11 limits, and 1 sd"
    assert reason([1.05, 1.051, 1.052], 800.0) == "tok_per_sec is worse than its floor allows", "the only harm"


def test_floor_that_was_not_measured_cannot_be_shown():
    runs = make_runs(control=[1.101, 1.102, 1.100], candidate=[1.081, 1.082, 1.0805])
    entry, = judge(declared(3, noise=BANK, floors=True), runs)
    assert entry.verdict == "inconclusive" and "not shown to be within its floor" in entry.reason
    assert entry.gates[2].result == "cannot tell" and "not measured" in entry.gates[2].note


def seeds_until_decided(gain, rng, K=1):
    names = [f"c{k}" for k in range(K)]
    declaration = declared(12, names, noise=BANK, until_decided=True)
    control = rng.normal(1.1, 0.0013, 12)
    arms = {name: rng.normal(1.1 - gain, 0.0013, 12) for name in names}
    for n in declaration.looks:
        runs = make_runs(control=control[:n].tolist(), **{name: x[:n].tolist() for name, x in arms.items()})
        if all(is_decided(declaration, runs).values()):
            break
    return n, judge(declaration, runs)


def test_looks_stop_when_decided_and_the_verdict_says_so():
    n, (entry,) = seeds_until_decided(4 * 0.0013, np.random.default_rng(3))
    assert n < 12 and entry.verdict == "promote" and entry.n == n and entry.level < 0.05
    n, (entry,) = seeds_until_decided(-2 * 0.0013, np.random.default_rng(3))
    assert n < 12 and entry.verdict == "reject" and entry.chance_at_max < 0.1


def test_undecided_look_asks_for_more_seeds():
    declaration = declared(12, noise=BANK, until_decided=True)
    runs = make_runs(control=[1.1, 1.1013, 1.0992], candidate=[1.0995, 1.1002, 1.0988])
    entry, = judge(declaration, runs)
    assert entry.verdict == "inconclusive" and entry.reason.endswith("add seeds")
    assert not is_decided(declaration, runs)["candidate"]


def test_gap_in_the_seeds_is_refused_and_never_skipped():
    declaration = declared(12, noise=BANK, until_decided=True)
    runs = make_runs(control=CONTROL, candidate=BETTER)
    runs = [run for run in runs if (run.arm, run.seed) != ("candidate", 2)]
    entry, = judge(declaration, runs)
    assert entry.verdict is None and "declared order" in entry.reason


@pytest.mark.parametrize("seed", range(40))
def test_damaged_runs_are_refused_or_judged_as_if_whole(seed):
    """Random damage to good runs: a verdict may only come out where it is none (order of rows, fields not read)."""
    rng = np.random.default_rng(seed)
    declaration, runs = declared(5), make_runs(control=CONTROL, candidate=BETTER)
    damage = rng.choice(["drop", "nan", "twice", "seed", "arm", "profile", "status", "clock", "text"])
    i = rng.integers(len(runs))
    if damage == "drop":
        del runs[i]
    elif damage == "twice":
        runs.append(replace(runs[i]))
    else:
        edit(runs, i, **{
            "nan": {"val_bpb": math.nan}, "seed": {"seed": 77}, "arm": {"arm": "x"}, "profile": {"profile_hash": "q"},
            "status": {"run_status": str(rng.choice(["crash", "oom", "timeout", "interrupted"]))},
            "clock": {"started_at": "2020-01-01T00:00:00+00:00"}, "text": {"val_bpb": None}}[damage])
    rng.shuffle(runs)
    entry, = judge(declaration, runs)
    assert entry.verdict is None and entry.text == "no verdict" and entry.reason, damage


def test_order_of_rows_decides_nothing():
    runs = make_runs(control=CONTROL, candidate=BETTER)
    assert judge(declared(5), runs[::-1]) == judge(declared(5), runs)
