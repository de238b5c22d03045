"""
Two runs that exist, side by side: facts, differences, common points, and what may be concluded.

python -m pytest tests/test_two_runs.py -q
"""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nanochat.common import REPO_ROOT
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.any_run import differences, find
from nanochat.lab.ledger.banked import Bank
from nanochat.lab.report import conclusions as conclude
from nanochat.lab.report import two_runs
from nanochat.lab.report.conclusions import conclusions
from scripts import compare
from tests.two_runs_case import MIX, bank, pair, put, put_upstream


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "ledger.csv"


def said(a, b, ledger) -> str:
    rows = experiments.read(ledger) if ledger.exists() else []
    return " ".join(conclusions(a, b, rows))


# -----------------------------------------------------------------------------
# Any run

def test_a_run_is_found_by_tag_path_and_row(base_dir, ledger):
    folder = put(base_dir, 3, run_id="mine")
    made = json.loads((folder / "run.json").read_text())
    experiments.append(ledger, experiments.row_of_record(made, [], label="x", arm="control"))
    by_tag, by_path, by_row = (find(what, base_dir, ledger) for what in ("mine", str(folder), "row 1"))
    assert by_tag == by_path == by_row and by_row.row["label"] == "x" and by_row.row["row"] == 1
    assert [point[3] for point in by_row.curve] == [3.0, 2.8, 2.6]
    assert [point[1] for point in by_row.curve] == [0, 20 * 2048, 40 * 2048]


def test_a_row_whose_record_is_gone_keeps_its_options_and_has_no_curve(base_dir, ledger):
    bank(ledger)
    found = find("row 2", base_dir, ledger)
    assert found.options["depth"] == 4 and found.curve == [] and found.source == "row"
    assert "nothing to lay side by side" in two_runs.curves_text(found, found)


@pytest.mark.parametrize("what, message", [
    ("row 9", "row 9: expected a row from 1 to 6 of"), ("nobody", "no such path, and no run of this id"),
    ("", "expected a folder with run.json")])
def test_a_run_that_is_not_there_is_named(base_dir, ledger, what, message):
    bank(ledger)
    with pytest.raises(ValueError, match=message):
        find(what, base_dir, ledger)


def test_an_upstream_checkpoint_says_what_its_meta_files_hold(base_dir, ledger):
    found = find(str(put_upstream(base_dir)), base_dir, ledger)
    assert not found.has_record and found.steps == 1000
    assert found.curve[1] == (500, 500 * 524288, 250.0, 1.1)
    assert found.options["total_batch_size"] == 524288 and found.options["mtp"] == 2 and found.asked["mtp"] == 2
    assert found.options["quiet_start"] is False and "seed" not in found.options  # `before` is known, its seed is not


def test_a_checkpoint_beside_its_record_is_read_from_the_record(base_dir, ledger):
    put(base_dir, 3, run_id="d4")
    assert find(str(put_upstream(base_dir)), base_dir, ledger) == find("d4", base_dir, ledger)


def test_a_loss_that_is_not_finite_is_no_point(base_dir, ledger):
    folder = put_upstream(base_dir, losses=((100, 1.5), (200, float("nan")), (300, float("inf"))))
    assert [point[0] for point in find(str(folder), base_dir, ledger).curve] == [100]


def test_a_checkpoint_without_validations_has_no_curve(base_dir, ledger):
    found = find(str(put_upstream(base_dir, losses=((100, None), (200, None)))), base_dir, ledger)
    assert found.curve == [] and found.row["val_bpb"] is None


def test_only_options_that_differ_are_listed_and_what_is_off_has_no_value(base_dir, ledger):
    a, b = pair(base_dir, ledger, *MIX)
    assert differences(a, b) == ([("symplectic_gate", False, True), ("symplectic_gate_mix", None, 0.05)], [])
    assert differences(a, a) == ([], [])


def test_resolved_values_stand_where_the_user_gave_none(base_dir, ledger):
    change = {"resolved": {"num_iterations": 60, "total_batch_size": 65536, "dtype": "float32", "n_kv_head": 2,
                           "weight_decay": 0.1}}
    folder = put(base_dir, 1, run_id="a")
    made = json.loads((folder / "run.json").read_text())
    made["config"]["total_batch_size"] = -1
    (folder / "run.json").write_text(json.dumps(made | change))
    found = find("a", base_dir, ledger)
    assert found.options["total_batch_size"] == 65536 and found.asked["total_batch_size"] == -1
    assert found.options["dtype"] == "float32" and found.options["n_kv_head"] == 2
    assert found.options["weight_decay"] == 0.28 and found.options["weight_decay_scaled"] == 0.1


# -----------------------------------------------------------------------------
# Common points

