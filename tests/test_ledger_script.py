"""
python -m scripts.ledger: what it shows, what it takes over, and a row that is run again from its commit.

python -m pytest tests/test_ledger_script.py -v
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nanochat.code_identity import tree_hash
from nanochat.common import to_paste, write_json
from nanochat.lab import profiles
from nanochat.lab.ledger import rerun
from nanochat.lab.ledger.experiments import append, read
from nanochat.lab.ledger.rerun import Rerun, home_of, worktree
from scripts.ledger import main
from tests.ledger_case import metrics, record, row


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "experiments.csv"


def script(ledger, *argv):
    return main([*argv, f"--ledger={ledger}"])


def store(folder: Path, made: dict, rows=()):
    folder.mkdir(parents=True)
    write_json(folder / "run.json", made)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    return folder


# -----------------------------------------------------------------------------
# Show

def test_table_is_newest_last_and_an_empty_cell_is_empty(ledger, capsys):
    for seed in (1, 2, 3):
        append(ledger, row(seed))
    assert script(ledger, "--last=2", "--columns", "row", "seed", "time_to_target_sec_measured", "git_commit") == 0
    lines = capsys.readouterr().out.splitlines()
    assert ([line.split() for line in lines[2:4]] == [["2", "2", "cccccccc"], ["3", "3", "cccccccc"]]
            and lines[4].startswith("2 rows in"))


def test_conditions_are_all_met(ledger, capsys):
    for seed in (1, 2, 3, 4):
        append(ledger, row(seed, label="t" if seed < 4 else "u"))
    assert script(ledger, "--where", "label=t", "--where", "val_bpb>2.601", "--where=seed<3", "--columns", "seed") == 0
    assert capsys.readouterr().out.splitlines()[2].strip() == "2"
    script(ledger, "--where=patch_hash=", "--columns", "seed")
    assert "4 rows that meet this" in capsys.readouterr().out
    script(ledger, "--where=label=none")
    assert capsys.readouterr().out.startswith("no rows that meet this")


def test_all_columns_can_be_shown(ledger, capsys):
    append(ledger, row(1))
    assert script(ledger, "--columns", "all") == 0
    assert "python -m scripts.base_train" in capsys.readouterr().out


@pytest.mark.parametrize("argv, message", [
    (["--where", "val_bbp<2"], "did you mean val_bpb?"), (["--where", "seed"], "expected column=value"),
    (["--where", "seed=two"], "expected a whole number"), (["--columns", "sed"], "did you mean seed?"),
    (["--last=0"], "expected 1 or more"), (["--run"], "--run goes with --rerun"),
    (["--label=a"], "--label goes with --import RUN; to show some rows: --where label=..."),
    (["--arm=a", "--rerun=1"], "--arm goes with --import"),
    (["--rerun=1"], "expected a row from 1 to 0"), (["--import", "nobody"], "no such path"),
    (["--import", "x", "--label=noise"], "never by picking runs"),
    (["--import", "x", "--arm=a b"], "expected letters")])
def test_bad_input_is_refused_by_name(ledger, capsys, argv, message):
    assert script(ledger, *argv) == 2
    assert message in capsys.readouterr().err


def test_foreign_ledger_is_refused(ledger, capsys):
    ledger.write_text("a,b\n1,2\n")
    assert script(ledger) == 2 and "other columns" in capsys.readouterr().err


# -----------------------------------------------------------------------------
# Import

def test_run_of_a_lab_home_is_imported_once(ledger, base_dir, capsys):
    store(base_dir / "lab/smoke-cpu/records/nc_t_d4_gate_s1", record(1, run_id="nc_t_d4_gate_s1"), metrics())
    assert script(ledger, "--import", "nc_t_d4_gate_s1", "--label=t", "--arm=gate") == 0
    [made] = read(ledger)
    assert (made["run_id"], made["label"], made["arm"]) == ("nc_t_d4_gate_s1", "t", "gate")
    assert (made["profile"], made["val_bpb"]) == ("smoke-cpu", 2.601)
    assert script(ledger, "--import", "nc_t_d4_gate_s1") == 2
    assert "is in" in (err := capsys.readouterr().err) and "as row 1" in err and len(read(ledger)) == 1


def test_run_is_imported_by_path_and_a_later_run_of_its_id_is_another(ledger, tmp_path):
    folder = store(tmp_path / "records/r", record(1, run_id="r"))
    assert script(ledger, "--import", str(folder / "run.json")) == 0
    write_json(folder / "run.json", record(1, run_id="r") | {"started_at": "2026-01-02"})
    assert script(ledger, "--import", str(folder)) == 0
    assert [(made["profile"], made["experiment_name"]) for made in read(ledger)] == [(None, "r")] * 2


def test_ambiguous_id_and_unfinished_run_are_refused(ledger, base_dir, capsys):
    for home in ("records", "lab/smoke-cpu/records"):
        store(base_dir / home / "r", record(1, run_id="r", status="running"))
    assert script(ledger, "--import", "r") == 2 and "2 runs have this id" in capsys.readouterr().err
    assert script(ledger, "--import", str(base_dir / "records/r")) == 2 and "has not ended" in capsys.readouterr().err
    assert (script(ledger, "--import", str(base_dir)) == 2
            and "expected a folder with run.json" in capsys.readouterr().err)


def test_upstream_checkpoint_is_imported_as_far_as_its_metas_go(ledger, base_dir):
    folder = base_dir / "base_checkpoints/d4"
    for step, bpb in ((0, 3.0), (20, 2.8), (40, 2.6)):
        write_json(folder / f"meta_{step:06d}.json", {
            "step": step, "val_bpb": bpb,
            "user_config": {"depth": 4, "max_seq_len": 256, "device_batch_size": 8, "num_iterations": 40},
            "total_batch_size": 2048,
            "loop_state": {"min_val_bpb": bpb, "smooth_train_loss": 6.0 * (1 - 0.9 ** step),
                           "total_training_time": 2.0 * step}})
    assert script(ledger, "--import", "d4", "--label=up", "--arm=control") == 0
    [made] = read(ledger)
    assert (made["run_id"], made["status"], made["val_bpb"], made["depth"], made["trained_tokens"]) == (
        "d4", "ok", 2.6, 4, 81920)
    assert made["final_train_loss"] == pytest.approx(6.0) and made["training_sec"] == 80.0
    assert made["seed"] is None and made["command"] is None and made["tok_per_sec_median"] is None
    assert script(ledger, "--import", "d4") == 2


# -----------------------------------------------------------------------------
# Run again

TRAINER = """
import json, os, pathlib, sys
options = dict(word.partition("=")[::2] for word in sys.argv[1:])
folder = pathlib.Path(os.environ["NANOCHAT_BASE_DIR"]) / "records" / options["--model-tag"]
folder.mkdir(parents=True, exist_ok=True)
bpb = {bpb} + 0.001 * int(options["--seed"])
(folder / "run.json").write_text(json.dumps(dict(
    status="ok", results=dict(val_bpb=bpb), argv=sys.argv[1:], cwd=os.getcwd(),
    threads=int(os.environ["OMP_NUM_THREADS"]), pid=os.getpid())))
