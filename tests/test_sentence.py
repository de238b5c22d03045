"""
The first line of a verdict, over everything that a verdict can be. What it says is read off the runs by other means.

python -m pytest tests/test_sentence.py -v
"""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nanochat.lab.report.sentence import sentence
from nanochat.lab.verdict.facts import Declaration, DeclaredArm, MetricNoise, Noise, Verdict
from nanochat.lab.verdict.gates import judge
from tests.gates_case import BANK, BETTER, CONTROL, declared, edit, make_runs
from tests.test_gates_bank import TARGET, floor_case, full_runs

GOOD = [1.101, 1.102, 1.100], [1.081, 1.082, 1.0805]


def said(declaration, runs) -> str:
    """The sentence on the only candidate, from what a file would hold."""
    found, = judge(declaration, runs)
    stored = Verdict.from_json(json.loads(json.dumps(found.to_json())))
    return sentence(stored, Declaration.from_json(json.loads(json.dumps(declaration.to_json()))))


# -----------------------------------------------------------------------------
# promote, optional

def test_promotion_begins_with_its_lower_bound():
    """Case 4: mean 0.00144, bounds 0.000823605 and 0.0020564; the differences have an sd of 0.000647."""
    d = np.subtract(CONTROL, BETTER)
    assert said(declared(5), make_runs(control=CONTROL, candidate=BETTER)) == (
        "Better: the candidate makes val_bpb at least 0.00082 better (measured: 0.00144, at most 0.00206); "
        f"the differences of its 5 pairs vary by {np.std(d, ddof=1):.5f}.")


def test_promotion_by_a_bank_names_its_runs_and_its_limits():
    """Case 1: mean 0.0035, bounds 0.00121817 and 0.00578183."""
    noise = replace(BANK, metrics=BANK.metrics | {"val_bpb": MetricNoise(0.0013, 9, n=10)})
    text = said(declared(2, noise=noise), make_runs(control=[1.1032, 1.1018], candidate=[1.0989, 1.0991]))
    assert text == ("Better: the candidate makes val_bpb at least 0.0012 better (measured: 0.0035, at most 0.0058); "
                    "10 control runs vary by 0.0013.")
    text = said(declared(3, noise=BANK, floors=True), full_runs(*GOOD))
    assert text.startswith("Better: ") and text.endswith(" Every limit on its cost holds.")


def test_optional_says_the_price_in_percent():
    text = said(declared(3, noise=BANK, floors=True), full_runs(*GOOD, tok_per_sec_median=(1000.0, 960.0)))
    assert text.startswith("Better, at a price: the candidate makes val_bpb at least 0.0")
    assert " It is 4.05 % slower (somewhere from 3.54 % to 4.56 % slower), within the 10 % that you allow." in text


def test_time_to_target_is_said_in_percent_and_never_in_logarithms():
    """Case 12: log seconds 0.0518919 and at least 0.03852, which are 1 - exp(-x) = 5.06 % and 3.78 %."""
    found = floor_case([-0.0021, -0.0035, -0.0018])
    text = sentence(found, declared(3, noise=BANK, primary="time_to_target", target=TARGET))
    assert text.startswith("Better, at a price: the candidate needs at least 3.8 % less time to the target "
                           "(measured: 5.1 %, at most 6.3 %); control runs vary by 1.0 %.")
    assert "It makes val_bpb 0.0025 worse (somewhere from 0.0007 to 0.0042 worse), within the 0.005 that" in text


# -----------------------------------------------------------------------------
# reject

def test_worse_is_said_with_its_size():
    text = said(declared(5), make_runs(control=BETTER, candidate=CONTROL))
    assert text.startswith("Worse: the candidate makes val_bpb 0.00144 worse (somewhere from 0.00082 to 0.00206 worse)")


def test_largest_harm_is_the_one_that_is_named():
    declaration = declared(3, noise=BANK, floors=True)
    worse = [x + 0.22 for x in (1.1025, 1.1032, 1.1011)]
    text = said(declaration, full_runs(GOOD[0], worse, tok_per_sec_median=(1000.0, 800.0)))
    assert text.startswith("Worse: the candidate makes val_bpb 0.221") and "slower" not in text
    text = said(declaration, full_runs(*GOOD, tok_per_sec_median=(1000.0, 800.0)))
    assert text.startswith("Too costly: the candidate is 20.0 % slower (somewhere from 19.6 % to 20.5 % slower), ")
    assert ", more than the 10 % that you allow. It makes val_bpb 0.0" in text and " better " in text


def test_sentence_and_reason_name_the_same_harm_also_where_the_gain_worth_having_is_no_noise():
    """0.05 bpb worse, 38 sd of a run, and 20 % slower where 10 % are allowed: a wanted gain of 0.2 is no unit of it."""
    declaration = declared(3, noise=BANK, floors=True, min_gain=0.2)
    runs = full_runs(GOOD[0], [1.151, 1.152, 1.150], tok_per_sec_median=(1000.0, 800.0))
    assert judge(declaration, runs)[0].reason.startswith("worse by 0.05")
    assert said(declaration, runs).startswith("Worse: the candidate makes val_bpb 0.05")


