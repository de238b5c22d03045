"""
False promotions on real runs: the draws against the page that decides, and the rate where the noise is known.

python -m pytest tests/test_real_runs.py -v
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as reference

from nanochat.lab.arms import make_arms
from nanochat.lab.metrics import METRICS
from nanochat.lab.runs import RunSummary
from nanochat.lab.simulation import real_runs
from nanochat.lab.simulation.real_runs import describe_rates
from nanochat.lab.verdict.declaration import Proposal, declare
from nanochat.lab.verdict.facts import MetricNoise, Noise
from nanochat.lab.verdict.gates import judge
from nanochat.lab.verdict.stats import moderated_t
from tests.gates_case import WHEN
from tests.ledger_case import record, row

LOOKS = (3, 4, 5, 6)


def made_up_pool(R, rng, spread=1.0):
    """A slow floor that fails now and then, and a candidate that is better by luck now and then."""
    return {"val_bpb": 2.6 + 0.003 * spread * rng.normal(size=R),
            "final_train_loss": math.log(7) + 0.004 * rng.normal(size=R),
            "tok_per_sec": math.log(6000) + 0.05 * rng.normal(size=R)}


def judged(values, drawn, looks):
    """The same protocol, through the declaration and gates.judge; any gain counts, as in real_runs.promoted."""
    bank, control, candidate = np.split(drawn, [real_runs.BANK_SEEDS, real_runs.BANK_SEEDS + looks[-1]])
    noise = Noise("bank", metrics={metric: MetricNoise(float(x[bank].std(ddof=1)), len(bank) - 1)
                                   for metric, x in values.items()})
    plan = Proposal("aa", "smoke-cpu", make_arms(["candidate: --matrix-lr=0.03"], []), list(range(looks[-1])),
                until_decided=len(looks) > 1)
    run = RunSummary(run_status="ok", profile_hash="p", declared_at=WHEN, started_at=WHEN, training_sec=9.0)
    def measured(i):
        return {METRICS[m].key: float(np.exp(x[i]) if METRICS[m].log else x[i]) for m, x in values.items()}
    runs = [replace(run, arm=arm, seed=seed, **measured(i))
            for arm, side in (("control", control), ("candidate", candidate)) for seed, i in enumerate(side)]
    declaration = replace(declare(plan, {}, noise, WHEN), margin=0.0, margin_in_own_sd=None)
    return judge(declaration, runs)[0].verdict in ("promote", "optional")


@pytest.mark.parametrize("looks", [(3,), LOOKS], ids=str)
def test_draws_are_decided_as_the_gates_page_decides(looks):
    rng = np.random.default_rng(3)
    values = made_up_pool(40, rng)
    drawn = np.array([rng.permutation(40)[:real_runs.runs_of(looks)] for _ in range(400)])
    found = real_runs.promoted(values, drawn, looks)
    picked = np.concatenate([np.flatnonzero(found)[:8], np.flatnonzero(~found)[:40]])
    assert found.any() and [judged(values, drawn[i], looks) for i in picked] == found[picked].tolist()


def test_normal_noise_promotes_as_often_as_the_level_says_and_all_seeds_far_more_often():
    values = {"val_bpb": np.random.default_rng(4).normal(size=64)}
    rate = real_runs.false_promotions(values, (2,), protocols=40_000)
    rng, n = np.random.default_rng(5), 40_000
    # Runs that no protocol shares. The bank is lent where the variance within the two arms is not too large for it.
    runs, s_b = rng.normal(size=(n, 2, 2)), np.sqrt(rng.chisquare(7, n) / 7)
    lent = runs.var(axis=2, ddof=1).mean(axis=1) / s_b ** 2 <= reference.f.ppf(0.90, 2, 7)
    fresh = moderated_t(runs[:, 0] - runs[:, 1], s_b, 7).p
    luck = math.sqrt(2 * 0.05 * 0.95 / n)
    assert rate.primary == rate.all_gates == pytest.approx(np.mean((fresh <= 0.05) & lent), abs=3 * luck)
    assert lent.mean() == pytest.approx(0.90, abs=0.01)
    assert rate.lo < rate.primary < rate.hi < rate.lo + 0.02
    assert rate.all_seeds == pytest.approx(0.25, abs=0.01)


def test_bank_and_pairs_of_a_draw_are_different_runs():
    values = {"val_bpb": np.arange(24.0) ** 2}
    with pytest.raises(ValueError, match="a pool of 24 runs: 9 pairs and a bank of 8 need 27"):
        real_runs.false_promotions(values, (9,))
    assert real_runs.false_promotions(values, (7,), protocols=200).hi <= 1


def test_pool_needs_24_banked_runs_and_says_how_to_get_them():
    rows = [row(seed, val_bpb=2.6 + 0.001 * math.sin(seed)) for seed in range(1, 26)]
    with pytest.raises(ValueError, match="23 banked runs .* make noise SEEDS=24"):
        describe_rates(rows[:23], record()["profile_hash"])
    text = describe_rates(rows, record()["profile_hash"], protocols=2000)
    assert "drawn from 25 banked runs" in text and "3 to 8" in text
    assert "all gates: val_bpb, final_train_loss, tok_per_sec" in text
