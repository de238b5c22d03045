"""
Cycle: what a label's file says, plateau, rollback and re-entry as functions; the walk on result files of a stand-in.

python -m pytest tests/test_cycle.py -q
"""

import math
from dataclasses import replace

import pytest

from nanochat.common import read_json, write_json
from nanochat.lab.cycle import miniseries as miniseries_module
from nanochat.lab.cycle import walk as walk_module
from nanochat.lab.cycle.miniseries import Depth, Robustness
from nanochat.lab.cycle.rules import (
    CycleRecord,
    Past,
    banked_seeds,
    common_winner,
    has_looks_left,
    label_status,
    plateau,
    reentry,
    relative_gain,
    rollback,
    winner,
)
from nanochat.lab.cycle.walk import Cycle, read_cycles, walk
from nanochat.lab.ledger import experiments
from nanochat.lab.report.result_file import ResultFile, read_results
from nanochat.manifest import DATA_FOLDER, dataset_id
from scripts import cycle as script
from tests.cycle_case import CPU, Place, entry, facts, noise_row

# -----------------------------------------------------------------------------
# One label

def test_label_without_verdicts_or_with_other_flags_is_not_finished():
    assert not label_status(None).finished and not label_status(ResultFile()).finished
    assert not label_status(facts([])).finished
    results = facts([entry("a", "promote", 0.1)], flags="--wd-multiplier=2")
    status = label_status(results, "--wd-multiplier=2 --lr-multiplier=3")
    assert not status.finished and status.why == "was run without --lr-multiplier=3"
    assert label_status(results, "--wd-multiplier=2").finished


def test_winner_is_the_promoted_one_with_the_largest_lower_bound():
    entries = [entry("a", "promote", 0.01), entry("b", "optional", 0.9), entry("c", "promote", 0.02),
               entry("d", "reject", -1)]
    status = label_status(facts(entries))
    assert status.finished and status.winner.found.candidate == "c" and status.winner.flags == "--lr-multiplier=1.3"
    assert winner([entry("a", "promote", None), entry("b", "promote", -3.0)]).candidate == "b"
    assert winner(entries[1:2]) is None
    nothing = label_status(facts([entry("a", "reject"), entry("b", "optional", 1)]))
    assert nothing.why == "nothing promoted: a reject, b optional"


@pytest.mark.parametrize("verdict, n, chance, left", [
    ("promote", 2, None, False), ("reject", 2, None, False), ("inconclusive", 5, 0.5, False),
    ("inconclusive", 4, 0.5, True), ("inconclusive", 4, None, True), ("inconclusive", 4, 0.09, False),
    (None, 0, None, True)])
def test_looks_are_left_only_for_the_undecided(verdict, n, chance, left):
    assert has_looks_left([2, 3, 4, 5], entry("a", verdict, n=n, chance_at_max=chance)) is left


def test_setting_has_to_be_promoted_at_every_length_and_counts_with_its_worst():
    both = [facts([entry("a", "promote", a), entry("b", "promote", b)]) for a, b in ((0.05, 0.02), (0.01, 0.03))]
    assert common_winner([label_status(f) for f in both], both).found.candidate == "b"  # 0.02 at least, a only 0.01
    one = [both[0], facts([entry("a", "reject"), entry("b", "inconclusive")])]
    assert common_winner([label_status(f) for f in one], one) is None


def test_relative_gain_is_a_share_of_the_control_and_never_negative():
    assert relative_gain(facts([]), entry("a", "promote", -math.log(0.97))) == pytest.approx(0.03)  # 3 % less time
    assert relative_gain(facts([], primary="val_bpb"), entry("a", "promote", 0.01)) == pytest.approx(0.005)
    assert [relative_gain(facts([]), entry("a", "reject", lo)) for lo in (-0.5, None)] == [0, 0]


# -----------------------------------------------------------------------------
# Plateau, rollback, re-entry

def cycle_of(gain, promoted=False, complete=True, label="c"):
    return CycleRecord(label, improvement=gain, promoted=promoted, complete=complete)


@pytest.mark.parametrize("cycles, reached, says", [
    ([], False, "full cycles: 0"), ([cycle_of(0.0)], False, "full cycles: 1"),
    ([cycle_of(0.0), cycle_of(0.0199)], True, "two full cycles"),
    ([cycle_of(0.0), cycle_of(0.02)], False, "gained 2%"),
    ([cycle_of(0.05), cycle_of(0.0), cycle_of(0.01)], True, "plateau"),
    ([cycle_of(0.0), cycle_of(0.0), cycle_of(0.05)], False, "gained"),
    ([cycle_of(0.0, promoted=True), cycle_of(0.0)], False, "promoted"),
    ([cycle_of(0.0), cycle_of(0.0), cycle_of(0.0, complete=False)], True, "plateau"),
    ([cycle_of(0.0), cycle_of(0.0, complete=False)], False, "full cycles: 1")])