"""


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """Two commits of a tree whose trainer gives 2.6 + 0.001 seed, then 2.5 + 0.001 seed."""
    if not shutil.which("git"):
        pytest.skip("no git")
    folder = tmp_path / "repo"
    (folder / "scripts").mkdir(parents=True)
    commits = []
    for bpb in (2.6, 2.5):
        (folder / "scripts/base_train.py").write_text(TRAINER.format(bpb=bpb))
        for args in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
            subprocess.run(["git", *args], cwd=folder, check=True)
        commits.append(subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True,
                                      check=True).stdout.strip())
    monkeypatch.setattr(rerun, "tree_hash", lambda root: "f" * 64)  # of the made-up rows
    return folder, commits


def again(ledger, repo, commit, **cells):
    append(ledger, row(3) | {"git_commit": commit, "val_bpb": 2.6 + 0.001 * 3, "threads": 2} | cells)
    [made] = read(ledger)
    return Rerun(made, home_of(made, ledger.parent / "base"), repo)


def test_row_is_run_at_its_commit_outside_the_tree_and_reproduces(ledger, repo):
    folder, (first, _) = repo
    made = again(ledger, folder, first)
    found = made.run()
    assert found["threads"] == 2 and Path(found["cwd"]) != folder and not Path(found["cwd"]).exists()
    assert "--model-tag=nc_t_d4_control_s3_rerun" in found["argv"] and "--seed=3" in found["argv"]
    same, lines = made.compare(found)
    assert same and lines[-1] == "reproduced: val_bpb 2.603 to the last bit"
    assert made.home == (ledger.parent / "base/lab/smoke-cpu").resolve()  # the profile's home, where its data is
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=folder, capture_output=True, text=True).stdout
    assert (len(worktrees.splitlines()) == 1
            and (folder / "scripts/base_train.py").read_text() == TRAINER.format(bpb=2.5))


def test_other_code_does_not_reproduce_and_says_by_how_much(ledger, repo):
    made = again(ledger, repo[0], repo[1][1], tree_hash="0" * 64)
    said = []
    same, lines = made.compare(made.run(said.append))
    assert not same and lines[-1] == "not reproduced: val_bpb 2.603 then, 2.503 now, a difference of -0.1"
    assert "the code of the commit is not the code of the row" in said[0]


def test_options_of_the_first_run_only_are_dropped():
    command = ("python -m scripts.base_train --depth=4 --model-tag x --resume --seed=3 "
               "--resume_from_step=9 --model_tag=y")
    assert Rerun(row(3) | {"command": command}, Path("base")).argv() == [
        "--depth=4", "--seed=3", "--model-tag=nc_t_d4_control_s3_rerun"]


def test_failed_rerun_does_not_reproduce():
    made = Rerun(row(3), Path("base"))
    same, lines = made.compare({"status": "diverged", "results": {"val_bpb": None}})
    assert not same and lines[-1] == "not reproduced: ok with val_bpb 2.603 then, diverged with None now"


def test_rerun_prints_commit_base_dir_and_command(ledger, base_dir, capsys):
    append(ledger, row(3) | {"dirty": True})
    assert script(ledger, "--rerun=1") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"git checkout {'c' * 40}  # and changes that were not committed",
        f"export NANOCHAT_BASE_DIR={(base_dir / 'lab/smoke-cpu').resolve()}",
        to_paste(row(3)["command"])]


@pytest.mark.parametrize("cells, message", [
    ({"command": None}, "row 1 has no command"), ({"git_commit": None}, "row 1 has no commit")])
def test_row_that_cannot_be_had_again_says_why(ledger, capsys, cells, message):
    append(ledger, row(3) | cells)
    assert script(ledger, "--rerun=1") == 2 and message in capsys.readouterr().err


def test_patched_row_is_refused_with_the_command_of_its_protocol(ledger, base_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiles, "prepare", lambda *args: pytest.fail("nothing may be made before it is refused"))
    made = row(3, label="t") | {"patch_hash": "abcdef0123456789"}
    append(ledger, made)
    assert script(ledger, "--rerun=1", "--run") == 2
    err = capsys.readouterr().err
    assert ("row 1 ran with a patch, and a row keeps the hash of a patch (abcdef01), not its text" in err
            and "is not of this run" in err)
    command = "python -m scripts.protocol --label=t '--arm=gate: patch=x.patch'"
    for config_hash, known in (("of a later run", False), (made["config_hash"], True)):
        run = {"run_id": made["run_id"], "config_hash": config_hash}
        write_json(tmp_path / "results/t_latest.json", {"settings": {"command": command}, "runs": [run]})
        assert script(ledger, "--rerun=1", "--run") == 2
        assert (f"\n  {to_paste(command)} --fresh\n" in capsys.readouterr().err) == known


def test_unknown_commit_is_refused(repo):
    with pytest.raises(ValueError, match="is commit 000000000000 in .* fetch it first"):
        with worktree("0" * 40, repo[0]):
            pass


def test_trainer_that_leaves_no_record_is_an_error(ledger, repo):
    made = again(ledger, repo[0], repo[1][0])
    made.row["command"] = "python -m scripts.base_train --depth=4"  # the stand-in fails without a seed
    with pytest.raises(ValueError, match="exit code 1 and left no record"):
        made.run()


def test_tree_hash_of_a_worktree_is_that_of_its_commit(repo):
    folder, (first, second) = repo
    with worktree(second, folder) as tree:
        assert tree_hash(tree) == tree_hash(folder)
    with worktree(first, folder) as tree:
        assert tree_hash(tree) != tree_hash(folder) and os.path.exists(tree)
