"""
What the table, the ledger and the leaderboard say of runs on other code.

python -m pytest tests/test_marks.py -q
"""

import pytest

from nanochat.common import REPO_ROOT
from nanochat.lab.ledger.experiments import append, read, row_of_record
from nanochat.lab.report.leaderboard import markdown
from nanochat.lab.report.text import remarks
from nanochat.lab.runs import RunSummary
from nanochat.lab.trees.marks import marks_of_row, versions_of_tree
from tests.leaderboard_case import make_row, table

PATCHES = [{"name": "seed of mine.patch", "sha256": "1a2b3c4d5e6f"}, {"name": "idea.patch", "sha256": "99aa88bb77cc"}]


def record(**changes) -> dict:
    said = {"run_id": "r", "status": "ok", "config": {"seed": 1, "depth": 2}, "versions": {"torch": "2.13.0"},
            "tree": "elsewhere/nanochat", "git_commit": "92d63d4e8bb4df75", "patches": PATCHES, "profile_hash": "p",
            "patch_hash": "1a2b3c4d5e6f+99aa88bb77cc", "command": "python -m scripts.base_train --depth=2",
            "results": {"val_bpb": 2.5, "scored_val_bpb": 2.5, "evaluator": "control", "fault": None}}
    return {**said, **changes}


def row_of(tmp_path, **changes) -> dict:
    """As the ledger gives it back."""
    append(tmp_path / "ledger.csv", row_of_record(record(**changes), [], arm="a"))
    return read(tmp_path / "ledger.csv")[-1]


def test_row_of_a_foreign_patched_tree_carries_patches_and_commit(tmp_path):
    row = row_of(tmp_path)
    assert marks_of_row(row) == "nanochat 92d63d4, seed_of_mine.patch 1a2b3c4d, idea.patch 99aa88bb"
    assert row["versions"].startswith("torch=2.13.0 ") and row["val_bpb"] == 2.5
    cells, = table(markdown([row]))
    assert cells["commits"] == "92d63d4, nanochat 92d63d4, seed_of_mine.patch 1a2b3c4d, idea.patch 99aa88bb"


def test_row_of_this_repository_carries_no_mark_and_with_a_patch_its_name(tmp_path):
    assert marks_of_row(row_of(tmp_path, tree=None, patches=[], patch_hash=None)) == ""
    here = row_of(tmp_path, tree=str(REPO_ROOT), patches=PATCHES[1:], patch_hash="99aa88bb77cc")
    assert marks_of_row(here) == "idea.patch 99aa88bb" and "nanochat=" not in here["versions"]
    assert marks_of_row(make_row(patch_hash="abcdef0123")) == "patch abcdef01", "an older row has only the hash"
    assert versions_of_tree({}) == {} and marks_of_row(make_row()) == ""


@pytest.mark.parametrize("results, mark", [
    ({"val_bpb": 2.0, "evaluator": "own"}, "own evaluator"),
    ({"val_bpb": 2.0, "scored_val_bpb": 2.5, "evaluator": "control", "fault": "the model looks ahead"},
     "refused by the control's evaluator")])
def test_a_run_that_was_not_scored_or_has_a_fault_never_ranks(tmp_path, results, mark):
    row = row_of(tmp_path, results=results)
    assert row["val_bpb"] is None and marks_of_row(row).endswith(mark)
    text = markdown([row, make_row("b", bpb=2.9, profile_hash="p", device=row["device"])])
    assert [cells["arm"] for cells in table(text)] == ["b", "a"]


def test_table_of_a_protocol_marks_its_runs():
    run = RunSummary(arm="a", run_status="ok", val_bpb=2.0, candidate="--depth=4")
    tree = "tree=x patch=y"
    assert remarks(run) == []
    assert remarks(RunSummary(candidate=tree, val_bpb=2.0)) == ["own evaluator"], "it is older than the score"
    assert remarks(RunSummary(candidate=tree, val_bpb=2.0, evaluator="control", reused=True)) == ["reused"]
    assert remarks(RunSummary(candidate=tree, val_bpb=2.0, evaluator="own")) == ["own evaluator"]
    assert remarks(RunSummary(candidate=tree, evaluator="control", fault="f")) == ["refused"]
