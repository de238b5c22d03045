"""
python -m pytest tests/test_resume.py -q
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from nanochat import run_eval, trainer
from nanochat.checkpoint_manager import find_last_step, manifest_steps
from nanochat.record import read_metrics, read_record
from tests.conftest import REPO_ROOT
from tests.tiny import TRAIN_FLAGS, make_base
from tests.train_case import assert_same_run, metrics, run


@pytest.fixture
def base(base_dir):
    make_base(base_dir)
    return base_dir


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_the_resumed_run_is_bit_identical(base, monkeypatch, signum):
    run("--model-tag=whole")
    original = trainer.log_step

    def stop_at_6(r, *args):
        original(r, *args)
        if r.step == 6:
            signal.raise_signal(signum)
    monkeypatch.setattr(trainer, "log_step", stop_at_6)
    facts = run("--model-tag=cut")
    assert facts["status"] == "interrupted" and "--resume-from-step=7" in facts["error"]
    monkeypatch.setattr(trainer, "log_step", original)
    assert run("--model-tag=cut", "--resume-from-step=7")["resumed_from_step"] == 7
    assert_same_run(base, "whole", "cut")


def test_a_signal_does_not_wait_for_a_long_validation_and_the_resumed_run_is_bit_identical(base, monkeypatch):
    run("--model-tag=whole")
    original, seen = run_eval.evaluate_bpb, []

    def interrupted(model, batches, token_bytes, ranks):
        def tell():
            for batch in batches:
                seen.append(len(seen))
                if r.step == 5:
                    signal.raise_signal(signal.SIGINT)
                yield batch
        return original(model, tell(), token_bytes, ranks)

    def validate(which, last, inner=trainer.validate):
        nonlocal r
        r = which
        return inner(which, last)
    r = None
    monkeypatch.setattr(trainer, "validate", validate)
    monkeypatch.setattr(run_eval, "evaluate_bpb", interrupted)
    facts = run("--model-tag=cut")
    at_0, in_all = len(r.val_batches), len(seen)
    assert facts["status"] == "interrupted" and "--resume-from-step=5" in facts["error"]
    assert in_all == at_0 + 1 and [row["step"] for row in metrics(base, "cut") if "val/bpb" in row] == [0]
    monkeypatch.undo()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    assert run("--model-tag=cut", "--resume")["resumed_from_step"] == 5
    assert_same_run(base, "whole", "cut")


def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(base):
    run("--model-tag=whole", "--symplectic-gate")
    flags = ["--model-tag=cut", "--symplectic-gate", "--save-every=3", "--keep-last=2"]
    log = base / "records" / "cut" / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "scripts.base_train", *TRAIN_FLAGS, *flags], cwd=REPO_ROOT,
                               stdout=subprocess.DEVNULL, env={**os.environ, "NANOCHAT_BASE_DIR": str(base)})
    while process.poll() is None and not any(row["step"] >= 7 for row in read_metrics(log)):
        time.sleep(0.002)
    process.kill()
    process.wait()
    with open(log, "a") as f:
        f.write('{"step": 8, "train/lo')  # a torn last line
    facts = run(*flags, "--resume")
    assert facts["status"] == "ok" and facts["resumed_from_step"] in (6, 9)
    assert_same_run(base, "whole", "cut")
    assert manifest_steps(base / "base_checkpoints" / "cut") == [9, 12]


def test_resume_without_a_checkpoint_starts_anew_and_a_finished_run_ends_at_once(base):
    assert run("--model-tag=a", "--resume")["resumed_from_step"] is None
    before = metrics(base, "a")
    facts = run("--model-tag=a", "--resume")
    assert facts["status"] == "ok" and facts["resumed_from_step"] == 12 and metrics(base, "a") == before


def test_a_fresh_start_moves_the_earlier_run_aside(base, capsys):
    run("--model-tag=a")
    run("--model-tag=a", "--num-iterations=3")
    folder = base / "base_checkpoints"
    assert find_last_step(folder / "a.1") == 12 and find_last_step(folder / "a") == 3
    assert read_record(base, "a.1")["results"]["steps"] == 12 and read_record(base, "a")["results"]["steps"] == 3
    assert "Moved the earlier" in capsys.readouterr().out


def test_resuming_with_other_options_is_refused_by_name(base):
    run("--model-tag=a", "--save-every=6")
    with pytest.raises(ValueError, match="other values of matrix_lr, num_iterations"):
        run("--model-tag=a", "--resume-from-step=6", "--num-iterations=20", "--matrix-lr=0.5")


def test_save_minutes_saves_by_the_clock_and_each_such_save_gives_way_to_the_next(base, capsys):
    run("--model-tag=a", "--save-minutes=0.0000001", "--save-every=5")
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("Saved step")] == \
        [str(step) for step in range(1, 13)]
    assert manifest_steps(base / "base_checkpoints" / "a") == [5, 10, 12]  # those that were asked for by step, the last
    run("--model-tag=b", "--save-minutes=0.0000001", "--keep-last=2")
    assert manifest_steps(base / "base_checkpoints" / "b") == [11, 12]