def test_value_between_validations_is_that_of_numpy():
    curve = [(0, 0, 0.0, 3.0), (10, 100, 4.0, 2.5), (40, 400, 10.0, 2.0)]
    for x in (0, 5, 10, 25, 39.5, 40):
        assert two_runs.at(curve, 0, x) == pytest.approx(np.interp(x, [0, 10, 40], [3.0, 2.5, 2.0]))
    assert two_runs.at(curve, 0, 41) is None and two_runs.at(curve, 0, -1) is None


def test_common_points_are_shared_validations_where_there_are_some():
    a = [(s, s, float(s), 3 - s / 100) for s in range(0, 61, 10)]
    b = [(s, s, s + 0.5, 3 - s / 90) for s in range(0, 61, 20)]
    assert two_runs.common_points(a, b, 0) == [0, 20, 40, 60]
    assert two_runs.common_points(a, b, 2, most=99) == [0.5, 10, 20, 20.5, 30, 40, 40.5, 50, 60]
    assert len(two_runs.common_points(a, a, 0, most=3)) == 3 and two_runs.common_points(a, a, 0, most=3)[-1] == 60
    assert two_runs.common_points(a, [(99, 99, 99.0, 1.0)], 0) == []


def test_plus_means_that_b_is_better(base_dir, ledger):
    a, b = pair(base_dir, ledger, b={"values": (3.0, 2.7, 2.5)})
    text = two_runs.curves_text(a, b)
    assert "+: B is better" in text and re.search(r"40 +2.60000 +2.50000 +\+0.10000", text)
    assert "tokens" not in text  # the same batch: steps say it


# -----------------------------------------------------------------------------
# What follows

def test_difference_is_told_in_units_of_two_runs_of_one_recipe(base_dir, ledger):
    bank(ledger)
    sd = np.std([2.60, 2.61, 2.59, 2.60, 2.62, 2.58], ddof=1)
    a, b = pair(base_dir, ledger, *MIX, b={"values": (3.0, 2.8, 2.588)})
    text = said(a, b, ledger)
    assert "B ends 0.01200 bits per byte lower, so better. One seed each: " in text
    assert f"is {0.012 / (sd * 2 ** 0.5):.1f} times what two runs of one recipe differ by " \
           f"(6 banked control runs: sd {sd:.3f}), and one such pair in twenty is further apart than " \
           f"{stats.t.isf(0.025, 5):.1f} times: not shown." in text


@pytest.mark.parametrize("n", [2, 3, 8])
def test_two_runs_of_one_recipe_are_called_worth_asking_about_one_time_in_twenty(base_dir, ledger, monkeypatch, n):
    """Also with a bank of two runs, whose sd may be far too small: twice its sd would be passed by 30 % of pairs."""
    a, b = pair(base_dir, ledger, *MIX)
    rng, told = np.random.default_rng(n), []
    for _ in range(4000):
        values, (x, y) = list(rng.normal(1.0, 0.004, n)), rng.normal(1.0, 0.004, 2)
        lent = Bank(values, float(np.std(values, ddof=1)), n - 1)
        monkeypatch.setattr(conclude, "fitting_bank", lambda *args, lent=lent: (lent, None))
        runs = (replace(run, row=run.row | {"val_bpb": value}) for run, value in ((a, x), (b, y)))
        told.append("worth asking" in " ".join(conclude.difference_lines(*runs, [])))
    assert np.mean(told) == pytest.approx(0.05, abs=0.013)


def test_runs_on_two_devices_borrow_no_bank(base_dir, ledger):
    bank(ledger)
    a, b = pair(base_dir, ledger, *MIX, b={"values": (3.0, 2.8, 2.588)})
    assert "times what two runs" in said(a, b, ledger)
    b = replace(b, row=b.row | {"device": "cuda: another"})
    assert "no banked noise fits (they ran on two devices, which round differently)" in said(a, b, ledger)


def test_rows_of_the_project_are_found_and_lend(base_dir, ledger, monkeypatch):
    reference = ledger.with_name("reference.csv")
    bank(reference)
    monkeypatch.setattr(experiments, "OWN", ledger)
    monkeypatch.setattr(experiments, "REFERENCE", reference)
    assert find("row r2", base_dir, ledger).row["val_bpb"] == 2.61
    with pytest.raises(ValueError, match="row 1: expected a row from 1 to 0 of .* or from r1 to r6 of "):
        find("row 1", base_dir, ledger)
    a, b = pair(base_dir, ledger, *MIX, b={"values": (3.0, 2.8, 2.588)})
    assert "(6 banked control runs: sd " in " ".join(conclusions(a, b, experiments.read_all(ledger)))


def test_even_a_large_difference_is_no_verdict(base_dir, ledger):
    bank(ledger)
    a, b = pair(base_dir, ledger, *MIX, b={"values": (3.0, 2.8, 2.0)})
    text = said(a, b, ledger)
    assert "worth asking, and not shown by one seed each" in text
    assert not re.search(r"\b(promote|reject|verdict is)\b", text)


