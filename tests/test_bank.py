"""
The noise of the control: intervals and correlations against simulation, and the bank that is run, grown and resumed.

python -m pytest tests/test_bank.py -v
"""

import math

import numpy as np
import pytest
from scipy import stats as reference

from nanochat.lab.ledger.bank import (
    banked_target,
    correlation,
    describe,
    measure,
    noise_seeds,
    other_profiles,
    profiles_present,
    with_target,
)
from nanochat.lab.ledger.experiments import append, read
from nanochat.lab.verdict.stats import correlation_bound, sigma_interval, smallest_gain
from scripts import noise as script
from tests import lab_case
from tests.ledger_case import metrics, record, row

PROFILE = record()["profile_hash"]


# -----------------------------------------------------------------------------
# Numbers

def test_interval_of_sigma_is_scipys_and_covers_as_often_as_it_says():
    lo, hi = sigma_interval(0.0013, 9)
    quantiles = reference.chi2.ppf([0.95, 0.05], 9)
    assert [lo, hi] == pytest.approx((0.0013 * np.sqrt(9 / quantiles)).tolist())
    s = np.random.default_rng(0).normal(size=(20_000, 8)).std(axis=1, ddof=1)
    covered = np.mean([a <= 1 <= b for a, b in (sigma_interval(x, 7) for x in s)])
    assert 0.89 < covered < 0.91  # standard error 0.2 %


def test_measure_is_the_sd_of_each_metric_logs_for_ratios():
    rows = [row(seed) for seed in (1, 2, 4, 8)]
    noise = measure(rows, PROFILE)
    assert (set(noise["metrics"]) == {"val_bpb", "final_train_loss", "tok_per_sec", "wall_time"}
            and noise["source"] == "bank")
    bpb, speed = noise["metrics"]["val_bpb"], noise["metrics"]["tok_per_sec"]
    assert bpb["s_b"] == pytest.approx(np.std([2.601, 2.602, 2.604, 2.608], ddof=1)) and (bpb["n"], bpb["nu"]) == (4, 3)
    assert speed["s_b"] == pytest.approx(np.std(np.log([2001, 2002, 2004, 2008]), ddof=1))
    assert bpb["median"] == pytest.approx(2.603) and speed["median"] == pytest.approx(math.sqrt(2002 * 2004))


def test_metric_that_cannot_be_measured_is_left_out_by_name():
    noise = measure([row(1, val_bpb=2.6), row(2, val_bpb=2.6)], PROFILE, exclude_seeds=[9])
    assert "val_bpb" not in noise["metrics"] and "tok_per_sec" in noise["metrics"]
    assert any("they are copies" in line for line in noise["left_out"])
    assert "time_to_target" not in noise["metrics"]


def test_better_noise_source_is_named_where_earlier_pairs_are_alike():
    bank = [row(seed) for seed in range(1, 9)]
    rng = np.random.default_rng(5)
    def earlier(spread):
        base = rng.normal(size=12)
        return [row(100 + i, label="mix", arm=arm, val_bpb=2.6 + 0.003 * (base[i] + extra))
                for i in range(12) for arm, extra in (("control", 0), ("mix", spread * rng.normal()))]
    alike, unlike = ([*bank, *earlier(spread)] for spread in (0.05, 5))
    assert "with 5, 8 seeds --noise=own sees smaller gains" in describe(measure(alike, PROFILE))
    assert "the bank is the better noise source" in describe(measure(unlike, PROFILE))
    assert "noise source" not in describe(measure(bank, PROFILE))


def test_target_is_reached_by_the_whole_bank_and_gives_it_times():
    rows = [row(seed) for seed in (1, 2, 3)]
    threshold = banked_target(rows, PROFILE)
    assert threshold == pytest.approx(2.603 + 0.001)
    curves = {r["run_id"]: metrics((3.0, 2.8, 2.6 - 0.01 * r["seed"])) for r in rows}
    timed = with_target(rows, curves, "val_bpb", threshold)
    expected = [16 + 16 * (2.8 - threshold) / (0.2 + 0.01 * seed) for seed in (1, 2, 3)]
    assert [r["time_to_target_sec_measured"] for r in timed] == pytest.approx(expected)
    assert measure(timed, PROFILE)["metrics"]["time_to_target"]["s_b"] == pytest.approx(
        np.std(np.log(expected), ddof=1))
    with pytest.raises(ValueError, match="seed 2 missed it"):
        banked_target([row(1), row(2, min_val_bpb=2.7), row(3)], PROFILE)


