"""
The simulation: a few cells of every table against their targets, and the script. `make simulate-gates` runs all of it.

python -m pytest tests/test_made_up_runs.py -v
"""

import json
from pathlib import Path

import numpy as np
import pytest

from nanochat.lab.ledger.banked import bank
from nanochat.lab.simulation import made_up_runs
from nanochat.lab.simulation.draws import AUTOCORRELATED, DIVERGES, DRIFT, STUDENT, WILD, draw, without_outliers
from nanochat.lab.simulation.made_up_runs import MOST_FALSE, Cell, check, draw_protocols, measure, read_targets
from nanochat.lab.verdict.stats import compare, holm, holm_levels, moderated_t, step_down
from scripts import simulate_gates
from tests.ledger_case import record, row

ROOT = Path(__file__).resolve().parent.parent
PROFILE = record()["profile_hash"]
CELLS = {cell.name: cell for cell in read_targets(ROOT / "ideas/simulation_targets.csv")}
FEW = ["8.1 equal rho=0 nu=9 K=1 n=2 lent always", "8.1 equal rho=0 nu=4 K=4 n=3 lent always",
       "8.1 equal rho=0 nu=0 K=10 n=5 chosen",
       "8.2 equal rho=0.5 nu=9 K=4 n=5 lent always", "8.2 equal rho=0.9 nu=0 K=1 n=5 chosen",
       "8.3 candidate variance x2 rho=0 nu=19 K=4 n=2 lent always",
       "8.3 5% outliers rho=0 nu=9 K=1 n=3 lent always", "8.4 equal rho=0 nu=9 K=4 n=2 all seeds",
       "8.5 equal rho=0 nu=9 K=1 n=2-12 lent always",
       "8.5 equal rho=0 nu=9 K=1 n=2-12 lent always, futility", "bank unlucky bank rho=0 nu=9 K=1 n=2 lent always",
       "9.1 equal rho=0 nu=7 K=1 n=2 chosen", "9.1 equal rho=0 nu=7 K=10 n=5 chosen",
       "9.1 equal rho=0 nu=7 K=1 n=3-12 chosen", "9.2 bank at 1/2 rho=0 nu=7 K=1 n=2 chosen",
       "9.2 bank at 1/3 rho=0 nu=7 K=10 n=2 chosen", "9.2 bank at 1/30 rho=0 nu=7 K=10 n=2 lent always",
       "9.2 t with 3 df rho=0 nu=7 K=1 n=5 chosen", "9.2 AR(1) 0.5 rho=0 nu=7 K=1 n=5 chosen",
       "9.2 another diverges rho=0 nu=7 K=4 n=5 chosen"]


def outside(cell, protocols):
    return [(cell.name, row["measure"], row["found"], row["target"])
            for row in check(cell, measure(cell, protocols), protocols) if not row["inside"]]


@pytest.mark.parametrize("name", FEW)
def test_simulated_protocols_agree_with_their_target(name):
    assert outside(CELLS[name], 10_000) == []


@pytest.mark.slow
def test_every_cell_agrees_with_its_target():
    assert sum((outside(cell, 10_000) for cell in CELLS.values()), []) == []


def test_targets_promise_five_percent_exactly_where_the_assumptions_hold():
    sound = [cell for cell in CELLS.values() if made_up_runs.is_sound(cell)]
    assert len(sound) == 42 + 84 + 26 + 50 and max(cell.targets["false_promotion"] for cell in sound) <= 5.0
    assert max(cell.targets["false_promotion"] for cell in CELLS.values() if cell.data == "candidate variance x4") > 20


def test_a_cell_gives_the_same_numbers_each_time():
    cell = CELLS[FEW[0]]
    assert measure(cell, 2000) == measure(cell, 2000) != measure(cell, 2000, seed=1)


def test_records_have_the_spread_and_the_correlation_that_the_cell_says():
    equal, noisy = (CELLS["8.2 equal rho=0.5 nu=9 K=4 n=8 lent always"],
                    CELLS["8.3 candidate variance x4 rho=0 nu=9 K=4 n=8 lent always"])
    def differences(cell):
        drawn = draw(cell, 20_000, np.random.default_rng(0), clean=False)
        return drawn.x[:, :1] - drawn.x[:, 1:], drawn.s_b
    d, s_b = differences(equal)
    assert d.shape == (20_000, 4, 8) and s_b.shape == (20_000, 1)
    assert d.var() == pytest.approx(2 * (1 - 0.5), rel=0.02) and np.mean(s_b ** 2) == pytest.approx(1, rel=0.02)
    assert np.corrcoef(d[:, 0, 0], d[:, 1, 0])[0, 1] == pytest.approx(0.5, abs=0.02)  # they share a control
    assert differences(noisy)[0].var() == pytest.approx(1 + 4, rel=0.02)


def test_simulation_decides_as_the_verdict_of_one_protocol_does():
    """The same records through compare and holm, one protocol at a time."""
    cell = CELLS["8.1 equal rho=0 nu=4 K=4 n=3 lent always"]
    group, = draw_protocols(cell, 300, np.random.default_rng(1))
    group.d += 1.5
    promoted, _ = group.decide()
    for i in range(300):
        p = [compare(group.d[i, k], group.s_b[i, 0], 4).p for k in range(4)]
        assert [ok for ok, _ in holm(p)] == promoted[i].tolist()
    assert 0 < promoted.mean() < 1