@pytest.mark.parametrize("speed, words", [
    (899.7, r"is 10\.0[0-9]* % slower .*, more than the 10 % that you allow"),
    (900.3, r"is 9\.9[0-9]* % slower .*, within the 10 % that you allow")])
def test_no_bound_is_rounded_to_the_limit_that_it_keeps_or_breaks(speed, words):
    """Speeds that hardly vary: with one decimal it would be "10.0 % to 10.0 % slower, more than the 10 %"."""
    noise = replace(BANK, metrics=BANK.metrics | {"tok_per_sec": MetricNoise(1e-5, 9)})
    runs = [replace(run, tok_per_sec_median=(1000.0 if run.arm == "control" else speed) * (1 + 1e-6 * run.seed))
            for run in full_runs(*GOOD)]
    text = said(declared(3, noise=noise, floors=True), runs)
    assert re.search(words, text), text
    of_speed = re.search(r"somewhere from ([0-9.]+) % to ([0-9.]+) % slower", text)
    assert all((float(x) > 10) == (speed < 900) and float(x) != 10 for x in of_speed.groups())


def test_excluded_gain_is_rounded_to_one_that_is_excluded():
    """The bound is a millionth below the gain: "0.0025 better, which rules out a gain of 0.0025" would say nothing."""
    d = np.array([0.0002, 0.0010, -0.0006])
    half = stats.t.isf(0.05, 9 + 2) * math.sqrt((9 * 2 * 0.0013 ** 2 + 2 * d.var(ddof=1)) / 11 / 3)
    wanted = d.mean() + half + 1e-6
    declaration = declared(3, noise=BANK, min_gain=wanted)
    text = said(declaration, make_runs(control=[1.1] * 3, candidate=list(1.1 - d)))
    shown, excluded = re.search(r"and ([0-9.]+) better\), which rules out a gain of ([0-9.]+),", text).groups()
    assert d.mean() + half == pytest.approx(float(shown), abs=1e-6) and float(shown) < float(excluded)


def test_a_promotion_never_shows_a_gain_of_nothing():
    d = np.array([8e-6, 9e-6, 7e-6])
    noise = replace(BANK, metrics={"val_bpb": MetricNoise(1e-6, 9)})
    text = said(declared(3, noise=noise), make_runs(control=[1.1] * 3, candidate=list(1.1 - d)))
    at_least, = re.search(r"at least ([0-9.]+) better", text).groups()
    assert 0 < float(at_least) < 8e-6


def test_excluded_gain_says_what_would_be_worth_having():
    near = [c + e for c, e in zip(CONTROL, (0.0001, -0.0001, 0.0002, -0.0002, 0.00005))]
    runs = make_runs(control=CONTROL, candidate=near)
    text = said(declared(5, min_gain=0.002), runs)
    assert text.startswith("No gain worth having: the candidate makes val_bpb 0.00001 worse (between 0.00016 worse ")
    assert "better), which rules out a gain of 0.002, as you asked for; the differences of its 5 pairs vary by " in text
    text = said(declared(5, noise=BANK), make_runs(control=CONTROL, candidate=[c + 1e-5 * i for i, c in
                                                                                 enumerate(CONTROL)]))
    assert text.endswith(", which rules out a gain of 0.0013, as much as control runs vary by.")


def test_equal_runs_are_told_from_an_a_a_test():
    runs = make_runs(control=CONTROL, candidate=CONTROL)
    assert said(declared(5), runs) == (
        "No difference: the candidate ended exactly as the control on each of 5 seeds: there is nothing to promote. "
        "Do its options do anything in this profile?")
    declaration = declared(5)
    again = replace(declaration, arms=[declaration.arms[0], DeclaredArm("candidate", declaration.arms[0].flags)])
    assert said(again, runs).startswith("No difference, as it should be: the candidate ended exactly as the control")
    assert said(again, make_runs(control=CONTROL, candidate=BETTER)).endswith("whatever differs here is chance.")


def test_diverged_runs():
    runs = make_runs(control=CONTROL, candidate=[*BETTER[:4], "diverged"])
    assert said(declared(5), runs).startswith("Diverged: a run of the candidate diverged where the control did not")
    runs = make_runs(control=[*CONTROL[:4], "diverged"], candidate=BETTER)
    assert said(declared(5), runs).startswith("Cannot tell: a run of the control itself diverged")


# -----------------------------------------------------------------------------
# inconclusive

def test_two_seeds_without_a_bank_say_the_next_command():
    text = said(declared(2), make_runs(control=CONTROL[:2], candidate=BETTER[:2]))
    assert text == ("Cannot tell: the candidate makes val_bpb 0.0016 better on 2 seeds, which may be luck. "
                    "No noise banked: run `make noise SEEDS=8`.")


