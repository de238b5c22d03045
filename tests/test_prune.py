"""
What lies on the disk, what refers to what, and what may go: nothing that a verdict, a resume or a user still needs.

python -m pytest tests/test_prune.py -q
"""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from filelock import FileLock

from nanochat.lab.ledger import experiments
from nanochat.lab.protocol import disk, prune
from nanochat.lab.protocol.protocol import run
from nanochat.record import read_record
from scripts import runs
from tests.lab_case import enter, make, ran
from tests.tree_case import BETTER, CONTROL, arms_of, enter_with_tree, git
from tests.two_runs_case import checkpoint, put

OLD = time.time() - 3 * 86400
CELL = "nc_mix_d4_control_s1"


def age(path, at=OLD):
    for one in [path, *(path.rglob("*") if path.is_dir() else [])]:
        os.utime(one, (at, at))
    return path


def decided(base, rows=(), **how) -> dict[str, prune.Decision]:
    return {d.item.path.name: d for d in prune.decide(disk.survey(base, list(rows)), **how)}


def going(base, **how) -> set[str]:
    return {name for name, d in decided(base, **how).items() if d.goes and d.item.kind != "lock"}


# -----------------------------------------------------------------------------
# What may go

@pytest.mark.parametrize("status, goes", [("ok", True), ("diverged", True), ("running", False), ("interrupted", False),
                                          ("crash", False), ("oom", False), ("timeout", False)])
def test_weights_of_a_cell_go_when_it_has_ended_and_not_before(base_dir, status, goes):
    put(base_dir, 1, run_id=CELL, status=status)
    folder = checkpoint(base_dir, CELL)
    assert going(base_dir) == ({CELL} if goes else set())
    prune.delete(list(decided(base_dir).values()))
    assert folder.exists() != goes and read_record(base_dir, CELL)["status"] == status


def test_a_cell_without_a_record_that_can_be_read_keeps_its_weights(base_dir):
    checkpoint(base_dir, CELL)
    assert decided(base_dir)[CELL].why == "no record says how its run ended"
    (put(base_dir, 1, run_id=CELL) / "run.json").write_text("{")
    assert not decided(base_dir)[CELL].goes


@pytest.mark.parametrize("tag", ["d12", "mine", "d12.1", "nc", "v1.2"])
def test_models_of_a_user_never_go(base_dir, tag):
    put(base_dir, 1, run_id=tag)
    folder = checkpoint(base_dir, tag)
    prune.delete(list(decided(base_dir).values()))
    assert folder.exists() and "a model of yours" in decided(base_dir)[tag].why


def test_an_earlier_start_goes_only_where_its_own_files_say_that_it_is_one(base_dir):
    put(base_dir, 1, run_id=CELL, status="running")
    checkpoint(base_dir, CELL)
    aside = checkpoint(base_dir, f"{CELL}.1", run_id=CELL)
    named_so = checkpoint(base_dir, f"{CELL}.2")  # a tag of its own, says its meta file
    prune.delete(list(decided(base_dir).values()))
    assert not aside.exists() and named_so.exists() and (base_dir / "base_checkpoints" / CELL).exists()


def test_moved_aside_model_of_a_user_stays(base_dir):
    aside = checkpoint(base_dir, "d12.1", run_id="d12")
    assert disk.survey(base_dir, [])[0].kind == "aside"
    prune.delete(list(decided(base_dir).values()))
    assert aside.exists()


def test_weights_that_are_read_again_stay(base_dir):
    lane_b, tree = "nc_lane_b_calibration_d2_control_s1", "nc_up_d4_control_s1"
    put(base_dir, 1, run_id=lane_b)
    put(base_dir, 1, run_id=tree, change={"tree": "/somewhere/nanochat"})
    checkpoint(base_dir, lane_b)
    checkpoint(base_dir, tree)
    found = decided(base_dir)
    assert "Lane B reads" in found[lane_b].why and "no score yet" in found[tree].why and not going(base_dir)
    put(base_dir, 1, run_id="nc_up_d4_control_s2", change={"tree": "/somewhere/nanochat"}, evaluator="control")
    checkpoint(base_dir, "nc_up_d4_control_s2")
    assert going(base_dir) == {"nc_up_d4_control_s2"}


