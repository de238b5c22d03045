"""
The rows of a bank: which of them lend their spread to which runs, why the others do not, and Grubbs' test by a table.

python -m pytest tests/test_banked.py -v
"""

import math

import numpy as np
import pytest
from scipy import stats as reference

from nanochat.config import parse
from nanochat.lab.ledger.bank import measure
from nanochat.lab.ledger.banked import FIRST_SEED, bank, banked_runs, borrower, codes_alike, outlier, seeds_text
from nanochat.lab.ledger.experiments import append
from nanochat.lab.protocol.announce import announce
from nanochat.lab.protocol.session import Session
from nanochat.lab.report.text import basis_lines
from tests import lab_case
from tests.ledger_case import FLAGS, TREE, record, row

PROFILE = record()["profile_hash"]
DEVICE = "cpu: a processor"


def like(*flags, device=DEVICE, threads=1, tree=TREE):
    return borrower(parse([*FLAGS, *flags]), device, threads, tree)


def test_bank_is_the_spread_of_the_control_of_one_profile():
    rows = [row(seed) for seed in (1, 2, 4, 8)]
    rows += [row(3, label="t"), row(5, arm="gate"), row(6, "--depth=6"), row(7, kind="cuda")]
    found = bank(rows, PROFILE, "val_bpb")
    values = [2.601, 2.602, 2.604, 2.608]
    assert found.values == values and found.nu == 3 and not found.left_out
    assert found.s_b == pytest.approx(np.std(values, ddof=1))
    logs = np.log([2001.0, 2002.0, 2004.0, 2008.0])
    assert bank(rows, PROFILE, "tok_per_sec").s_b == pytest.approx(np.std(logs, ddof=1))
    assert bank(rows, PROFILE, "wall_time").values == pytest.approx(np.log([51, 52, 54, 58]))


def test_bank_leaves_out_by_name():
    rows = [row(1), row(1, number=2), row(2), row(3, status="diverged"), row(4, val_bpb=None), row(5),
            row(6, val_bpb=math.nan)]
    found = bank(rows, PROFILE, "val_bpb", exclude_seeds=[5])
    assert found.seeds == [1, 2] and found.nu == 1
    assert found.left_out == ["seed 5: one of the protocol's own seeds; a bank needs others",
                              "seed 3: ended diverged, it has no value", "seed 1: banked twice, the newer is kept",
                              "seeds 4, 6: val_bpb was not measured"]


def test_seed_that_failed_and_then_ended_ok_is_in_the_bank():
    found = bank([row(1), row(2, status="interrupted"), row(2, number=3)], PROFILE, "val_bpb")
    assert found.seeds == [1, 2] and not found.left_out


def test_code_and_options_of_the_newest_run_are_those_of_a_bank_that_nobody_borrows():
    rows = [row(1, val_bpb=9.0, tree="0" * 64), row(1, number=2), row(2)]
    found = bank(rows, PROFILE, "val_bpb")
    assert found.values == [2.601, 2.602]
    assert found.left_out == ["seed 1: by other code of the trainer (00000000, now ffffffff), which may change the "
                              "noise; bank anew with `make noise SEEDS=8`; with SEEDS=2 two of them are trained "
                              "again, and where both end as before, all lend"]
    kept, left_out = banked_runs([row(1, "--matrix-lr=0.03"), row(2), row(3)], PROFILE)
    assert [r["seed"] for r in kept] == [2, 3]
    assert left_out == ["seed 1: with other options (--matrix-lr 0.03 -> 0.02); bank anew with `make noise SEEDS=8` "
                        "and these options"]


OLD, OLDER = "0" * 64, "1" * 64


def test_rows_of_other_code_lend_where_two_of_its_seeds_ended_as_before():
    rows = [row(seed, tree=OLD) for seed in range(1, 9)] + [row(1, number=2), row(2, number=2)]
    found = bank(rows, PROFILE, "val_bpb", like=like())
    assert found.seeds == list(range(1, 9)) and found.left_out == ["seeds 1, 2: banked twice, the newer is kept"]
    alone = bank(rows[:8], PROFILE, "val_bpb", like=like())
    assert not alone.seeds and "seeds 1 to 8 (8 rows): by other code of the trainer" in alone.left_out[0]


def test_rows_of_other_code_do_not_lend_where_one_shared_seed_ended_elsewhere():
    rows = [row(seed, tree=OLD) for seed in (1, 2, 3)] + [row(1, number=2), row(2, number=2, val_bpb=2.60201)]
    assert bank(rows, PROFILE, "val_bpb", like=like()).seeds == [1, 2]


def test_bank_of_other_options_does_not_make_codes_differ():
    rows = [row(seed, tree=OLD) for seed in (1, 2, 3)]
    rows += [row(seed, "--matrix-lr=0.03", tree=OLD, val_bpb=2.5, number=2) for seed in (1, 2)]
    rows += [row(1, number=3), row(2, number=3)]
    assert codes_alike(rows, like()) == {OLD, TREE} and bank(rows, PROFILE, "val_bpb", like=like()).seeds == [1, 2, 3]