def test_a_bank_lends_only_by_its_own_rules(base_dir, ledger):
    a, b = pair(base_dir, ledger, *MIX, b={"values": (3.0, 2.8, 2.588)})
    assert "no banked noise fits (none is banked for this workload)" in said(a, b, ledger)
    bank(ledger, tree="0" * 64)
    assert "no banked noise fits" in said(a, b, ledger) and "by other code of the trainer" in said(a, b, ledger)


@pytest.mark.parametrize("b, sentence", [
    ({"dataset_id": "9" * 64}, "trained with other data (dddddddd and 99999999): their losses do not compare"),
    ({"change": {"tokenizer_id": "9" * 64}}, "other tokenizers (eeeeeeee and 99999999)"),
    ({"status": "running"}, "B is still going on, or was killed: it has no result to compare"),
    ({"status": "diverged"}, "B ended diverged: it has no result to compare"),
    ({"change": {"dataset_id": None}}, "B does not say its data: only with the same do the losses compare")])
def test_losses_that_do_not_compare_are_not_compared(base_dir, ledger, b, sentence):
    bank(ledger)
    text = said(*pair(base_dir, ledger, *MIX, b=b), ledger)
    assert sentence in text and "bits per byte" not in text


def test_other_validation_tokens_are_an_obstacle(base_dir, ledger):
    text = said(*pair(base_dir, ledger, "--eval-tokens=4096"), ledger)
    assert "B 4,096: their losses are of other tokens and do not compare" in text
    assert "--eval-tokens belongs to the workload" in text


def test_checkpoint_of_another_trainer_has_its_own_evaluator(base_dir, ledger):
    put(base_dir, 1, run_id="a")
    a, b = find("a", base_dir, ledger), find(str(put_upstream(base_dir)), base_dir, ledger)
    text = said(a, b, ledger)
    assert "The val_bpb of B is by the evaluator of its own trainer" in text
    assert "They have other lengths (122,880 and 524,288,000 tokens)" in text
    assert "B does not say its data and tokenizer" in text


def test_speeds_compare_on_one_device_only(base_dir, ledger):
    other = {"change": {"device": {"kind": "cpu", "name": "another"}}}
    assert "Other devices (cpu: a processor and cpu: another): speeds do not compare" in \
        said(*pair(base_dir, ledger, *MIX, b=other), ledger)


def test_same_device_at_other_times_is_said_to_be_so(base_dir, ledger):
    text = said(*pair(base_dir, ledger, *MIX), ledger)
    assert "(+0.0%; + is better)" in text and "speeds compare only within one protocol" in text


# -----------------------------------------------------------------------------
# Code, and the command

def git(folder, *args):
    return subprocess.run(["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@x", *args], check=True,
                          capture_output=True, text=True).stdout.strip()


def test_commits_of_one_repository_are_compared_by_git(base_dir, ledger, tmp_path):
    repo, commits = tmp_path / "repo", []
    (repo / "nanochat").mkdir(parents=True)
    git(repo, "init", "-q")
    for text in ("one\n", "two\nthree\n"):
        (repo / "nanochat" / "model.py").write_text(text)
        git(repo, "add", "-A")
        git(repo, "commit", "-qm", text.strip().replace("\n", " "))
        commits.append(git(repo, "rev-parse", "HEAD"))
    versions = [{"git_commit": commit, "tree_hash": str(i) * 64} for i, commit in enumerate(commits)]
    a, b = pair(base_dir, ledger, a={"change": versions[0]}, b={"change": versions[1]})
    text = two_runs.code_text(a, b, repo)
    assert "nanochat/model.py | 3 ++-" in text and "1 file changed" in text
    assert "is not in this repository" in two_runs.code_text(a, b, REPO_ROOT)


def test_same_code_is_said_to_be_the_same_and_a_patch_is_named(base_dir, ledger):
    a, b = pair(base_dir, ledger)
    assert two_runs.code_text(a, b, REPO_ROOT) == "code: the same (ffffffff)"
    put(base_dir, 1, run_id="c", change={"patch_hash": "7" * 64})
    assert "B ran with the patch 77777777" in two_runs.code_text(a, find("c", base_dir, ledger), REPO_ROOT)


def test_page_of_a_real_command(base_dir, ledger, capsys):
    bank(ledger)
    pair(base_dir, ledger, *MIX, b={"values": (3.0, 2.8, 2.588)})
    assert compare.main(["a", "b", f"--ledger={ledger}"]) == 0
    text = capsys.readouterr().out
    for part in ("options that differ", "code: the same", "val_bpb at common points", "what follows",
                 "the comparison that would answer\n  make protocol"):
        assert part in text
    assert max(len(line) for line in text.splitlines() if "make protocol" not in line) <= 120
    assert compare.main(["a", "nobody", f"--ledger={ledger}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_needs_no_run():
    command = [sys.executable, "-m", "scripts.compare", "--help"]
    run = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "row N" in run.stdout
