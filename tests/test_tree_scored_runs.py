"""
Runs of trees, from their order to the score in their record, with the real trainer on a tiny base.

python -m pytest tests/test_tree_scored_runs.py -q
"""

import os
import shutil
from dataclasses import asdict

import pytest

from nanochat.common import REPO_ROOT, read_json, write_json
from nanochat.config import parse
from nanochat.lab.runs import RunSummary
from nanochat.lab.trees import run as tree_run
from nanochat.lab.trees.orders import reader_hash
from nanochat.lab.trees.score import add_score
from nanochat.record import read_record, record_dir
from tests.test_tree_score import copy_of_this
from tests.tiny import TRAIN_FLAGS, make_base

FLAGS = [*TRAIN_FLAGS, "--model-tag=cell"]


def write_order(base, tree, **changes) -> str:
    config = parse(FLAGS)
    facts = {"model_tag": "cell", "config": asdict(config), "config_hash": "c", "tree_hash": None, "patch_hash": "p",
             "device": {"kind": "cpu", "name": "a"}, "tree": str(tree), "git_commit": "0" * 40, "dirty": False}
    order = {"home": str(base), "tag": "cell", "tree": str(tree), "argv": FLAGS, "environment": {},
             "keeps_record": True, "can_resume": True, "facts": facts, "resume": False} | changes
    write_json(base / "order.json", order)
    return str(base / "order.json")


@pytest.fixture
def place(tmp_path, monkeypatch):
    make_base(tmp_path / "base")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr(tree_run, "_if_edited", lambda order, facts: facts)
    monkeypatch.setattr(tree_run, "Stop", type("Stop", (), {"asked_at": None}))  # pytest keeps its signals
    return tmp_path / "base"


@pytest.mark.slow
def test_a_patched_evaluation_changes_no_val_bpb_and_is_named(place, tmp_path):
    """A patch that multiplies its own bpb by 0.99. Training without it gives the value that is compared."""
    tree = copy_of_this(tmp_path / "tree", ("nanochat/loss_eval.py", "return nats /", "return 0.99 * nats /"))
    shutil.copytree(REPO_ROOT / "scripts", tree / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    assert tree_run.main([write_order(place, tree)]) == 0
    record = read_record(place, "cell")
    shutil.rmtree(place / "base_checkpoints")
    shutil.rmtree(place / "records")
    assert tree_run.main([write_order(place, REPO_ROOT)]) == 0
    honest = RunSummary.of_record(read_record(place, "cell"))
    assert record["results"]["scored_val_bpb"] == pytest.approx(honest.val_bpb, rel=1e-6)
    assert record["results"]["val_bpb"] == pytest.approx(0.99 * honest.val_bpb, rel=1e-6)
    assert honest.fault is None and honest.evaluator == "control" and honest.val_bpb == honest.tree_val_bpb
    run = RunSummary.of_record(record)
    assert run.val_bpb is None and run.fault.startswith("the tree reports val_bpb")
    assert run.final_train_loss == honest.final_train_loss


def old_record(base, **changes):
    """Of a complete run, as a version left it that did not score."""
    facts = {"status": "ok", "config_hash": "c", "run_id": "cell", "results": {"val_bpb": 2.0, "steps": 12}}
    write_json(record_dir(base, "cell") / "run.json", facts | changes)


def no_training(*args):
    raise AssertionError("it was trained again")


def test_a_complete_run_of_an_earlier_version_is_scored_and_not_trained_again(place, tmp_path, monkeypatch):
    monkeypatch.setattr(tree_run, "train", no_training)
    old_record(place)
    (tmp_path / "tree").mkdir()
    assert tree_run.main([write_order(place, tmp_path / "tree", resume=True)]) == 0
    assert read_record(place, "cell")["results"] == {"val_bpb": 2.0, "steps": 12, "evaluator": "own"}


@pytest.mark.parametrize("changes, order", [({"config_hash": "other"}, {"resume": True}), ({}, {"resume": False}),
                                            ({"results": {"evaluator": "own"}}, {"resume": True})])
def test_another_run_or_a_fresh_one_is_trained(place, tmp_path, monkeypatch, changes, order):
    monkeypatch.setattr(tree_run, "train", no_training)
    old_record(place, **changes)
    with pytest.raises(AssertionError, match="trained again"):
        tree_run.main([write_order(place, tmp_path / "tree", **order)])


def test_a_tree_cannot_say_of_itself_that_it_was_scored(place, tmp_path):
    said = {"status": "ok", "results": {"val_bpb": 1.0, "scored_val_bpb": 1.0, "evaluator": "control", "fault": None}}
    order = read_json(write_order(place, tmp_path))
    order["facts"]["config"]["eval_every"] = -1
    assert add_score(order, said, None) == {"results": {"val_bpb": 1.0}}


def test_a_stop_while_it_is_scored_interrupts_the_run(place, tmp_path):
    """The same command goes on from the last checkpoint, and scores it."""
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat" / "checkpoint_manager.py").write_text("import time\ntime.sleep(60)\n")
    order = {**read_json(path := write_order(place, tmp_path)), "path": path}
    asked = type("Stop", (), {"asked_at": 1.0})
    added = add_score(order, {"status": "ok", "results": {"val_bpb": 2.0, "steps": 12}}, asked)
    assert added["status"] == "interrupted" and "the same command goes on" in added["error"]


def test_code_that_scores_is_part_of_what_a_protocol_watches(monkeypatch):
    started = []
    monkeypatch.setattr("nanochat.lab.trees.orders.tree_hash", lambda start: started.append(start) or start)
    arm = type("Arm", (), {"tree_id": "t"})
    assert reader_hash([arm]) and started == ["nanochat/lab/trees/run.py", "nanochat/tree_score.py",
                                              "nanochat/tree_logits.py"]
    assert all(os.path.exists(REPO_ROOT / path) for path in started)