def protocol_rows(seeds, rho, rng, label="t", arms=("gate",), offset=0.0):
    """Control and candidates whose noise correlates by rho, with a mean of its own for the label."""
    rows = []
    for i, seed in enumerate(seeds):
        shared = rng.normal()
        for arm in ("control", *arms):
            x = offset + math.sqrt(rho) * shared + math.sqrt(1 - rho) * rng.normal()
            rows.append(row(seed, label=label, arm=arm, number=i) | {"val_bpb": 2.6 + 0.001 * x})
    return rows


def test_correlation_of_one_protocol_is_numpys():
    rows = protocol_rows(range(10), 0.7, np.random.default_rng(3))
    control, gate = ([r["val_bpb"] for r in rows if r["arm"] == arm] for arm in ("control", "gate"))
    found = correlation(rows, PROFILE)["val_bpb"]
    r = np.corrcoef(control, gate)[0, 1]
    assert found["r"] == pytest.approx(r) and found["n"] == 10
    assert found["lo"] == pytest.approx(math.tanh(math.atanh(r) - reference.norm.ppf(0.9) / math.sqrt(7)))


def test_shift_between_labels_is_no_correlation_and_candidates_share_their_seeds():
    rng = np.random.default_rng(4)
    rows = protocol_rows(range(40), 0.0, rng, "a") + protocol_rows(range(40), 0.0, rng, "b", ("x", "y"), offset=50)
    found = correlation(rows, PROFILE)["val_bpb"]
    assert abs(found["r"]) < 0.3 and found["n"] == 80


def test_bound_of_the_correlation_holds_as_often_as_it_says():
    rng, rho, n = np.random.default_rng(5), 0.6, 12
    below = 0
    for _ in range(4000):
        x, e = rng.normal(size=(2, n))
        below += correlation_bound(np.corrcoef(x, rho * x + math.sqrt(1 - rho ** 2) * e)[0, 1], n) <= rho
    assert 0.88 < below / 4000 < 0.93  # 90 %; Fisher's z is an approximation
    assert correlation_bound(-0.5, 12) == 0.0 and correlation_bound(1.0, 5) == 1.0


def test_too_few_pairs_have_no_correlation():
    rng = np.random.default_rng(6)
    assert correlation(protocol_rows(range(3), 0.5, rng), PROFILE) == {}
    assert correlation([row(s) for s in range(9)], PROFILE) == {}  # the bank has no pairs
    assert correlation(protocol_rows(range(9), 0.5, rng), "other profile") == {}


# -----------------------------------------------------------------------------
# Text

def test_text_has_sigma_with_its_interval_and_the_gains_of_stats():
    rows = [row(seed) for seed in range(1, 9)]
    noise = measure(rows, PROFILE)
    text, entry = " ".join(describe(noise).split()), noise["metrics"]["val_bpb"]
    assert f"{entry['s_b']:.3g} [{entry['lo']:.3g}, {entry['hi']:.3g}]" in text and "log tok_per_sec_median" in text
    for n in (2, 3, 5, 8):
        least = 0.1 * entry["s_b"]  # a smaller gain is trivial; a first label has the level 0.04
        assert f"{least + smallest_gain(n, entry['s_b'], 7, 0.04):.3g}" in text
    loaded = describe(measure([rows[0] | {"overloaded": True}, *rows[1:]], PROFILE))
    assert "overloaded" not in text and "seed 1: the machine was overloaded; they lend no speed and no time" in loaded
    assert "make noise SEEDS=8" in describe(measure([], PROFILE))


def test_other_profiles_are_listed_with_what_differs():
    rows = [row(1, "--depth=6", number=1), row(2, "--depth=6", number=2), row(1, number=3)]
    assert [(p["depth"], p["banked"]) for p in profiles_present(rows)] == [(6, 2), (4, 1)]
    text = other_profiles(rows, PROFILE)
    assert "2 banked: --depth 4 -> 6" in text and PROFILE[:8] not in text
    assert other_profiles([row(1)], PROFILE) == ""


def test_noise_seeds_are_as_many_as_asked_for_and_growing_keeps_them():
    assert len(noise_seeds(8)) == 8 and noise_seeds(10)[:8] == noise_seeds(8)
    with pytest.raises(ValueError, match="expected 2 or more"):
        noise_seeds(1)


# -----------------------------------------------------------------------------
# The script, on the quick stand-in of the trainer