def test_weights_of_another_tree_stay_until_its_record_was_taken_over(base_dir):
    put(base_dir, 1, run_id=CELL)
    checkpoint(base_dir, CELL)
    (base_dir / "tree_cells").mkdir()
    (base_dir / "tree_cells" / f"{CELL}.json").write_text("{}")
    assert "has not been taken over yet" in decided(base_dir)[CELL].why


def test_a_lock_that_is_held_protects_everything_of_its_run(base_dir):
    put(base_dir, 1, run_id=CELL)
    folder = checkpoint(base_dir, CELL)
    age(folder)
    tmp = age_file(folder / f".model_000080.pt.{2 ** 22 - 1}.tmp")
    with FileLock(base_dir / "base_checkpoints" / f".{CELL}.lock"):
        found = decided(base_dir)
        assert {found[name].why for name in (CELL, tmp.name, f".{CELL}.lock")} == {"its run is going on"}
        earlier = [prune.Decision(d.item, True, "") for d in found.values()]  # decided before the run began
        said = []
        assert prune.delete(earlier, said.append) == 0 and folder.exists() and tmp.exists()
        assert said and all("its run is going on" in line for line in said)
    prune.delete(list(decided(base_dir).values()))
    assert sorted((base_dir / "base_checkpoints").iterdir()) == []


def age_file(path):
    path.write_bytes(b"t" * 5000)
    os.utime(path, (OLD, OLD))
    return path


def test_a_run_that_began_after_the_decision_keeps_its_weights(base_dir):
    record = put(base_dir, 1, run_id=CELL) / "run.json"
    folder = checkpoint(base_dir, CELL)
    before = list(decided(base_dir).values())
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running"}))
    said = []
    assert prune.delete(before, said.append) == 0 and folder.exists() and "the same command resumes it" in said[0]


@pytest.mark.skipif(os.name == "nt", reason="there the age alone decides")
def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(base_dir):
    folder = checkpoint(base_dir, "d12")
    record = put(base_dir, 1, run_id="d12")
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = [age_file(folder / f".model_000080.pt.{dead.pid}.tmp"), age_file(folder / f".probe.{dead.pid}"),
            age_file(record / f".run.json.{dead.pid}.tmp")]
    alive = age_file(folder / f".optim_000080_rank0.pt.{os.getpid()}.tmp")
    fresh = folder / f".meta_000080.json.{dead.pid}.tmp"
    fresh.write_text("")
    prune.delete(list(decided(base_dir).values()))
    assert not any(path.exists() for path in gone) and alive.exists() and fresh.exists()
    assert (folder / "model_000060.pt").exists() and (record / "run.json").exists()


def test_age_and_label_narrow_it(base_dir):
    for label in ("mix", "other"):
        for seed in (1, 2):
            tag = f"nc_{label}_d4_control_s{seed}"
            put(base_dir, seed, run_id=tag)
            folder = checkpoint(base_dir, tag)
            if seed == 1:
                age(folder)
    assert going(base_dir, label="mix") == {"nc_mix_d4_control_s1", "nc_mix_d4_control_s2"}
    assert going(base_dir, older_than_days=2) == {"nc_mix_d4_control_s1", "nc_other_d4_control_s1"}
    assert decided(base_dir, older_than_days=2)["nc_mix_d4_control_s2"].why == "it changed less than 2 days ago"
    assert going(base_dir, label="mi") == set()


def test_a_comparison_without_a_label_is_called_protocol(base_dir):
    put(base_dir, 1, run_id="nc_d4_control_s1")
    checkpoint(base_dir, "nc_d4_control_s1")
    assert going(base_dir, label="protocol") == {"nc_d4_control_s1"}


