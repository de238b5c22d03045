"""
Cells of arms on other trees: run, read, reused, resumed; with a made-up nanochat (tests/tree_case.py) through the
protocol.

python -m pytest tests/test_orders.py -q
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from nanochat.common import REPO_ROOT, read_json
from nanochat.lab.csv_file import read_rows
from nanochat.lab.protocol import session
from nanochat.lab.protocol.executor import ask_to_stop
from nanochat.lab.protocol.protocol import run
from tests.lab_case import HISTORY
from tests.tree_case import (
    BETTER,
    COMMON,
    CONTROL,
    checkpoints,
    commit,
    curve_of,
    enter_with_tree,
    git,
    make,
    make_patch,
    meta,
    plan,
    record_of,
    snapshot,
    starts,
    write,
)

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="no git")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter_with_tree(tmp_path, monkeypatch)


def test_patched_arms_of_another_tree_run_and_are_compared(capsys):
    before = snapshot(Path("tree"))
    assert run(make(CONTROL, BETTER)) == 0
    facts = read_json("results/t_latest.json")
    assert [(r["arm"], r["seed"], r["run_status"]) for r in facts["runs"]] == \
        [(arm, seed, "ok") for seed in (1, 2) for arm in ("control", "better")]
    # LOSS - 0.01 step + 0.001 seed
    assert [r["val_bpb"] for r in facts["runs"]] == pytest.approx([2.801, 2.551, 2.802, 2.552])
    assert [d["candidate_minus_control_bpb"] for d in facts["deltas"]] == pytest.approx([-0.25, -0.25])
    assert snapshot(Path("tree")) == before and git("tree", "status", "--porcelain") == ""
    head = git("tree", "rev-parse", "HEAD").strip()
    trees = facts["provenance"]["trees"]
    assert facts["provenance"]["upstream_commit"] == head == trees["better"]["git_commit"]
    assert [p["name"] for p in trees["better"]["patches"]] == ["seed.patch", "better.patch"]
    assert len(trees["control"]["patches"]) == 1


def test_record_is_made_from_the_meta_files_and_the_rest_is_null():
    run(make(CONTROL, seeds=[3]))
    record = record_of("control_s3")
    assert curve_of("control_s3") == [(10, 0.0, pytest.approx(2.903)), (20, 4.5, pytest.approx(2.803))]
    results = record["results"]
    assert results["val_bpb"] == pytest.approx(2.803)
    assert results["final_train_loss"] == pytest.approx(2.0)  # the EMA's bias taken out
    assert results["avg_tok_per_sec"] == pytest.approx(9 * 2048 / 4.5) and results["trained_tokens"] == 20 * 2048
    assert results["dt_median_ms"] == pytest.approx(500.0)
    assert results["tok_per_sec_median"] == pytest.approx(2048 / 0.5)
    assert results["peak_mem_mib"] is None and record["device"]["name"] and record["clocks"]["compile_sec"] is None
    assert record["status"] == "ok" and record["resolved"]["num_iterations"] == 20
    assert record["clocks"]["wall_time_sec"] > 0
    assert record["git_commit"] == git("tree", "rev-parse", "HEAD").strip()
    assert record["dirty"] is False and record["patch_hash"]
    assert record["command"].startswith("TORCHDYNAMO_DISABLE=1 NANOCHAT_DTYPE=float32 python -m scripts.base_train ")


def test_profile_arrives_in_the_trees_own_flags_and_environment(monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "bfloat16")
    run(make("control: tree=tree patch=seed.patch flags=--experts=2 --matrix_lr=0.5", seeds=[3]))
    found = meta("control_s3", 20)
    said = found["user_config"]
    assert (said["depth"], said["max_seq_len"], said["core_metric_every"], said["warmup_steps"]) == (4, 256, -1, 5)
    assert (said["experts"], said["matrix_lr"], said["seed"], said["save_every"]) == (2, 0.5, 3, 10)
    assert found["environment"]["NANOCHAT_DTYPE"] == "float32" and found["environment"]["TORCHDYNAMO_DISABLE"] == "1"
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    run(make("control: tree=tree patch=seed.patch", seeds=[4], common=[*COMMON[:-1], "--compile", "--dtype=auto"]))
    variables = meta("control_s4", 20)["environment"].keys()
    assert not {"NANOCHAT_DTYPE", "TORCHDYNAMO_DISABLE"} & variables  # as the options say, not the shell


def test_tree_runs_its_own_scripts_whatever_is_on_the_path(monkeypatch):
    """Its scripts/ has no __init__.py, as upstream's; ours, which has one, would win."""
    monkeypatch.setenv("PYTHONPATH", f"{REPO_ROOT}{os.pathsep}elsewhere")
    assert run(make(CONTROL, seeds=[3])) == 0
    assert meta("control_s3", 20)["environment"]["PYTHONPATH"] == "elsewhere"


