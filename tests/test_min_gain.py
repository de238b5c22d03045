"""
A gain that is too small to be worth a change is not promoted: the margin of the primary gate, with and without a bank.

python -m pytest tests/test_min_gain.py -v
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from nanochat.lab.verdict.declaration import declaration_changes, extends, label_level
from nanochat.lab.verdict.facts import Declaration, MetricNoise, Noise, Target
from nanochat.lab.verdict.gates import judge
from tests.gates_case import BANK, declared, make_runs

S_B = 0.0013
CONTROL = [1.1] * 5


def judged(declaration, gains):
    runs = make_runs(control=CONTROL[:len(gains)], candidate=[1.1 - gain for gain in gains])
    return judge(declaration, runs)[0]


def test_margin_is_a_tenth_of_the_banks_sd_or_the_declared_gain():
    banked, own, by_hand = (declared(5, worth=True, **options) for options in (
        dict(noise=BANK), dict(), dict(noise=BANK, min_gain=0.002)))
    assert (banked.margin, banked.margin_in_own_sd, banked.min_gain) == (-0.1 * S_B, 0.1, S_B)
    assert (own.margin, own.margin_in_own_sd, own.min_gain) == (0.0, 0.1, None)
    assert (by_hand.margin, by_hand.margin_in_own_sd, by_hand.min_gain) == (-0.002, None, 0.002)


def test_times_keep_the_larger_of_both_margins():
    wide = Noise("bank", metrics={"wall_time": MetricNoise(0.5, 9), "time_to_target": MetricNoise(0.01, 9)})
    def margin(primary, noise, **options):
        return declared(5, worth=True, primary=primary, noise=noise, target=Target("val_bpb", 1.1), **options).margin
    assert margin("wall_time", BANK) == -math.log(1.03) and margin("wall_time", wide) == -0.05
    assert margin("wall_time", BANK, min_gain=0.1) == -0.1 and margin("wall_time", BANK, min_gain=0.01) < -0.02
    assert margin("time_to_target", wide) == pytest.approx(-0.001)


def test_bank_that_is_not_lent_leaves_the_margin_to_the_spread_of_the_pairs():
    small = Noise("bank", metrics={"val_bpb": MetricNoise(S_B / 30, 9)})
    runs = make_runs(control=[1.1, 1.102, 1.099, 1.1, 1.103], candidate=[1.099, 1.1, 1.0985, 1.098, 1.1005])
    primary = judge(declared(5, worth=True, noise=small), runs)[0].gates[0]
    d = np.array([0.001, 0.002, 0.0005, 0.002, 0.0025])
    assert primary.noise_source == "own: the bank is not lent"
    assert primary.threshold == pytest.approx(-0.1 * d.std(ddof=1) / math.sqrt(2))


@pytest.mark.parametrize("noise", [BANK, None], ids=["bank", "own"])
def test_verdict_interval_and_p_are_one_event(noise):
    rng, declaration, seen = np.random.default_rng(4), declared(5, worth=True, noise=noise), set()
    for _ in range(300):
        d = rng.normal(0.0012, math.sqrt(2) * S_B, 5)
        entry = judged(declaration, d.tolist())
        if "not lent" in entry.gates[0].noise_source:
            continue
        runs = [a - (a - x) for a, x in zip(CONTROL, d)]
        asked = 0.1 * (S_B if noise else np.std(runs, ddof=1) / math.sqrt(2))
        promoted = entry.verdict == "promote"
        assert promoted == (entry.p <= entry.level) == (entry.lo >= asked)
        assert entry.gates[0].threshold == pytest.approx(-asked) and (entry.gates[0].result == "pass") == promoted
        seen.add((promoted, entry.lo > 0))
    assert seen == {(True, True), (False, True), (False, False)}, "one of them was better, and not by enough"


def test_trivial_gain_is_named_and_not_promoted():
    d = [0.0005, 0.0006, 0.0004, 0.0005, 0.0005]  # sure, and 0.04 sd of a run
    noise = Noise("bank", metrics={"val_bpb": MetricNoise(0.012, 2)})
    entry = judged(replace(declared(5, worth=True, noise=noise), min_gain=None), [x + 0.0085 for x in d])
    assert entry.verdict == "inconclusive" and entry.lo < 0.0012
    entry = judged(declared(5, worth=True, min_gain=0.01), [0.009, 0.0095, 0.0091, 0.0093, 0.0107])
    assert entry.reason.startswith("better, but not shown to be better by 0.01 bpb: the gain lies in [0.008")
    assert judged(replace(declared(5, worth=True, min_gain=0.01), margin=0.0),
                  [0.009, 0.0095, 0.0091, 0.0093, 0.0107]).verdict == "promote", "as it was declared before"


def test_declared_gain_is_promoted_above_and_rejected_below():
    def of(gain):
        return judged(declared(5, worth=True, min_gain=0.01), [gain + x for x in (0, 1e-4, -1e-4, 2e-4, 0)])
    assert of(0.011).verdict == "promote" and of(0.009).reason.startswith("a gain of 0.01 bpb is excluded")
    assert of(0.01).verdict == "inconclusive" and "would settle a gain of 0.02 bpb" in of(0.01).reason
    assert of(0.009).seeds_needed is None, "no number of seeds shows a gain that is the margin itself"


def test_label_from_before_the_margin_replays_as_it_was_declared():
    new = declared(5, worth=True, noise=BANK)
    stored = new.to_json() | {"margin": 0.0, "alpha": 0.05}
    for key in ("min_gain_by_hand", "margin_in_own_sd"):
        stored.pop(key, None)
    old = Declaration.from_json(stored)
    assert declaration_changes(old, new) == [] and old.to_json() == stored
    d = [0.0012, 0.0006, 0.0012, 0.0018, 0.0012]
    assert judged(old, d).gates[0].threshold == 0


def test_gain_by_hand_may_not_change_and_a_bank_that_grew_may():
    grown = Noise("bank", metrics={"val_bpb": MetricNoise(0.0015, 11)})
    assert declaration_changes(declared(5, worth=True, noise=BANK), declared(5, worth=True, noise=grown)) == []
    for old, new in ((None, 0.002), (0.002, None), (0.002, 0.003)):
        changed = declaration_changes(*(declared(5, worth=True, noise=BANK, min_gain=gain) for gain in (old, new)))
        assert any(line.startswith("min_gain: ") for line in changed)


def test_only_what_could_decide_nothing_is_extended_and_nothing_is_left_out():
    first = declared(2, ["a", "b"], worth=True)
    assert extends(first, declared(5, ["a", "b"], worth=True)) and extends(first, declared(2, ["a", "b", "c"]))
    assert extends(first, declared(2, ["a", "b"], noise=BANK, worth=True))
    for other in (declared(5, ["a"]), declared(5, ["a", "b"], min_gain=0.002), declared(5, ["a", "b"], floors=True),
                  replace(declared(5, ["a", "b"]), seeds=[1, 0, 2, 3, 4]),
                  declared(5, ["a", "b"], primary="wall_time")):
        assert not extends(first, other)
    assert not extends(declared(5, ["a"]), declared(6, ["a"])), "it could decide"


def test_levels_of_all_labels_add_up_to_the_level_of_one():
    levels = [label_level(number) for number in range(1, 200)]
    assert levels[:3] == [0.04, 0.008, 0.0016] and sum(levels) == pytest.approx(0.05, abs=1e-12)
    assert label_level(2, extended=True) == 0.004
