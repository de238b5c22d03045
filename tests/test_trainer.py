"""
python -m pytest tests/test_trainer.py -q
"""

import json
import math
import os

import pytest
import torch
from filelock import FileLock

from nanochat import run_setup, trainer
from nanochat.checkpoint_manager import find_last_step, manifest_steps
from nanochat.loss import CrossEntropy
from nanochat.record import STATUSES, read_metrics, read_record
from tests.tiny import make_base
from tests.train_case import assert_same, assert_same_run, checkpoint, cli, metrics, run


@pytest.fixture
def base(base_dir):
    make_base(base_dir)
    return base_dir


# -----------------------------------------------------------------------------
# The files that a run leaves

def test_a_run_leaves_a_record_metrics_and_a_whole_checkpoint(base):
    facts = run("--model-tag=a")
    assert facts == read_record(base, "a") and facts["status"] == "ok"
    resolved, results, clocks = facts["resolved"], facts["results"], facts["clocks"]
    assert resolved["grad_accum_steps"] == 2 and resolved["num_iterations"] == results["steps"] == 12
    assert results["trained_tokens"] == 12 * 128 and results["val_bpb"] >= results["min_val_bpb"] > 0
    assert facts["config"]["seed"] == 3 and facts["device"]["kind"] == "cpu" and facts["threads"] == 1
    assert 0 < results["epochs_used"] < 1 and results["tok_per_sec_median"] > 0 and clocks["compile_sec"] is None
    assert clocks["wall_time_sec"] > clocks["eval_sec"] + clocks["save_sec"] + clocks["total_training_time"]
    rows = metrics(base, "a")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(12))
    assert [row["step"] for row in rows if "val/bpb" in row] == [0, 5, 10, 12]
    assert find_last_step(base / "base_checkpoints" / "a") == 12


def test_the_clock_counts_steps_from_the_eleventh_on_and_nothing_else(base):
    facts = run("--model-tag=a", "--num-iterations=15")
    timed = [row["train/dt"] for row in read_metrics(base / "records" / "a" / "metrics.jsonl") if row.get("train/dt")
             and row["step"] >= 11]
    assert len(timed) == 4 and math.isclose(facts["clocks"]["total_training_time"], sum(timed))
    assert math.isclose(facts["results"]["avg_tok_per_sec"], 4 * 128 / sum(timed))
    short = run("--model-tag=b", "--num-iterations=4")  # nothing was timed: empty, not 0
    assert short["results"]["tok_per_sec_median"] is None and short["results"]["avg_tok_per_sec"] is None


def test_the_logged_loss_is_the_mean_over_the_whole_step(base):
    run("--model-tag=one", "--device-batch-size=4", "--data-order=file")
    run("--model-tag=two", "--device-batch-size=2", "--data-order=file")
    one, two = ([row["train/loss"] for row in metrics(base, tag) if "train/loss" in row] for tag in ("one", "two"))
    assert one == pytest.approx(two, abs=2e-5) and one != two  # same rows, summed in another order


def test_two_equal_runs_are_bit_identical_and_another_seed_is_not(base):
    for tag, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(f"--model-tag={tag}", f"--seed={seed}")
    assert_same_run(base, "a", "b")
    first = [metrics(base, tag)[1]["train/loss"] for tag in "ac"]
    assert first[0] != first[1]


def test_a_gate_that_is_off_or_has_mix_0_changes_no_bit(base):
    run("--model-tag=a")
    run("--model-tag=b", "--no-symplectic-gate")
    run("--model-tag=c", "--symplectic-gate", "--symplectic-gate-mix=0")
    run("--model-tag=d", "--symplectic_gate_enabled", "--symplectic_gate_mix=0.4")
    assert_same_run(base, "a", "b")
    assert_same_run(base, "a", "c")
    assert metrics(base, "a") != metrics(base, "d")
    assert checkpoint(base, "d")[2]["variant"] == {"residual": "symplectic", "symplectic_gate_mix": 0.4}


# -----------------------------------------------------------------------------
# Failures