def test_bank_that_is_not_lent_says_why():
    foreign = make_runs(control=[1.100, 1.104], candidate=[1.098, 1.091])
    text = said(declared(2, noise=BANK), foreign)
    assert "which may be luck. The bank is not lent: within an arm the runs spread" in text


def test_noise_says_the_seeds_that_would_do():
    noise = replace(BANK, metrics=BANK.metrics | {"val_bpb": MetricNoise(0.0013, 9, n=10)})
    runs = make_runs(control=[1.1, 1.1013, 1.0992], candidate=[1.0998, 1.1009, 1.0990])
    text = said(declared(3, noise=noise, min_gain=0.001), runs)
    assert text.startswith("Not shown: the candidate makes val_bpb 0.0003 better (between 0.00")
    assert "10 control runs vary by 0.0013. About " in text and text.endswith("seeds would show a gain of 0.001.")


def test_noisy_speed_asks_for_an_idle_machine():
    """The sentence of the issue: the loss does not move, and the speed is too noisy to hold its limit."""
    noise = Noise("bank", metrics={"val_bpb": MetricNoise(0.0036, 7, n=8), "tok_per_sec": MetricNoise(0.08, 7),
                                   "final_train_loss": MetricNoise(0.002, 7)})
    control = [2.640, 2.645, 2.6425]
    runs = full_runs(control, [x + e for x, e in zip(control, (0.001, -0.0012, 0.0002))],
                     tok_per_sec_median=(1000.0, 950.0))
    text = said(declared(3, noise=noise, floors=True, min_gain=0.0036), runs)
    first, second = text.split(". It ")
    assert first.startswith("Not shown: the candidate changes val_bpb by 0.0000 (between 0.0")
    assert " worse and 0.0" in first and first.endswith("better); 8 control runs vary by 0.0036")
    assert second.startswith("is 5 % slower (somewhere from 1")
    assert " % faster), too noisy to exclude the 10 % that you allow: rerun on an idle machine." in second


def test_better_and_perhaps_by_too_little():
    text = said(declared(5, noise=BANK, min_gain=0.01, worth=True), make_runs(
        control=[1.1, 1.1013, 1.0992, 1.1004, 1.0995], candidate=[1.0905, 1.0911, 1.0893, 1.0901, 1.0899]))
    assert text.startswith("Better, and perhaps by too little: the candidate makes val_bpb 0.0099 better (somewhere ")
    assert "better), where 0.01 has to be shown; control runs vary by 0.0013." in text


def test_better_at_an_unknown_cost():
    runs = make_runs(control=GOOD[0], candidate=GOOD[1])
    text = said(declared(3, noise=BANK, floors=True), runs)
    assert text.startswith("Better, at a cost that is not known well enough: the candidate makes val_bpb 0.0")
    assert "Its train loss was not measured in every run, so the 1 % that you allow cannot be checked." in text


def test_looks_that_are_left_say_the_next_check():
    declaration = declared(12, noise=BANK, until_decided=True)
    text = said(declaration, make_runs(control=[1.1, 1.1013, 1.0992], candidate=[1.0995, 1.1002, 1.0988]))
    assert text.startswith("Not yet: the candidate makes val_bpb 0.0007 better (between ")
    assert text.endswith("The next check is planned at 4 seeds, the last at 12: the same command goes on.")


def test_missed_targets():
    def at(control, candidate):
        runs = make_runs("time_to_target", control=control, candidate=candidate)
        declaration = declared(len(control), noise=BANK, primary="time_to_target", target=TARGET)
        return said(replace(declaration, spread_test=None), runs)  # the bank is lent, as in the published case
    assert at([512.0, None], [None, None]).startswith(
        "Cannot tell: the candidate missed the target on seed 0, so its time to the target is not known. ")
    text = at([512.0, 598.0, None], [495.0, 588.0, 580.0])  # case 9, with a budget of 600 seconds
    assert text.startswith("Better: the candidate needs at least 1.3 % less time to the target (measured: 2.8 %, ")
    assert "counts a control that missed the target as one that reached it last" in text


# -----------------------------------------------------------------------------
# No verdict

@pytest.mark.parametrize("declaration, edits, words", [
    (declared(5), {"run_status": "crash"}, "re-run it, the pair is never dropped"),
    (declared(5), {"profile_hash": "q"}, "different profiles are not compared"),
    (declared(5, changes={"candidate": ["--depth 4 -> 6"]}), {}, "is another workload than the control"),
    (declared(5), {"evaluator": "own"}, "own evaluator")])
def test_runs_that_can_give_no_verdict_say_why(declaration, edits, words):
    runs = make_runs(control=CONTROL, candidate=BETTER)
    edit(runs, 7, **edits)
    text = said(declaration, runs)
    assert text.startswith("Not judged: ") and words in text and text.endswith(".") and not text.endswith("..")
