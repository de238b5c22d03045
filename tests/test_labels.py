"""
Several labels of one candidate: the published table of levels, each way to a promotion for nothing before and now, and
the price of the margin. Few families; `python -m scripts.simulate_gates --labels` runs all of it.

python -m pytest tests/test_labels.py -v
"""

import csv
import math

import numpy as np
import pytest
from scipy import stats as reference

from nanochat.common import REPO_ROOT
from nanochat.lab.simulation import labels
from nanochat.lab.simulation.made_up_runs import MOST_FALSE
from nanochat.lab.verdict.facts import MetricNoise, Noise
from nanochat.lab.verdict.gates import judge
from nanochat.lab.verdict.stats import moderated_t
from tests.gates_case import declared, make_runs

FEW = 4000
WITHIN = 3.5  # standard errors of a share of FEW families
PUBLISHED = list(csv.DictReader(open(REPO_ROOT / "ideas" / "label_levels.csv", newline="", encoding="utf-8")))
# What the routes gave before declarations were kept; the first, second, third, fourth and fifth were measured
# independently as 61, 35, 21, 16 and 11 %.
BEFORE = dict(zip((route.name for route in labels.ROUTES), (61, 37, 21.5, 16, 11, 13.5, 14, 37, 8.8)))


def luck(percent, families=FEW):
    share = min(max(percent, 1.0), 99.0) / 100
    return WITHIN * 100 * math.sqrt(share * (1 - share) / families)


@pytest.mark.parametrize("route", labels.ROUTES, ids=lambda route: route.name)
def test_route_to_a_promotion_for_nothing_is_closed(route):
    before, now = route.play(np.random.default_rng(7), FEW)
    assert 100 * before.mean() == pytest.approx(BEFORE[route.name], abs=luck(BEFORE[route.name]) + 1)
    assert 100 * now.mean() < MOST_FALSE + luck(5) / WITHIN


@pytest.mark.parametrize("K", [1, 4])
def test_chosen_rule_has_its_published_power(K):
    row, = [row for row in PUBLISHED if "chosen" in row["rule"] and (row["K"], row["gain_sd"]) == (str(K), "2")]
    p = labels._labels(np.random.default_rng(8), FEW, K, 2.0, 3)
    found = labels._by_rule(row["rule"], K, seed=1)(p)[..., 0]
    for j in range(3):
        wanted = float(row[f"label_{j + 1}"])
        assert 100 * found[:, j].mean() == pytest.approx(wanted, abs=luck(wanted))
    assert 100 * found.any(axis=1).mean() == pytest.approx(float(row["any_of_3"]), abs=luck(float(row["any_of_3"])))


def test_chosen_rule_is_the_cheapest_for_the_first_label_that_leaves_a_second_one_half_its_power():
    at_2_sd = {row["rule"]: row for row in PUBLISHED if (row["K"], row["gain_sd"]) == ("1", "2")}
    rules = {name: (float(row["label_1"]), float(row["label_2"])) for name, row in at_2_sd.items()
             if name != labels.COMBINED}
    cost = {name: rules["all to the first"][0] - first for name, (first, _) in rules.items()}
    chosen, = [name for name in rules if "chosen" in name]
    assert cost[chosen] < 3 < 8 < cost["0.05 / (j (j + 1))"]
    assert rules[chosen][1] == max(second for name, (_, second) in rules.items() if cost[name] <= cost[chosen])


@pytest.mark.parametrize("rule", labels.RULES)
def test_levels_of_every_rule_add_up_to_at_most_one_label(rule):
    assert sum(labels.RULES[rule](j) for j in range(1, 2000)) < 0.05 + 1e-9


def test_critical_values_of_combined_labels_spend_what_they_should():
    first, second = labels._critical(1, np.random.default_rng(9), 2)
    assert first == pytest.approx(reference.norm.isf(0.04), abs=0.02)
    inside = reference.multivariate_normal([0, 0], [[1, math.sqrt(0.5)], [math.sqrt(0.5), 1]]).cdf([first, second])
    assert 1 - inside == pytest.approx(0.048, abs=0.002)


@pytest.mark.parametrize("nu", [9, 0])
def test_simulated_margin_is_the_margin_of_a_verdict(nu):
    rng, promoted = np.random.default_rng(10), []
    for _ in range(100):
        d, s_b = rng.normal(1.2, math.sqrt(2), 5), float(rng.standard_normal(10).std(ddof=1))
        noise = Noise("bank", "p", {"val_bpb": MetricNoise(s_b, nu)}) if nu else None
        runs = make_runs(control=[100.0] * 5, candidate=(100.0 - d).tolist())
        sd = s_b if nu else d.std(ddof=1) / math.sqrt(2)
        tested = moderated_t(d, s_b if nu else None, nu, -labels.TRIVIAL_SD * sd)
        entry, = judge(declared(5, worth=True, noise=noise), runs)
        if "not lent" in entry.gates[0].noise_source:
            continue
        promoted.append(entry.verdict == "promote")
        assert promoted[-1] == (tested.p <= 0.05)
    assert 0 < sum(promoted) < len(promoted) > 80