def test_data_tokenizer_records_and_strange_files_are_no_candidates(base_dir):
    home = base_dir / "lab" / "smoke-cpu"
    for name in ("base_data_climbmix/shard_00000.parquet", "tokenizer/tokenizer.json", "notes.txt", "upstream/x.py"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    put(home, 1, run_id=CELL)
    (base_dir / "lab" / "readme").write_text("x")
    (base_dir / "link").symlink_to(home)
    assert decided(base_dir) == {}
    kinds = {item.path.name: item.kind for item in disk.survey(base_dir, [])}
    assert kinds == {"base_data_climbmix": "data", "tokenizer": "tokenizer", "notes.txt": "other", "upstream": "other",
                     CELL: "record", "readme": "other", "link": "other"}


def test_links_are_not_followed(base_dir, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"x" * 10 ** 6)
    put(base_dir, 1, run_id=CELL)
    folder = checkpoint(base_dir, CELL)
    (folder / "link").symlink_to(tmp_path / "precious")
    assert disk.size_of(folder)[0] < 10 ** 5
    prune.delete(list(decided(base_dir).values()))
    assert not folder.exists() and (tmp_path / "precious" / "file").exists()


# -----------------------------------------------------------------------------
# Worktrees

def test_worktree_of_a_patched_arm_goes_and_is_made_again(tmp_path, monkeypatch):
    enter_with_tree(tmp_path, monkeypatch)
    path = arms_of(CONTROL, BETTER)[0].tree.path
    edited, base = path / "nanochat" / "model.py", Path("base")
    assert path.name in going(base) and len(going(base)) == 2
    text = edited.read_text()
    edited.write_text("LOSS = 1\n")
    assert "was edited" in decided(base)[path.name].why
    edited.write_text(text)
    prune.delete(list(decided(base).values()))
    assert not path.exists() and not path.with_suffix(".json").exists()
    assert "trees" not in git("tree", "worktree", "list")
    assert arms_of(CONTROL, BETTER)[0].tree.path == path and edited.read_text() == text


def test_worktree_stays_while_a_run_is_going_on(tmp_path, monkeypatch):
    enter_with_tree(tmp_path, monkeypatch)
    path = arms_of(CONTROL, BETTER)[0].tree.path
    checkpoint("base", CELL)
    with FileLock(Path("base/base_checkpoints") / f".{CELL}.lock"):
        assert "a run is going on" in decided(Path("base"))[path.name].why


# -----------------------------------------------------------------------------
# After it, everything works as before

def test_finished_cells_are_reused_after_their_weights_are_gone(tmp_path, monkeypatch, capsys):
    enter(tmp_path, monkeypatch)
    made = make(ledger=Path("ledger.csv"))
    assert run(made) == 0
    for cell in made.cells:
        checkpoint(made.home, cell.tag)
    trained, rows = ran(), experiments.read("ledger.csv")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "base")
    assert runs.main(["prune", "--yes", "--ledger=ledger.csv"]) == 0
    assert not [p for p in (made.home / "base_checkpoints").iterdir() if p.is_dir()]
    capsys.readouterr()
    assert run(make(ledger=Path("ledger.csv"))) == 0
    assert "reused 4 of 4 cells" in capsys.readouterr().out and ran() == trained
    assert experiments.read("ledger.csv") == rows


# -----------------------------------------------------------------------------
# The command

def test_prune_deletes_nothing_without_yes_and_gives_the_command(base_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    put(base_dir, 1, run_id=CELL)
    folder = checkpoint(base_dir, CELL, size=2_000_000)
    assert runs.main(["prune", "--label=mix", f"--ledger={tmp_path / 'x.csv'}"]) == 0
    out = capsys.readouterr().out
    assert "6 MB can be freed. Nothing was deleted" in out and "scripts.runs prune --label=mix --yes" in out
    assert folder.exists()
    assert runs.main(["prune", "--label=mix", "--yes", f"--ledger={tmp_path / 'x.csv'}"]) == 0
    assert "deleted: 6 MB of 6 MB" in capsys.readouterr().out and not folder.exists()


@pytest.mark.parametrize("argv, message", [
    (["list", "--yes"], "--yes goes with prune"), (["prune", "--older-than=-1"], "--older-than=-1: expected days"),
    (["prune", "--older-than=nan"], "expected days"), (["prune", "--older-than=1e300"], "expected days")])
def test_bad_input_is_one_line(base_dir, capsys, argv, message):
    assert runs.main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
