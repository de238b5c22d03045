"""
The simulation: a few cells of every table against their targets, and the script. `make simulate-gates` runs all of it.

python -m pytest tests/test_made_up_runs.py -v
"""

import json
from pathlib import Path

import numpy as np
import pytest

from nanochat.lab.simulation import made_up_runs
from nanochat.lab.simulation.made_up_runs import MOST_FALSE, check, draw, measure, read_targets
from nanochat.lab.verdict.stats import compare, holm, holm_levels, moderated_t, step_down
from scripts import simulate_gates

ROOT = Path(__file__).resolve().parent.parent
CELLS = {cell.name: cell for cell in read_targets(ROOT / "ideas/simulation_targets.csv")}
FEW = ["8.1 equal rho=0 nu=9 K=1 n=2 chosen", "8.1 equal rho=0 nu=4 K=4 n=3 chosen",
       "8.1 equal rho=0 nu=0 K=10 n=5 chosen",
       "8.2 equal rho=0.5 nu=9 K=4 n=5 chosen", "8.2 equal rho=0.9 nu=0 K=1 n=5 chosen",
       "8.3 candidate variance x2 rho=0 nu=19 K=4 n=2 chosen",
       "8.3 5% outliers rho=0 nu=9 K=1 n=3 chosen", "8.4 equal rho=0 nu=9 K=4 n=2 all seeds",
       "8.5 equal rho=0 nu=9 K=1 n=2-12 chosen",
       "8.5 equal rho=0 nu=9 K=1 n=2-12 with futility", "bank unlucky bank rho=0 nu=9 K=1 n=2 chosen"]


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
    assert len(sound) == 42 + 84 + 26 and max(cell.targets["false_promotion"] for cell in sound) <= 5.0
    assert max(cell.targets["false_promotion"] for cell in CELLS.values() if cell.data == "candidate variance x4") > 20


def test_a_cell_gives_the_same_numbers_each_time():
    cell = CELLS[FEW[0]]
    assert measure(cell, 2000) == measure(cell, 2000) != measure(cell, 2000, seed=1)


def test_records_have_the_spread_and_the_correlation_that_the_cell_says():
    equal, noisy = (CELLS["8.2 equal rho=0.5 nu=9 K=4 n=8 chosen"],
                    CELLS["8.3 candidate variance x4 rho=0 nu=9 K=4 n=8 chosen"])
    d, s_b = draw(equal, 20_000, np.random.default_rng(0))
    assert d.shape == (20_000, 4, 8) and s_b.shape == (20_000, 1)
    assert d.var() == pytest.approx(2 * (1 - 0.5), rel=0.02) and np.mean(s_b ** 2) == pytest.approx(1, rel=0.02)
    assert np.corrcoef(d[:, 0, 0], d[:, 1, 0])[0, 1] == pytest.approx(0.5, abs=0.02)  # they share a control
    assert draw(noisy, 20_000, np.random.default_rng(0))[0].var() == pytest.approx(1 + 4, rel=0.02)


def test_simulation_decides_as_the_verdict_of_one_protocol_does():
    """The same records through compare and holm, one protocol at a time."""
    cell = CELLS["8.1 equal rho=0 nu=4 K=4 n=3 chosen"]
    d, s_b = draw(cell, 300, np.random.default_rng(1))
    d = d + 1.5
    promoted, _ = made_up_runs.decide(cell, made_up_runs._p_values(cell, d, s_b))
    for i in range(300):
        p = [compare(d[i, k], s_b[i, 0], 4).p for k in range(4)]
        assert [ok for ok, _ in holm(p)] == promoted[i].tolist()
    assert 0 < promoted.mean() < 1


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
    cell = CELLS["8.1 equal rho=0 nu=9 K=1 n=2 chosen"]
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
    wrong = (ROOT / "ideas/simulation_targets.csv").read_text().replace("unlucky bank,0,4,1,2,chosen,11",
                                                                        "unlucky bank,0,4,1,2,chosen,19")
    Path("wrong.csv").write_text(wrong)
    monkeypatch.setattr(simulate_gates, "TARGETS", Path("wrong.csv"))
    assert simulate_gates.main(["--table=bank"]) == 1
    assert "1 outside" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--protocols=10"], ["--table=9"]])
def test_script_refuses_what_it_cannot_do(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        simulate_gates.main(argv)
    assert stop.value.code == 2