def test_plateau_is_two_full_cycles_in_a_row_below_two_percent_and_no_promotion(cycles, reached, says):
    found, why = plateau(cycles)
    assert found is reached and says in why


def test_rollback_has_the_three_reasons_of_the_plan():
    depths = [Depth(2, "promote", "", entry("a", "promote")), Depth(4, "reject", "worse by 0.1", entry("a", "reject"))]
    good, bad = (Robustness("a", "", "", None, some) for some in (depths[:1], depths))
    assert rollback(bad) == ["cross-depth regression (depth 4: worse by 0.1)"]
    assert rollback(good) == []
    assert [r.split(":")[0] for r in rollback(good, "400 lines", "hidden state")] == [
        "complexity out of proportion", "harder to reason about"]


@pytest.mark.parametrize("past, label, seeds, refused", [
    ("reject", "old", [7, 8], "comes back under a new label"), ("reject", "new", [2, 7], "on seeds 2 too"),
    ("reject", "new", [7, 8], None), ("inconclusive", "new", [1, 2], None), ("promote", "old", [1, 2], None)])
def test_rejected_candidate_comes_back_with_a_new_label_and_new_seeds(past, label, seeds, refused):
    earlier = [Past("old", "--a=1 --b", [1, 2], past)]
    found = reentry(earlier, label, "--b --a=1", seeds)
    assert (refused in found[0]) if refused else found == []
    assert reentry(earlier, label, "--a=2 --b", seeds) == []


def test_deferred_architecture_waits_for_a_plateau():
    assert "deferred until there is a plateau" in reentry([], "new", "--moe", [1], deferred=True)[0]
    assert reentry([], "new", "--moe", [1], deferred=True, at_plateau=True) == []


# -----------------------------------------------------------------------------
# The bank

def test_bank_counts_the_control_runs_of_this_profile_with_these_flags():
    rows = [noise_row(1), noise_row(1), noise_row(2, "--device-batch-size=4", "--model-tag=x"),
            noise_row(3, "--num-iterations=30"), noise_row(4, status="crash"), noise_row(5, arm="a"),
            noise_row(6, label="x"), noise_row(7, profile="smoke-16gb")]
    assert banked_seeds(rows, CPU, "") == {1, 2}
    assert banked_seeds(rows, CPU, "--num-iterations=30") == {3}


# -----------------------------------------------------------------------------
# The walk

@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(walk_module, "FUSION_FLAGS", ("fused_rmsnorm",))
    # The stand-in sets verdicts by hand, without runs: they cannot be replayed.
    for module in (walk_module, miniseries_module):
        monkeypatch.setattr(module, "read_judged", read_results)
    return Place(tmp_path)


def test_an_edited_file_is_no_finished_label(tmp_path):
    """It is run again, which reuses the complete runs and writes the file anew."""
    write_json(tmp_path / "c_warmdown_latest.json", facts([entry("w", "promote", 0.1)], label="c_warmdown").to_json())
    cycle = Cycle("c", CPU, "", [2], ["2"], tmp_path, tmp_path / "ledger.csv", 2)
    assert read_results(tmp_path / "c_warmdown_latest.json").verdicts[0].verdict == "promote"
    assert cycle.results("c_warmdown") is None


def test_walk_goes_through_all_phases_and_carries_winners_on(place):
    said = []
    record = walk(place.cycle(), place, said.append)
    assert place.commands == ["noise", "theory_slice", "warmdown", "lr_wd", "horizon", "shape", "miniseries"]
    assert record.accepted == ["--lr-multiplier=1.1", "--wd-multiplier=0.7"] and record.promoted and record.complete
    assert list(read_json(place.folder / "c_cycle.json")) == [
        "timestamp", "label", "profile", "flags", "accepted", "phases", "stopped", "complete", "improvement",
        "promoted"]
    assert record.improvement == pytest.approx(1 - math.exp(-0.04)), "what holds at every depth"
    states = {step.what: step.state for step in record.phases}
    assert states["c_batch"] == "skipped" and states["c_fusion"] == "skipped" and states["promotion"] == "open"
    assert "rounds to the same batch" in next(step.why for step in record.phases if step.what == "c_batch")
    flags = [read_results(place.folder / f"c_{name}_latest.json").settings.common_flags for name in ("lr_wd", "shape")]
    assert flags == [["--lr-multiplier=1.1"], ["--lr-multiplier=1.1", "--wd-multiplier=0.7"]]