def test_what_nobody_said_stays_the_trees_own_default():
    run(make(CONTROL, seeds=[3]))
    assert meta("control_s3", 20)["user_config"]["matrix_lr"] == 1.0  # ours is another


def test_bank_of_this_repository_is_no_bank_of_another(monkeypatch, tmp_path):
    def no_bank(*args, **kwargs):
        raise AssertionError("the bank was asked")
    monkeypatch.setattr(session, "banked_runs", no_bank)
    assert run(make(CONTROL, BETTER, ledger=tmp_path / "experiments.csv")) == 0
    assert read_json("results/t_latest.json")["declaration"]["noise_source"] == "none"


@pytest.mark.slow
def test_complete_cells_are_reused_and_others_not():
    run(make(CONTROL, BETTER))
    assert run(make(CONTROL, BETTER)) == 0 and len(read_rows(HISTORY)) == 4
    run(make(CONTROL, BETTER + " flags=--experts=1"))
    assert [row["run_tag"] for row in read_rows(HISTORY)[4:]] == ["nc_t_d4_better_s1", "nc_t_d4_better_s2"]
    assert read_rows(HISTORY)[4]["resumed_from_step"] == ""
    run(make(CONTROL, BETTER + " flags=--experts=1", fresh=True))
    assert len(read_rows(HISTORY)) == 10


def test_curve_of_an_older_run_of_the_tag_is_set_aside():
    run(make(CONTROL, seeds=[3]))
    run(make(CONTROL, seeds=[3], common=[*COMMON, "--num-iterations=10"]))
    assert [step for step, _, _ in curve_of("control_s3")] == [10]
    assert (checkpoints("control_s3.1") / "meta_000020.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how, status", [("nan", "diverged"), ("crash", "crash")])
def test_run_that_ends_badly_says_so(monkeypatch, how, status):
    plan(monkeypatch, better_s1=how)
    assert run(make(CONTROL, BETTER)) == 1
    runs = read_json("results/t_latest.json")["runs"]
    assert [r["run_status"] for r in runs] == ["ok", status, "ok", "ok"] and runs[1]["val_bpb"] is None
    if how == "crash":
        plan(monkeypatch)
        assert run(make(CONTROL, BETTER)) == 0  # it is run again: a crash says nothing about the arm


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("how, begins", [("die", 20), ("torn", 10)])
def test_killed_run_goes_on_from_its_last_whole_checkpoint(monkeypatch, how, begins):
    common = [*COMMON, "--num-iterations=30", "--keep-last=2"]
    plan(monkeypatch, control_s3=how)  # kills the whole process group: what a reboot leaves
    assert run(make(CONTROL, seeds=[3], common=common)) == 1
    assert record_of("control_s3")["status"] == "running"
    plan(monkeypatch)
    assert run(make(CONTROL, seeds=[3], common=common)) == 0
    assert starts("control_s3") == [0, begins] and record_of("control_s3")["resumed_from_step"] == begins
    assert [step for step, _, _ in curve_of("control_s3")] == [10, 20, 30]
    assert read_rows(HISTORY)[-1]["resumed_from_step"] == str(begins)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_killed_run_of_other_code_is_begun_anew(monkeypatch):
    plan(monkeypatch, better_s3="die")
    run(make(CONTROL, BETTER, seeds=[3], common=[*COMMON, "--num-iterations=30"]))
    plan(monkeypatch)
    run(make(CONTROL, "better: tree=tree patch=better.patch patch=seed.patch", seeds=[3],
             common=[*COMMON, "--num-iterations=30"]))
    assert starts("better_s3") == [0]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_timeout_stops_the_trainer_too_and_it_goes_on_later(monkeypatch):
    plan(monkeypatch, control_s3="wait")
    start = time.monotonic()
    assert run(make(CONTROL, seeds=[3], timeout_sec=3)) == 1 and time.monotonic() - start < 40
    assert read_json("results/t_latest.json")["runs"][0]["run_status"] == "timeout"
    plan(monkeypatch)
    assert run(make(CONTROL, seeds=[3])) == 0 and starts("control_s3") == [0, 10]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_wrapper_that_is_killed_takes_the_trainer_with_it(monkeypatch):
    plan(monkeypatch, control_s3="wait")
    made = make(CONTROL, seeds=[3])
    attempt = session.Session(made).executor.submit(made.cells[0])
    checkpoint = made.home / "base_checkpoints" / made.cells[0].tag / "optim_000010_rank0.pt"
    while not checkpoint.with_name("beat").exists():
        time.sleep(0.02)
    attempt.job.send_signal(signal.SIGSTOP)  # it does not listen
    ask_to_stop([attempt.job], grace_sec=0.2)
    beat = checkpoint.with_name("beat").read_text()
    time.sleep(0.5)
    assert checkpoint.with_name("beat").read_text() == beat