def made_up(data, K=2, n=4, rule="chosen"):
    return Cell("9.2", data, 0.0, 7, K, (n,), rule, {})


def test_runs_that_break_an_assumption_break_the_one_that_they_name():
    def x_of(data, P=40_000):
        return draw(made_up(data), P, np.random.default_rng(3)).x
    arms = x_of(AUTOCORRELATED)[:, 0]
    assert np.corrcoef(arms[:, 1], arms[:, 2])[0, 1] == pytest.approx(0.5, abs=0.02) and arms.var() == pytest.approx(
        1, rel=0.02)
    assert x_of(STUDENT).var() == pytest.approx(1, rel=0.1) and abs(x_of(STUDENT)).max() > 10
    assert (x_of(DRIFT).mean(axis=(0, 1)) == pytest.approx([0, 2 / 3, 4 / 3, 2], abs=0.02))
    assert np.isnan(x_of(DIVERGES)).mean(axis=0).tolist() == [[0] * 4, [0] * 4, [0, 1, 0, 0]]
    assert x_of(WILD).mean(axis=0)[2, 1] == pytest.approx(20, abs=0.1), "worse: a loss is better where it is lower"


def test_outliers_of_made_up_banks_are_treated_as_the_ledger_treats_them():
    rng = np.random.default_rng(4)
    runs, made = rng.normal(2.6, 0.001, size=(60, 8)), row(1)
    runs[::3, 2] += 0.02
    runs[::6, 5] += 0.004
    s_b, nu = without_outliers(runs, runs.std(axis=1, ddof=1, keepdims=True), np.full(60, 7))
    for values, s, df in zip(runs, s_b[:, 0], nu):
        try:
            rows = [made | {"seed": i + 1, "val_bpb": float(x)} for i, x in enumerate(values)]
            found = bank(rows, PROFILE, "val_bpb")
            assert (s, df) == (pytest.approx(found.s_b), found.nu)
        except ValueError as e:
            assert df == 0 and "more than one outlier" in str(e)
    assert {0, 6, 7} == set(nu.tolist())


def test_diverged_candidate_is_never_promoted_and_a_refused_bank_waits_for_five_pairs():
    group = draw_protocols(made_up(DIVERGES, n=5), 2000, np.random.default_rng(5))[-1]
    promoted, _ = group.decide(gain=3.0)
    assert promoted[:, 0].mean() > 0.8 and not promoted[:, 1].any()
    group = draw_protocols(made_up("bank at 1/30", n=4), 200, np.random.default_rng(5))[-1]
    p, for_chance = group.at_looks(gain=9.0)
    assert group.refused.all() and (p == 1).all() and np.isnan(for_chance).all()


@pytest.mark.parametrize("K, n", [(4, 2), (10, 5)])
def test_floors_need_no_correction_over_gates(K, n):
    """Half the candidates gain nothing; the others gain much, exactly at the edge of a floor: none may be promoted."""
    rng, P = np.random.default_rng(12), 10_000
    # For each gate, the candidates share a control.
    primary, floor = rng.normal(size=(2, P, K, n)) - rng.normal(size=(2, P, 1, n))
    banks = rng.normal(size=(2, 10, P, 1)).std(axis=1, ddof=1)
    primary[:, K // 2:] += 10
    floor[:, :K // 2] += 10
    p = np.maximum(moderated_t(primary, banks[0], 9).p, moderated_t(floor - 2.0, banks[1], 9, margin=2.0).p)
    promoted = step_down(p, holm_levels(0.05, K))[0].any(axis=-1).mean()
    assert 0.024 < promoted <= 0.0565


def test_check_says_what_is_outside():
    cell = CELLS["8.1 equal rho=0 nu=9 K=1 n=2 lent always"]
    exact = dict(cell.targets)
    assert all(row["inside"] for row in check(cell, exact, 10_000))
    for name, value in (("false_promotion", MOST_FALSE + 0.01), ("false_promotion", 4.1),
                        ("power_1", exact["power_1"] - 2.1)):
        bad = [row["measure"] for row in check(cell, exact | {name: value}, 10_000) if not row["inside"]]
        assert bad == [name]


def test_script_prints_draws_writes_and_says_by_its_exit_code_what_is_outside(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert simulate_gates.main(["--table=bank", "--output_json=out/found.json"]) == 0
    rows = json.loads(Path("out/found.json").read_text())["rows"]
    assert ([(row["nu"], row["target"]) for row in rows] == [(4, 11), (9, 9), (19, 8)]
            and all(row["inside"] for row in rows))
    assert Path("results/simulate_gates.png").read_bytes().startswith(b"\x89PNG")
    assert "bank: a bank that came out low by luck" in capsys.readouterr().out
    wrong = (ROOT / "ideas/simulation_targets.csv").read_text().replace("unlucky bank,0,4,1,2,lent always,11",
                                                                        "unlucky bank,0,4,1,2,lent always,19")
    Path("wrong.csv").write_text(wrong)
    monkeypatch.setattr(simulate_gates, "TARGETS", Path("wrong.csv"))
    assert simulate_gates.main(["--table=bank"]) == 1
    assert "1 outside" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--protocols=10"], ["--table=9"]])
def test_script_refuses_what_it_cannot_do(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        simulate_gates.main(argv)
    assert stop.value.code == 2