def test_second_walk_runs_nothing(place):
    first = walk(place.cycle(), place, lambda line: None)
    place.commands.clear()
    second = walk(place.cycle(), place, lambda line: None)
    assert place.commands == [] and replace(second, timestamp="") == replace(first, timestamp="")


@pytest.mark.parametrize("spoil, last, why, complete", [
    (dict(noise=[]), "noise", "0 control runs are banked, expected 2", False),
    (dict(theory_slice=[entry("lr", "reject"), entry("wd", "inconclusive")]), "theory_slice",
     "no winner to sweep around", True),
    (dict(theory_slice=[entry("lr", None)]), "theory_slice", "no verdict yet", False),
    (dict(warmdown=[entry("w", "inconclusive", n=2)]), "warmdown", "c_warmdown has no verdict yet", False),
    (dict(miniseries_d4=[entry("bundle", "reject")]), "miniseries", "rollback to default-off", True),
    (dict(miniseries_d4=[entry("bundle", None)]), "miniseries", "depth 4: no verdict", False)])
def test_walk_stops_where_a_gate_ends_it_and_says_why(place, spoil, last, why, complete):
    place.banks = spoil.get("noise", place.banks)
    place.outcomes |= spoil
    record = walk(place.cycle(), place, lambda line: None)
    assert place.commands[-1] == last and why in record.stopped
    assert record.complete is complete and not record.promoted
    assert read_cycles(place.folder) == [record]


def test_failed_command_ends_the_walk_and_a_failed_cell_does_not(place):
    place.codes = {"theory_slice": 1, "lr_wd": 2}
    record = walk(place.cycle(), place, lambda line: None)
    assert place.commands[-1] == "lr_wd" and not record.complete
    assert "runs/lr_wd.sh ended with exit code 2" in record.stopped
    assert record.stopped.startswith("phase 2")


def test_candidate_that_was_rejected_on_the_same_seeds_is_not_carried_on(place):
    write_json(place.folder / "old_latest.json", facts(
        [entry("lr", "reject")], label="old", arms={"lr": "--lr-multiplier=1.1"}).to_json())
    said = []
    record = walk(place.cycle(), place, said.append)
    assert record.accepted == [] and any("rejected under old on seeds 1, 2, 3, 4, 5 too" in line for line in said)
    assert place.commands[-1] == "theory_slice" and record.complete


def test_dry_run_prints_every_step_and_leaves_nothing_behind(place):
    said = []
    walk(place.cycle(dry_run=True), place, said.append)
    steps = [line for line in said if line.startswith("  $")]
    assert place.commands == [] and list(place.folder.iterdir()) == []
    names = ["scripts.noise", "theory_slice.sh", "warmdown.sh", "lr_wd.sh", "horizon.sh", "shape.sh",
             "scripts.miniseries"]
    assert len(steps) == len(names) and all(name in step for name, step in zip(names, steps))


def test_cycle_on_own_text_passes_it_on_and_counts_no_bank_of_other_text(place, tmp_path):
    home = tmp_path / "lab" / "mine"
    (home / DATA_FOLDER).mkdir(parents=True)
    mine = dataset_id([], "v.parquet", "made up")
    write_json(home / DATA_FOLDER / "manifest.json", {
        "dataset_id": mine, "source": {}, "validation_shard": "v.parquet", "split_rule": "made up", "shards": []})
    for seed, data in ((1, "other"), (2, "other"), (3, mine)):
        experiments.append(place.ledger, noise_row(seed, dataset_id=data))
    said, profile = [], replace(CPU, data="mine")
    walk(place.cycle(dry_run=True, profile=profile, home=home), place, said.append)
    steps = [line for line in said if line.startswith("  $")]
    assert all("--data=mine" in step or "DATA=mine" in step for step in steps) and len(steps) == 7
    assert any("1 of 2 control runs" in line for line in said)


def test_script_says_where_it_stopped_and_what_the_cycles_come_to(place, monkeypatch, capsys):
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(script, "RESULTS_DIR", place.folder)
    monkeypatch.setattr(script, "call", place)
    place.outcomes["theory_slice"] = [entry("lr", "reject")]
    argv = ["--label=c", "--profile=smoke-cpu", "--depths=2 4", "--noise-seeds=2", f"--ledger={place.ledger}"]
    assert script.main(argv) == 0
    out = capsys.readouterr().out
    assert "phase 0, noise and baseline banked: done" in out and "stopped in phase 1, theory slice" in out
    assert "full cycles: 1" in out
    assert script.main(["--label=a/b"]) == 2 and script.main(["--depths=x"]) == 2
    assert len(experiments.read(place.ledger)) == 2