def test_codes_are_alike_over_a_third_and_only_on_one_device():
    rows = [row(1, tree=OLDER), row(2, tree=OLDER), row(3, tree=OLDER), row(2, tree=OLD), row(4, tree=OLD), row(4)]
    assert codes_alike(rows, like()) == {OLD, OLDER, TREE}
    assert codes_alike(rows, like(device="cpu: another")) == {TREE}


def test_bank_without_spread_is_refused():
    with pytest.raises(ValueError, match="2 banked runs .* one and the same val_bpb: they are copies"):
        bank([row(1, val_bpb=2.6), row(2, val_bpb=2.6)], PROFILE, "val_bpb")


def test_one_banked_run_has_no_spread():
    assert (bank([row(1)], PROFILE, "val_bpb").s_b, bank([], PROFILE, "val_bpb").nu) == (None, 0)


def test_times_are_banked_for_one_target_which_every_run_reached():
    def timed(seed, sec, threshold=2.7):
        return row(seed) | {"target_metric_name": "val_bpb", "target_metric_threshold": threshold,
                            "time_to_target_sec_measured": sec}
    found = bank([timed(1, 20.0, threshold=2.9), timed(2, 30.0), row(3), timed(4, 33.0)], PROFILE, "time_to_target")
    assert found.values == pytest.approx(np.log([30, 33]))
    assert found.left_out == ["seeds 1, 3: no time to this target"]
    with pytest.raises(ValueError, match="banked control run on seed 2 missed it"):
        bank([timed(2, None), timed(4, 33.0)], PROFILE, "time_to_target")


# -----------------------------------------------------------------------------
# Who borrows

def test_rows_that_agree_in_everything_lend():
    rows = [row(seed) for seed in range(1, 9)]
    kept, left_out = banked_runs(rows, PROFILE, like=like())
    assert [r["seed"] for r in kept] == list(range(1, 9)) and not left_out
    assert len(banked_runs(rows, PROFILE, like=like("--seed=7", "--save-every=5", "--model-tag=x"))[0]) == 8
    assert len(banked_runs(rows, PROFILE, like=like(threads=None))[0]) == 8, "the runs will tell"


@pytest.mark.parametrize("asked, reason", [
    (dict(tree="0" * 64), "by other code of the trainer (ffffffff, now 00000000), which may change the noise; bank"),
    (dict(device="cpu: another"), "on another device (cpu: a processor, now cpu: another); bank anew"),
    (dict(device="cpu"), "on another device (cpu: a processor, now cpu); bank anew"),
    (dict(threads=4), "on 1 threads, now 4; bank with as many jobs side by side as the protocol has")])
def test_rows_of_another_setting_lend_nothing_and_are_told_of_in_one_line(asked, reason):
    noise = measure([row(seed) for seed in range(1, 9)], PROFILE, like=like(**asked))
    assert noise["metrics"] == {} and len(noise["left_out"]) == 1
    assert noise["left_out"][0].startswith(f"seeds 1 to 8 (8 rows): {reason}")
    assert "make noise SEEDS=8" in noise["left_out"][0]


def test_options_of_the_control_are_compared_and_not_its_profile_alone():
    rows = [row(seed) for seed in range(1, 9)]
    assert like("--matrix-lr=0.03")["command"] != rows[0]["command"]  # a treatment: the profile is the same
    noise = measure(rows, PROFILE, like=like("--matrix-lr=0.03"))
    assert noise["metrics"] == {} and "with other options (--matrix-lr 0.02 -> 0.03)" in noise["left_out"][0]


@pytest.mark.parametrize("column, reason", [
    ("tree_hash", "by other code of the trainer (unknown, now ffffffff)"),
    ("device", "on another device (unknown, now"), ("threads", "on an unknown number of threads, now 1"),
    ("command", "its options are unknown")])
def test_row_that_does_not_say_lends_nothing(column, reason):
    kept, (line,) = banked_runs([row(1), row(2) | {column: None}, row(3)], PROFILE, like=like())
    assert [r["seed"] for r in kept] == [1, 3] and line.startswith(f"seed 2: {reason}")


def test_threads_do_not_matter_on_a_card():
    rows = [row(seed) | {"device": "cuda: a card", "threads": 8} for seed in (1, 2, 3)]
    noise = measure(rows, PROFILE, like=like(device="cuda: a card", threads=1))
    assert noise["metrics"]["val_bpb"]["n"] == 3 and "threads" not in noise
    assert measure([row(1), row(2)], PROFILE, like=like())["threads"] == 1


def session_of(ledger, rows, **options):
    made = lab_case.make(bank=ledger, machine="a processor", jobs=1, **options)
    command = like_command(made.arms[0].config)
    for one in rows:
        append(ledger, one | {"profile_hash": made.profile_hash, "command": command, "tree_hash": lab_case.TREE})
    return Session(made)


def like_command(config):
    return borrower(config, DEVICE, 1, TREE)["command"]


