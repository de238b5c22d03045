"""
The spread of a loss behind a predicted length: measured in the bank or by repeated runs, and called assumed elsewhere.

python -m pytest tests/test_lane_b_spread.py -v
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from nanochat.lab.horizon.infer import Exponent, Question, infer
from nanochat.lab.horizon.loss_law import Point
from nanochat.lab.horizon.spread import Spread, banked_spread
from nanochat.lab.ledger import experiments
from scripts.lane_b_infer_ratio import main
from tests.calibration_case import RATIO, calibration_run, store
from tests.loss_law_case import LADDER, N, loss
from tests.loss_law_case import RATIO as LAW_RATIO

VALUES = 2.3 + 0.01 * np.array([1.0, -1.0, 2.0, 0.5, -2.5])


def bank_row(value, seed, number, **record):
    made, _ = calibration_run(1.0, 900_000 + seed, value=value)
    row = experiments.row_of_record(made | record, [], label="noise", arm="control", recipe="lane-b-small")
    return row | {"row": number}


def bank(values=VALUES, **record):
    return [bank_row(float(value), i, i + 1, **record) for i, value in enumerate(values)]


# -----------------------------------------------------------------------------
# Where it comes from

def test_bank_of_the_controls_profile_lends_its_spread_with_its_degrees_of_freedom():
    records = [calibration_run(share)[0] for share in (0.25, 0.5, 1.0)]
    found = banked_spread(records, bank())
    assert (found.sd, found.df, found.source) == (pytest.approx(np.std(VALUES, ddof=1)), 4, "bank")
    shorter = [record | {"profile_hash": "1" * 64} for record in records[:2]]
    assert banked_spread(shorter, bank()) is None and banked_spread([*shorter, records[2]], bank()) == found


@pytest.mark.parametrize("other", [dict(device={"kind": "cpu", "name": "another"}), dict(threads=2),
                                   dict(tree_hash="0" * 64), dict(profile_hash="1" * 64)])
def test_bank_from_elsewhere_lends_nothing(other):
    assert banked_spread([calibration_run(1.0)[0]], bank(**other)) is None


def test_a_single_banked_run_and_the_calibrations_own_seed_show_no_spread():
    assert banked_spread([calibration_run(1.0)[0]], bank(VALUES[:1])) is None
    assert banked_spread([calibration_run(1.0, 900_001)[0]], bank(VALUES[:2])) is None


@pytest.fixture
def inferred(base_dir, tmp_path, monkeypatch, capsys):
    """Runs the command on these seeds of three lengths, with this ledger; returns (JSON, what was printed)."""
    def run(seeds, rows):
        ledger, out = tmp_path / "ledger.csv", tmp_path / "infer.json"
        ledger.unlink(missing_ok=True)
        for row in rows:
            experiments.append(ledger, {name: value for name, value in row.items() if name != "row"})
        monkeypatch.setattr(experiments, "LEDGER", ledger)
        runs = [calibration_run(share, seed) for share in (0.25, 0.5, 1.0) for seed in seeds]
        for record, _ in runs:  # an exact law, and 0.004 between seeds
            record["results"]["val_bpb"] += 0.002 * (-1) ** record["config"]["seed"] * (len(seeds) > 1)
        words = [store(base_dir, run) for run in runs]
        assert main(["--alpha=0.2", "--alpha-ci", "0.19", "0.21", "--target-threshold=1.55", "--records", *words,
                     f"--default-ratio={RATIO}", f"--ratio-ref={RATIO}", f"--output-json={out}"]) == 0
        return json.loads(out.read_text()), capsys.readouterr().out
    return run


def test_the_answer_says_where_its_spread_is_from(inferred):
    facts, said = inferred([1], [])
    assert (facts["loss_sd"], facts["loss_sd_source"]) == (0.002, "assumed") and ", assumed)" in said
    assert facts["warnings"][0].startswith("assumed_spread: ") and "make noise" in said
    facts, said = inferred([1], bank())
    assert (facts["loss_sd_source"], facts["loss_sd_degrees_of_freedom"]) == ("bank", 4) and ", bank)" in said
    assert facts["loss_sd"] == pytest.approx(np.std(VALUES, ddof=1)) and "assumed" not in said
    facts, _ = inferred([1, 2], bank())
    assert (facts["loss_sd_source"], facts["loss_sd_degrees_of_freedom"]) == ("calibration runs", 3)
    assert facts["loss_sd"] == pytest.approx(0.002 * math.sqrt(2)) and facts["warnings"] == []


# -----------------------------------------------------------------------------
# Coverage: the true spread is three times the assumed one

TRUE_SD, TIMES = 0.006, 1.5


def coverage(spread_of, seeds=1, sims=1000):
    """How often the 80 % band holds the true D*; the exponent has an error of 5 %, which its interval says."""
    rng, held = np.random.default_rng(0), 0
    reach = math.exp(1.96 * 0.05)
    for _ in range(sims):
        alpha = 0.17 * math.exp(0.05 * rng.normal())
        points = [Point(t, float(loss(t)) + TRUE_SD * rng.normal(), seed) for t in LADDER for seed in range(seeds)]
        asked = Question(points, float(loss(TIMES * LADDER[-1])), Exponent(alpha, (alpha / reach, alpha * reach)), N,
                         LAW_RATIO, None)
        answer = infer(replace(asked, spread=spread_of(rng)))
        low, high = answer["target_tokens_q10"], answer["target_tokens_q90"]
        held += low is not None and low <= TIMES * LADDER[-1] <= (high or math.inf)
    return held / sims


def banked(rng, runs=8):
    return Spread(TRUE_SD * math.sqrt(rng.chisquare(runs - 1) / (runs - 1)), runs - 1)


@pytest.mark.slow
def test_band_of_an_assumed_spread_covers_a_third_and_that_of_a_measured_spread_four_fifths():
    assert coverage(lambda rng: Spread(0.002)) < 0.45
    assert 0.75 < coverage(banked) < 0.86
    assert 0.75 < coverage(lambda rng: Spread(0.002), seeds=2) < 0.86