@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_applied_and_never_saved(base, monkeypatch, where):
    real, calls, seen = CrossEntropy.__call__, [], {}

    def poisoned(self, x, weight, targets, reduction):
        calls.extend([reduction] if reduction == "mean" else [])
        loss = real(self, x, weight, targets, reduction)
        if len(calls) == 10 and reduction == "mean":  # the second micro-batch of step 4
            if where == "loss":
                return loss * float("inf")
            x.register_hook(lambda grad: grad * float("nan"))
        return loss

    def remember(r):
        seen.update(run=r, weights={k: v.clone() for k, v in r.model.state_dict().items()})
        return real_set_schedule(r)
    real_set_schedule = trainer.set_schedule
    monkeypatch.setattr(CrossEntropy, "__call__", poisoned)
    monkeypatch.setattr(trainer, "set_schedule", remember)
    facts = run("--model-tag=a", "--save-every=2")
    assert facts["status"] == "diverged" and "step 4" in facts["error"] and "not applied" in facts["error"]
    assert_same(seen["weights"], dict(seen["run"].model.state_dict()))
    assert manifest_steps(base / "base_checkpoints" / "a") == [2, 4]
    for step in manifest_steps(base / "base_checkpoints" / "a"):
        model, optim, _ = checkpoint(base, "a", step)
        assert all(t.isfinite().all() for t in model.values())
        assert all(t.isfinite().all() for s in optim["state"].values() for t in s.values() if torch.is_tensor(t))
    json.loads((base / "records" / "a" / "run.json").read_text(),
               parse_constant=lambda c: pytest.fail(f"{c} in run.json"))


def test_a_diverging_run_ends_with_status_3(base):
    result = cli(base, "--model-tag=a", "--matrix-lr=1e6", "--embedding-lr=1e6", "--unembedding-lr=1e6")
    assert result.returncode == 3 and read_record(base, "a")["status"] == "diverged", result.stdout + result.stderr


def test_out_of_memory_and_a_full_disk_are_told_apart_from_a_bug(base, monkeypatch):
    def fail(error):
        def raise_it(*args, **kwargs):
            raise error
        monkeypatch.setattr(trainer, "train_step", raise_it)
        return run("--model-tag=a")["status"]
    assert fail(torch.OutOfMemoryError("CUDA out of memory")) == "oom"
    assert fail(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 "
                             "bytes")) == "oom"
    assert fail(KeyError("x")) == "crash" and set(STATUSES) > {"oom", "crash"}
    monkeypatch.undo()


def test_a_disk_that_fills_up_during_a_save_keeps_the_earlier_checkpoint(base, monkeypatch):
    real_save = torch.save

    def full(obj, f):
        real_save(obj, f)
        if os.path.basename(f.name).startswith(".model_000008"):
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full)
    facts = run("--model-tag=a", "--save-every=4")
    assert facts["status"] == "crash" and "No space left" in facts["error"]
    assert find_last_step(base / "base_checkpoints" / "a") == 4


def test_too_little_disk_and_an_unwritable_folder_fail_before_training(base, monkeypatch):
    usage = run_setup.shutil.disk_usage(base)
    monkeypatch.setattr(run_setup.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="MiB free"):
        run("--model-tag=a")
    monkeypatch.undo()
    monkeypatch.setattr(run_setup.Path, "write_bytes",
                        lambda *a: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    with pytest.raises(OSError, match="Read-only file system; set NANOCHAT_BASE_DIR"):
        run("--model-tag=a")


def test_a_second_process_on_one_tag_is_refused(base):
    (base / "base_checkpoints").mkdir()
    with FileLock(base / "base_checkpoints" / ".a.lock"):
        result = cli(base, "--model-tag=a")
    assert result.returncode == 2 and "another process is training --model-tag=a" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("flags, message", [
    (["--sede=4"], "did you mean --seed"),
    (["--total-batch-size=130"], "not a multiple"),
    (["--fp8"], "FP8"),
    (["--core-metric-every=5"], "CORE is not here yet"),
    (["--resume-from-step=5"], "model_000005.pt is missing"),
    (["--device-type=cuda"], "this machine has"),
])
def test_bad_input_is_one_line_and_status_2(base, flags, message):
    if torch.cuda.is_available() and "--device-type=cuda" in flags:
        pytest.skip("there is a CUDA device")
    result = cli(base, "--model-tag=a", *flags)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_missing_data_or_tokenizer_names_the_command_that_makes_it(base_dir):
    for expected in ("scripts.tok_train", "nanochat.dataset"):
        result = cli(base_dir)
        assert result.returncode == 2 and expected in result.stderr and "Traceback" not in result.stderr, result.stderr
        make_base(base_dir)
        for path in (base_dir / "base_data_climbmix").iterdir():
            path.unlink()


def test_more_than_one_rank_is_refused(base, monkeypatch):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="more than one rank"):
        run()


@pytest.mark.slow
def test_compiled_runs_repeat_to_the_last_bit_and_record_their_compile_time(base):
    for tag in ("a", "b"):
        torch._dynamo.reset()  # or the second run finds the first one's graphs, as another process would not
        facts = run(f"--model-tag={tag}", "--compile", "--num-iterations=5")
        assert facts["status"] == "ok" and facts["resolved"]["compile"] and facts["clocks"]["compile_sec"] > 1
    (model_a, optim_a, _), (model_b, optim_b, _) = checkpoint(base, "a", 5), checkpoint(base, "b", 5)
    assert_same(model_a, model_b)
    assert_same(optim_a["state"], optim_b["state"])