@pytest.fixture
def ledger(tmp_path, monkeypatch):
    lab_case.enter(tmp_path, monkeypatch)
    make = script.make_protocol

    def quick(args):
        protocol = make(args)
        protocol.trainer = lab_case.FAKE
        return protocol
    monkeypatch.setattr(script, "make_protocol", quick)
    monkeypatch.setattr(script.profiles, "prepare", lambda *args: ("data", "tok"))
    monkeypatch.setattr(script, "check_arms", lambda *args: None)  # there is no tokenizer
    return tmp_path / "experiments.csv"


def noise_script(ledger, *argv):
    return script.main([*argv, "--profile=smoke-cpu", f"--ledger={ledger}"])


def test_eight_means_eight_and_ten_trains_two_more(ledger, capsys):
    assert noise_script(ledger, "--run", "--seeds=8") == 0
    out = capsys.readouterr().out
    assert "banked 8 new rows" in out and "noise of one control run" in out
    rows = read(ledger)
    assert [r["seed"] for r in rows] == noise_seeds(8)
    assert {(r["arm"], r["label"], r["status"]) for r in rows} == {("control", "noise", "ok")}
    assert all(r["declared_at"] and r["val_bpb"] for r in rows)
    assert noise_script(ledger, "--run", "--seeds=8") == 0 and len(read(ledger)) == 8  # nothing is run or banked twice
    assert noise_script(ledger, "--run", "--seeds=10") == 0
    assert [r["seed"] for r in read(ledger)] == noise_seeds(10)
    assert "reused 8 of 10 cells" in capsys.readouterr().out
    profile_hash = rows[0]["profile_hash"]
    assert measure(read(ledger), profile_hash)["metrics"]["val_bpb"]["nu"] == 9


def test_failed_seed_gets_a_row_and_is_run_again(ledger, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_PLAN", '{"nc_noise_d4_control_s900002": "crash", "nc_noise_d4_control_s900003": "silent"}')
    assert noise_script(ledger, "--run", "--seeds=4") == 1
    assert {r["seed"]: r["status"] for r in read(ledger)} == {
        900001: "ok", 900002: "crash", 900003: "crash", 900004: "ok"}
    monkeypatch.delenv("FAKE_PLAN")
    assert noise_script(ledger, "--run", "--seeds=4") == 0
    assert [r["seed"] for r in read(ledger, status="ok")] == [900001, 900004, 900002, 900003]


def test_other_flags_are_a_bank_of_their_own(ledger, capsys):
    assert noise_script(ledger, "--run", "--seeds=2") == 0
    assert noise_script(ledger, "--run", "--seeds=3", "--flags=--num-iterations=30") == 0
    out = capsys.readouterr().out
    assert "never compared with this one" in out and len({r["profile_hash"] for r in read(ledger)}) == 2
    assert noise_script(ledger, f"--profile-hash={read(ledger)[0]['profile_hash'][:8]}") == 0
    assert "val_bpb  2   1  " in capsys.readouterr().out


def test_interrupted_bank_names_the_command_that_goes_on(ledger):
    args = script.build_parser().parse_args(
        ["--run", "--seeds=3", "--profile=smoke-cpu", "--flags=--num-iterations=30"])
    assert script.make_protocol(args).command() == (
        "python -m scripts.noise --run --seeds=3 --profile=smoke-cpu --flags=--num-iterations=30")


def test_profile_is_chosen_by_label_or_hash_or_is_the_newest(ledger, capsys):
    for made in (row(1, "--depth=6"), row(2, "--depth=6"), row(1), row(2), row(3, "--depth=8", label="t")):
        append(ledger, made)
    assert noise_script(ledger) == 0 and f"profile {PROFILE[:8]}" in capsys.readouterr().out
    deep = record(1, "--depth=6")["profile_hash"]
    assert noise_script(ledger, f"--profile-hash={deep[:6]}") == 0 and f"profile {deep[:8]}" in capsys.readouterr().out
    assert noise_script(ledger, "--label=t") == 0 and "no noise banked" in capsys.readouterr().out
    assert noise_script(ledger, "--label=u") == 2 and "no row of the ledger" in capsys.readouterr().err
    assert (noise_script(ledger, "--profile-hash=xyz") == 2
            and "0 profiles in the ledger begin so" in capsys.readouterr().err)


def test_empty_ledger_says_how_to_fill_it(ledger, capsys):
    assert noise_script(ledger) == 2
    err = capsys.readouterr().err  # another ledger than make's: the command that fills this one
    assert "-m scripts.noise --run --seeds=8" in err and f"--ledger={ledger}`" in err
    assert noise_script(ledger, "--run", "--seeds=1") == 2 and "expected 2 or more" in capsys.readouterr().err