def test_a_protocol_declares_the_bank_that_is_lent_to_it_or_why_none_is(tmp_path, monkeypatch):
    lab_case.enter(tmp_path, monkeypatch)
    rows = [row(FIRST_SEED + i, val_bpb=2.6 + 0.001 * i) for i in range(8)]
    session = session_of(tmp_path / "ledger.csv", rows)
    session.declare()
    declared = session.declaration
    assert declared.noise_source == "bank" and declared.noise.metrics["val_bpb"].nu == 7
    assert declared.noise.threads == 1 and declared.spread_test == 0.90
    monkeypatch.setenv("FAKE_TREE", "edited")  # a line of the trainer
    session = session_of(tmp_path / "ledger.csv", [], label="u")
    session.declare()
    declared = session.declaration
    assert declared.noise_source == "none" and not declared.noise.metrics
    line, = declared.noise.left_out
    assert line.startswith("seeds 900001 to 900008 (8 rows): by other code of the trainer (tree, now edited)")
    assert "; bank anew with `make noise SEEDS=8`" in line
    said = []
    announce(session, [], said.append)
    assert f"  left out of the bank: {line}" in said
    assert f"left out of the bank: {line}" in basis_lines(session.facts())


# -----------------------------------------------------------------------------
# Outliers, speed, gaps

def test_runs_on_an_overloaded_machine_lend_their_loss_and_not_their_speed():
    rows = [row(seed) | {"overloaded": seed > 5} for seed in range(1, 9)]
    noise = measure(rows, PROFILE, like=like())
    assert {metric: entry["n"] for metric, entry in noise["metrics"].items()} == {
        "val_bpb": 8, "final_train_loss": 8, "tok_per_sec": 5, "wall_time": 5}
    assert noise["left_out"] == [
        "seeds 6 to 8 (3 rows): the machine was overloaded; they lend no speed and no time"]


def naive_outlier(values, level=0.01):
    """Grubbs' test as the textbook has it."""
    n, away = len(values), [abs(x - np.mean(values)) for x in values]
    t = reference.t.isf(level / (2 * n), n - 2)
    limit = (n - 1) / math.sqrt(n) * math.sqrt(t * t / (n - 2 + t * t))
    return int(np.argmax(away)) if max(away) / np.std(values, ddof=1) > limit else -1


def test_outlier_is_the_textbooks_and_the_published_limits_hold():
    rng = np.random.default_rng(2)
    for n in (3, 5, 8, 24):
        x = rng.normal(size=(400, n))
        x[::4, 1] += 8
        assert outlier(x).tolist() == [naive_outlier(one) for one in x]
    for n, limit in ((8, 2.274), (10, 2.482)):  # Grubbs & Beck 1972, two-sided at 1 %
        x = np.array([1.0, -1.0] * ((n - 1) // 2) + [0.0] * ((n - 1) % 2) + [0.0])
        y = np.tile(x, (2000, 1))
        y[:, -1] = np.linspace(1, 12, 2000)
        furthest = abs(y - y.mean(axis=1, keepdims=True)).max(axis=1) / y.std(axis=1, ddof=1)
        assert furthest[outlier(y) < 0].max() == pytest.approx(limit, abs=0.005)
    assert (outlier(rng.normal(size=(20_000, 8))) >= 0).mean() == pytest.approx(0.01, abs=0.003)


def test_one_outlier_is_dropped_by_name_and_two_refuse_the_bank_of_that_metric():
    rows = [row(seed) for seed in range(1, 9)]
    rows[3]["val_bpb"] = 2.9
    found = bank(rows, PROFILE, "val_bpb")
    assert 4 not in found.seeds and found.nu == 6
    assert found.left_out == ["seed 4: its val_bpb is an outlier (Grubbs' test at 1%)"]
    assert measure(rows, PROFILE)["metrics"]["tok_per_sec"]["n"] == 8
    rows[6]["val_bpb"] = 2.69
    with pytest.raises(ValueError, match=r"val_bpb has more than one outlier in its bank, seeds 4, 7 .*not lent"):
        bank(rows, PROFILE, "val_bpb")
    noise = measure(rows, PROFILE)
    assert "val_bpb" not in noise["metrics"] and any("seeds 4, 7" in line for line in noise["left_out"])


def test_bank_grows_and_its_gaps_are_told():
    rows = [row(FIRST_SEED + i, val_bpb=2.6 + 0.001 * i) for i in range(8)]
    later = [row(FIRST_SEED + i, val_bpb=2.6 + 0.001 * i) for i in (8, 9, 12)]
    assert bank(rows, PROFILE, "val_bpb").nu == 7 and not bank(rows, PROFILE, "val_bpb").left_out
    found = bank([*rows, *later], PROFILE, "val_bpb")
    assert found.nu == 10
    assert found.left_out == ["missing in the bank's range 900001 to 900013: seeds 900011, 900012; "
                              "`make noise SEEDS=13` runs them"]
    assert seeds_text([5, 1, 2, 3, 9]) == "seeds 1 to 3, 5, 9 (5 rows)"
