"""
When the bank is lent: the F test by scipy, and verdicts of labels whose runs spread more than their bank.

python -m pytest tests/test_lending.py -v
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as reference

from nanochat.lab.simulation.many import AtLooks, p_at_looks, refusals
from nanochat.lab.verdict.declaration import declaration_changes
from nanochat.lab.verdict.facts import Declaration, Floor
from nanochat.lab.verdict.gates import is_decided, judge
from nanochat.lab.verdict.lending import disagrees, pooled_variance, unlent
from nanochat.lab.verdict.looks import replay
from tests.gates_case import BANK, declared, make_runs

SD = 0.0013  # of the bank
FOREIGN = {"control": [1.100, 1.104, 1.097, 1.102, 1.098], "candidate": [1.098, 1.091, 1.096, 1.0893, 1.0968]}
LIKE_THE_BANK = {"control": [1.1000, 1.1013, 1.0992, 1.1004, 1.0990],
                 "candidate": [1.0981, 1.0970, 1.0982, 1.0975, 1.0991]}


def first(values, n):
    return make_runs(**{arm: x[:n] for arm, x in values.items()})


# -----------------------------------------------------------------------------
# The test

def naive_pooled(arms):
    squares, df = 0.0, 0
    for values in arms:
        known = [x for x in values if not math.isnan(x)]
        squares += sum((x - sum(known) / len(known)) ** 2 for x in known)
        df += max(len(known) - 1, 0)
    return squares / df, df


def test_spread_of_all_arms_is_pooled_about_their_own_means():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4, 6)) + 50 * rng.normal(size=(20, 4, 1))  # arms far apart: no gain enters
    x[:10, 1, 3:] = math.nan  # an arm that got no more seeds
    x[3, 2] = math.nan  # and one without any value
    for one, v, df in zip(x, *pooled_variance(x)):
        assert (v, df) == (pytest.approx(naive_pooled([arm for arm in one if not np.isnan(arm).all()])[0]),
                           naive_pooled([arm for arm in one if not np.isnan(arm).all()])[1])
    assert pooled_variance(x[0, :, :1]).df == 0 and np.isnan(pooled_variance(x[0, :, :1]).v)


def test_bank_is_refused_above_the_ninetieth_percentile_of_scipys_f():
    x = np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])  # variance 1, 4 degrees of freedom
    edge = 1 / math.sqrt(reference.f.ppf(0.90, 4, 7))
    assert not disagrees(x, edge * 1.001, 7) and disagrees(x, edge * 0.999, 7)
    assert not disagrees(x[:, :1], 1e-9, 7), "a single run has no spread"


def test_honest_bank_is_refused_one_time_in_ten():
    rng = np.random.default_rng(1)
    banks = np.sqrt(rng.chisquare(7, 20_000) / 7)
    for K, n in ((1, 2), (4, 3), (10, 5)):
        assert disagrees(rng.normal(size=(20_000, K + 1, n)), banks, 7).mean() == pytest.approx(0.10, abs=0.008)
    seed = rng.normal(size=(20_000, 1, 3))  # runs of a seed that are nearly alike: fewer degrees of freedom
    alike = math.sqrt(0.9) * seed + math.sqrt(0.1) * rng.normal(size=(20_000, 5, 3))
    assert 0.10 < disagrees(alike, banks, 7).mean() < 0.16


# -----------------------------------------------------------------------------
# Verdicts

def test_two_seeds_that_spread_more_than_their_bank_decide_nothing_and_say_so():
    assert judge(declared(2, noise=BANK), first(LIKE_THE_BANK, 2))[0].verdict == "promote"
    entry, = judge(declared(2, noise=BANK), first(FOREIGN, 2))
    v, df = naive_pooled([values[:2] for values in FOREIGN.values()])
    assert entry.text == "inconclusive (2 seeds, the bank is not lent)" and entry.noise_source == "none"
    assert f"the runs spread {math.sqrt(v):.3g} (df {df}), the banked ones 0.0013 (df 9)" in entry.reason
    assert entry.reason.endswith("declare 5 seeds under a new label, or bank anew with `make noise SEEDS=8`")
    assert entry.gates[0].noise_source == "none: the bank is not lent"
    assert entry.gates[0].note.startswith("the bank is not lent from 2 pairs on: within an arm")


def test_from_five_pairs_on_own_spread_decides():
    entry, = judge(declared(5, noise=BANK), first(FOREIGN, 5))
    expected = reference.ttest_rel(FOREIGN["control"], FOREIGN["candidate"], alternative="greater")
    assert entry.p == pytest.approx(expected.pvalue) and (entry.df, entry.noise_source) == (4, "own")
    assert entry.gates[0].noise_source == "own: the bank is not lent"
    assert json.dumps(entry.to_json(), allow_nan=False)


def test_refusal_holds_for_every_candidate_and_every_later_look():
    names = ["candidate", "calm"]
    declaration = declared(12, names, noise=BANK, until_decided=True)
    calm = [x - 0.0001 for x in LIKE_THE_BANK["control"]]
    values = {"control": [1.1, 1.1001, 1.1002, 1.1001, 1.1], "candidate": [1.09, 1.10, 1.08, 1.09, 1.09], "calm": calm}
    for n, text in ((3, "from 5 pairs on their own spread decides"), (4, "from 5 pairs on")):
        verdicts = judge(declaration, first(values, n))
        assert [v.noise_source for v in verdicts] == ["none", "none"] and all(text in v.reason for v in verdicts)
        assert [v.chance_at_max for v in verdicts] == [None, None], "nothing can be told yet, so nothing is futile"
        assert not any(is_decided(declaration, first(values, n)).values())
    assert {v.noise_source for v in judge(declaration, first(values, 5))} == {"own"}
    # The spread of the later seeds is small. The look at 3 pairs refused the bank, and that stands.
    values = {arm: [*x, *x[:1] * 7] for arm, x in values.items()}
    assert unlent(declaration, make_runs(**values))["val_bpb"].n == 3


def test_a_metric_whose_bank_is_refused_leaves_the_others_theirs():
    declaration = replace(declared(3, noise=BANK), floors=[Floor("tok_per_sec", 0.1)])
    speeds = {"control": [1000, 1100, 900], "candidate": [1000, 950, 1080]}
    runs = [replace(run, tok_per_sec_median=float(speeds[run.arm][run.seed])) for run in first(LIKE_THE_BANK, 3)]
    assert set(unlent(declaration, runs)) == {"tok_per_sec"}
    entry, = judge(declaration, runs)
    assert entry.gates[0].noise_source == "bank nu=9" and entry.gates[1].noise_source == "none: the bank is not lent"
    assert entry.verdict == "inconclusive" and "tok_per_sec is not shown to be within its floor" in entry.reason


def test_runs_on_another_number_of_threads_than_the_banked_ones_get_no_bank():
    declaration = declared(5, noise=replace(BANK, threads=2))
    runs = [replace(run, threads=2) for run in first(LIKE_THE_BANK, 5)]
    assert not unlent(declaration, runs) and judge(declaration, runs)[0].df == 13
    entry, = judge(declaration, [replace(run, threads=1) for run in runs])
    assert entry.df == 4 and "a banked run took 2 threads, a run of this label 1" in entry.gates[0].note
    assert not unlent(declaration, first(LIKE_THE_BANK, 5)), "runs that do not say are given the bank"


def test_label_of_an_older_version_is_judged_as_it_was_declared():
    new = declared(12, noise=BANK, until_decided=True)
    stored = replace(new, looks=list(range(2, 13)), spread_test=None).to_json()
    old = Declaration.from_json(stored)
    assert "spread_test" not in stored and old.looks[0] == 2
    assert declaration_changes(old, new) == [], "it goes on under the rules that it was declared with"
    assert declaration_changes(replace(old, looks=list(range(2, 9))), new) == [
        f"looks: {list(range(2, 9))} -> {new.looks}"]
    assert judge(old, first(LIKE_THE_BANK, 2))[0].noise_source == "bank" and not unlent(old, first(FOREIGN, 3))


# -----------------------------------------------------------------------------
# Futility reads the floors

def floor_case(spread_test=0.90):
    """Better by far in bits, and 12 % slower where 10 % is allowed: no number of seeds will pass both."""
    declaration = replace(declared(12, noise=BANK, until_decided=True), spread_test=spread_test,
                          floors=[Floor("tok_per_sec", -math.log(0.9))])
    def runs(n):
        rng = np.random.default_rng(5)
        speed = {"control": np.exp(rng.normal(7, 0.003, 12)), "candidate": 0.88 * np.exp(rng.normal(7, 0.003, 12))}
        values = {"control": rng.normal(1.1, SD, 12), "candidate": rng.normal(1.09, SD, 12)}
        made = make_runs(**{arm: x[:n].tolist() for arm, x in values.items()})
        return [replace(run, tok_per_sec_median=float(speed[run.arm][run.seed])) for run in made]
    return declaration, runs


def test_chance_is_that_of_the_primary_gate_and_of_every_floor():
    declaration, runs = floor_case()
    entry, = judge(declaration, runs(3))
    assert entry.chance_at_max < 0.10 and is_decided(declaration, runs(3)) == {"candidate": True}
    assert (entry.verdict, entry.reason) == ("reject", "tok_per_sec is worse than its floor allows")
    older, runs = floor_case(spread_test=None)
    assert judge(older, runs(3))[0].chance_at_max > 0.99, "the chance of the primary gate alone"


def test_all_seeds_run_and_a_chance_of_one_hundred_percent_is_a_promotion():
    rng = np.random.default_rng(6)
    for _ in range(200):
        primary, floor = rng.normal(1.5, 2, size=(2, 1, 1, 12))
        p = AtLooks.of_all_gates([p_at_looks(d, np.ones((1, 1)), 9, range(3, 13)) for d in (primary, floor)]).p
        found = replay(p[0], range(3, 13), 9)
        assert found.chance[0] in (0, 1) or found.promoted_at[0] > 0
        assert (found.chance[0] == 1) <= (found.promoted_at[0] > 0)


# -----------------------------------------------------------------------------
# The simulation decides as the page does

@pytest.mark.parametrize("n, until_decided", [(2, False), (5, False), (8, True)])
def test_many_protocols_at_once_get_the_verdicts_of_the_page(n, until_decided):
    rng, P, names = np.random.default_rng(7), 60, ["a", "b"]
    template = declared(n, names, noise=BANK, until_decided=until_decided)
    looks = template.looks
    x = SD * 1.6 * rng.normal(size=(P, 3, n))
    x[:, 1] -= 3 * SD
    d, s_b = x[:, :1] - x[:, 1:], np.full((P, 1), SD)
    found = p_at_looks(d, s_b, 9, looks, refused=(refused := refusals(x, s_b, 9, looks)))
    decided = replay(found.p, looks, 9, for_chance=found.for_chance)
    for i in range(P):
        runs = make_runs(**{arm: (1.1 + row).tolist() for arm, row in zip(("control", *names), x[i])})
        at = unlent(template, runs).get("val_bpb")
        assert (at.n if at else 0) == (looks[np.argmax(refused[i])] if refused[i].any() else 0)
        verdicts = judge(template, runs)
        assert [v.verdict == "promote" for v in verdicts] == (decided.promoted_at[i] > 0).tolist()
    assert refused.any() and not refused.all() and (decided.promoted_at > 0).any()