def test_only_the_newest_weights_stay_and_every_meta_file():
    run(make(CONTROL, seeds=[3], common=[*COMMON, "--num-iterations=40"]))  # smoke-cpu keeps one
    folder = checkpoints("control_s3")
    assert len(list(folder.glob("meta_*"))) == 4
    assert [p.name for p in sorted(folder.glob("*.pt"))] == ["model_000040.pt", "optim_000040_rank0.pt"]


def test_run_without_validation_has_no_curve_and_no_bpb():
    common = [word for word in COMMON if not word.startswith("--eval-every")]
    assert run(make(CONTROL, seeds=[3], common=[*common, "--eval-every=-1"])) == 0
    record = record_of("control_s3")
    assert curve_of("control_s3") == [] and record["results"]["min_val_bpb"] is None


# -----------------------------------------------------------------------------
# This repository with a patch

@pytest.fixture
def own(tmp_path, monkeypatch):
    """A tree whose trainer keeps records: the library of this repository and the stand-in of its trainer."""
    repo = tmp_path / "own"
    for name in ("nanochat", "tests"):
        shutil.copytree(REPO_ROOT / name, repo / name, ignore=shutil.ignore_patterns("__pycache__", "lab", "*.json"))
    write(repo / "scripts/__init__.py", "")
    write(repo / "scripts/base_train.py", "import os\nfrom nanochat.code_identity import tree_hash\n"
          "os.environ['FAKE_TREE'] = tree_hash()\nfrom tests import fake_trainer\n# here\nimport sys\n"
          "print('argv', *sys.argv)\nsys.exit(fake_trainer.main())\n")
    git(repo.parent, "init", "--quiet", "own")
    commit(repo, "own")
    make_patch(repo, tmp_path / "own.patch", ("scripts/base_train.py", "# here", "old = fake_trainer.val_bpb\n"
               "fake_trainer.val_bpb = lambda config, step: old(config, step) - 0.5\n"))
    return repo


def test_tree_that_keeps_records_gets_the_hash_of_the_cell(own):
    assert run(make("better: tree=own patch=own.patch", seeds=[1])) == 0
    runs = read_json("results/t_latest.json")["runs"]
    assert runs[1]["val_bpb"] == pytest.approx(runs[0]["val_bpb"] - 0.5)
    record = record_of("better_s1")
    assert record["config_hash"] == make("better: tree=own patch=own.patch", seeds=[1]).cells[1].config_hash
    assert record["patch_hash"] and record["dirty"] is False
    assert record["profile_hash"] == record_of("control_s1")["profile_hash"]
    assert run(make("better: tree=own patch=own.patch", seeds=[1])) == 0 and len(read_rows(HISTORY)) == 2  # both reused


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_tree_that_keeps_records_resumes_by_itself_and_only_its_own_run(own, monkeypatch):
    monkeypatch.setenv("FAKE_PLAN", json.dumps({"nc_t_d4_better_s1": "crash"}))
    assert run(make("better: tree=own patch=own.patch", seeds=[1])) == 1
    monkeypatch.setenv("FAKE_PLAN", "{}")
    assert run(make("better: tree=own patch=own.patch", seeds=[1])) == 0
    assert read_rows(HISTORY)[-1]["run_status"] == "ok" and "--resume" in last_argv("better_s1")
    monkeypatch.setenv("FAKE_PLAN", json.dumps({"nc_t_d4_better_s1": "crash"}))
    run(make("better: tree=own", seeds=[1]))
    monkeypatch.setenv("FAKE_PLAN", "{}")
    run(make("better: tree=own patch=own.patch", seeds=[1]))
    assert "--resume" not in last_argv("better_s1")


def last_argv(cell):
    lines = Path(f"results/t/nc_t_d4_{cell}.log").read_text().splitlines()
    return [line for line in lines if line.startswith("argv ")][-1].split()


def test_main_tree_is_never_touched(own):
    before = snapshot(own)
    run(make("better: tree=own patch=own.patch", seeds=[1]))
    assert snapshot(own) == before and git(own, "status", "--porcelain") == ""


