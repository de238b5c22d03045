"""
Trained weights survive whatever ends a run: a validation, a sample, a print, a logger, bad data, signals.

python -m pytest tests/test_run_save.py -q
"""

import io
import os
import signal

import pytest
import torch

from nanochat import run_eval, run_save, trainer
from nanochat.checkpoint_manager import find_last_step, is_whole, manifest_steps
from nanochat.config import TrainConfig
from nanochat.dataloader import DataLoader
from nanochat.loss import CrossEntropy
from nanochat.optim import MuonAdamW
from nanochat.record import read_record
from tests.tiny import make_base
from tests.train_case import assert_same_run, checkpoint, metrics, run


@pytest.fixture
def base(base_dir):
    make_base(base_dir)
    return base_dir


class Panic(BaseException):
    """As a tokenizer written in Rust raises it."""


def kill_self(*signums):
    for signum in signums:
        os.kill(os.getpid(), signum)


def fail_with(error):
    def fail():
        if isinstance(error, tuple):
            kill_self(*error)
        else:
            raise error
    return fail


def in_last_validation(monkeypatch, act):
    """Call act() after the first batch of the validation of step 12."""
    original = run_eval.evaluate_bpb
    monkeypatch.setattr(trainer, "validate", lambda r, last, inner=trainer.validate: (at.update(step=r.step),
                                                                                       inner(r, last))[1])
    at = {}

    def cut(model, batches, token_bytes, ranks):
        def tell():
            for i, batch in enumerate(batches):
                yield batch
                if at["step"] == 12:
                    at["batches"] = i + 1
                    act()
        return original(model, tell(), token_bytes, ranks)
    monkeypatch.setattr(run_eval, "evaluate_bpb", cut)
    return at


@pytest.mark.parametrize("error, status", [
    (torch.OutOfMemoryError("CUDA out of memory"), "oom"), (MemoryError(), "oom"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "oom"),
    (ValueError("the shard x cannot be read"), "crash"), (Panic("a million spaces"), "crash"),
    ((signal.SIGINT,), "interrupted"), ((signal.SIGINT, signal.SIGINT), "interrupted"),
    ((signal.SIGINT, signal.SIGTERM), "interrupted"), ((signal.SIGHUP,), "interrupted"),
], ids=str)
def test_a_last_validation_that_fails_or_is_stopped_costs_nothing_and_a_resume_only_validates(base, monkeypatch, error,
                                                                                              status):
    run("--model-tag=whole")
    at = in_last_validation(monkeypatch, fail_with(error))
    facts = run("--model-tag=cut")
    assert facts["status"] == status == read_record(base, "cut")["status"] and "--resume" in facts["error"]
    assert at["batches"] == 1 and find_last_step(base / "base_checkpoints" / "cut") == 12
    assert [row["step"] for row in metrics(base, "cut") if "val/bpb" in row] == [0, 5, 10]
    monkeypatch.undo()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    monkeypatch.setattr(trainer, "train_step", fail_with(AssertionError("nothing is left to train")))
    facts = run("--model-tag=cut", "--resume")
    assert facts["status"] == "ok" and facts["results"]["val_bpb"] == read_record(base, "whole")["results"]["val_bpb"]
    assert checkpoint(base, "cut")[2]["val_bpb"] == facts["results"]["val_bpb"]
    assert_same_run(base, "whole", "cut")


@pytest.mark.parametrize("error, status", [
    (ValueError("the shard x cannot be read"), "crash"), (Panic("a million spaces"), "crash"),
    (MemoryError(), "oom"), ((signal.SIGTERM, signal.SIGTERM), "interrupted")], ids=str)
def test_a_step_that_fails_in_its_middle_saves_the_step_before_and_the_resumed_run_is_bit_identical(
        base, monkeypatch, error, status):
    run("--model-tag=whole")
    real, calls = DataLoader.__next__, []

    def bad_batch(self):
        if self.order.data_order == "seed":
            calls.append(1)
            if len(calls) == 16:  # the second micro-batch of step 7
                fail_with(error)()
        return real(self)
    monkeypatch.setattr(DataLoader, "__next__", bad_batch)
    facts = run("--model-tag=cut")
    assert facts["status"] == status and facts["results"]["steps"] == 7
    assert "step 7 is saved: go on with --resume" in facts["error"]
    assert manifest_steps(base / "base_checkpoints" / "cut") == [7]
    monkeypatch.setattr(DataLoader, "__next__", real)
    assert run("--model-tag=cut", "--resume")["resumed_from_step"] == 7
    assert_same_run(base, "whole", "cut")


def test_a_step_that_is_half_applied_is_not_saved(base, monkeypatch):
    real, calls = MuonAdamW.step, []

    def half(self):
        calls.append(1)
        if len(calls) == 4:
            self.kinds["adamw"].step(self.param_groups[0], self.state)
            raise RuntimeError("half-way")
        real(self)
    monkeypatch.setattr(MuonAdamW, "step", half)
    assert run("--model-tag=a", "--save-every=2")["status"] == "crash"
    assert manifest_steps(base / "base_checkpoints" / "a") == [2]


def test_a_second_signal_waits_until_a_step_is_applied_and_a_third_does_not(base, monkeypatch):
    real = MuonAdamW.step

    def interrupted(self):
        kill_self(*[signal.SIGINT] * asked)
        real(self)
    monkeypatch.setattr(MuonAdamW, "step", interrupted)
    for asked, saved in ((2, [1]), (3, [])):
        facts = run(f"--model-tag=t{asked}")
        assert facts["status"] == "interrupted" == read_record(base, f"t{asked}")["status"]
        assert manifest_steps(base / "base_checkpoints" / f"t{asked}") == saved


def test_weights_that_are_not_finite_are_never_saved(base, monkeypatch):
    real = MuonAdamW.step

    def overflow(self):
        real(self)
        self.param_groups[0]["params"][0].data[0, 0] = float("inf")
    monkeypatch.setattr(MuonAdamW, "step", overflow)
    facts = run("--model-tag=a", "--num-iterations=1", "--eval-every=-1")
    assert facts["status"] == "diverged" and "not finite" in facts["error"]
    assert manifest_steps(base / "base_checkpoints" / "a") == []


def test_a_run_that_diverges_keeps_what_it_saved_before_and_else_saves_its_last_finite_step(base, monkeypatch):
    real, calls = CrossEntropy.__call__, []

    def poisoned(self, x, weight, targets, reduction):
        calls.extend([reduction] if reduction == "mean" else [])
        return real(self, x, weight, targets, reduction) * (float("inf") if len(calls) == 10 else 1)
    monkeypatch.setattr(CrossEntropy, "__call__", poisoned)
    for flags, saved in ((("--save-every=3", "--keep-last=1"), [3]), ((), [4])):
        calls.clear()
        assert run(f"--model-tag=a{len(flags)}", *flags)["status"] == "diverged"
        assert manifest_steps(base / "base_checkpoints" / f"a{len(flags)}") == saved


def test_the_result_is_put_into_the_meta_file_and_the_step_is_whole_at_every_moment(base, monkeypatch):
    folder, whole, real = base / "base_checkpoints" / "a", [], os.replace

    def replace(source, target):
        real(source, target)
        if saved:
            whole.append(is_whole(folder, 12))
    saved = []
    monkeypatch.setattr(trainer, "save_result", lambda r: (saved.append(1), run_save.save_result(r), saved.clear()))
    monkeypatch.setattr(os, "replace", replace)
    facts = run("--model-tag=a")
    assert whole == [True, True, True] and checkpoint(base, "a")[2]["val_bpb"] == facts["results"]["val_bpb"]


# -----------------------------------------------------------------------------
# Samples, loggers, prints

def test_a_sample_that_fails_is_told_and_the_run_goes_on(base, monkeypatch, capsys):
    from nanochat.engine import Engine
    monkeypatch.setattr(Engine, "generate", lambda *args, **kwargs: fail_with(Panic("a million spaces"))())
    assert run("--model-tag=a", "--sample-every=6")["status"] == "ok"
    assert "Warning: no samples at step 12: Panic: a million spaces" in capsys.readouterr().out


def test_a_signal_stops_samples_within_a_token(base, monkeypatch):
    from nanochat.engine import Engine
    real, seen = Engine.generate, []

    def tell(*args, **kwargs):
        for token in real(*args, **kwargs):
            seen.append(token)
            kill_self(signal.SIGINT)
            yield token
    monkeypatch.setattr(Engine, "generate", tell)
    facts = run("--model-tag=a", "--sample-every=6")
    assert len(seen) == 1 and facts["status"] == "interrupted" and "--resume-from-step=6" in facts["error"]


class Broken(io.TextIOBase):
    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"),
                                   OSError(5, "Input/output error"), ValueError("I/O operation on closed file"),
                                   UnicodeEncodeError("ascii", "ü", 0, 1, "no")], ids=repr)
def test_a_stdout_that_fails_never_ends_a_run(base, monkeypatch, error):
    monkeypatch.setattr("sys.stdout", Broken(error))
    assert run("--model-tag=a", "--sample-every=6")["status"] == "ok" == read_record(base, "a")["status"]
    assert find_last_step(base / "base_checkpoints" / "a") == 12


# -----------------------------------------------------------------------------
# The clock

def test_without_any_option_a_run_loses_at_most_a_quarter_of_an_hour():
    assert TrainConfig().save_minutes == 15 and TrainConfig().keep_last == TrainConfig().save_every == -1


def test_the_clock_does_not_save_where_the_last_checkpoint_would_find_no_room(base, monkeypatch, capsys):
    usage, real = run_save.shutil.disk_usage(base), run_save.needed_bytes
    need = []
    monkeypatch.setattr(run_save, "needed_bytes", lambda r: (need.append(real(r)), need[-1])[1])
    monkeypatch.setattr(run_save.shutil, "disk_usage", lambda path: usage._replace(
        free=int(1.5 * need[-1]) if need else usage.free))
    facts = run("--model-tag=a", "--save-minutes=0.0000001", "--num-iterations=3")
    out = capsys.readouterr().out
    assert facts["status"] == "ok" and manifest_steps(base / "base_checkpoints" / "a") == [3]
    assert out.count("Not saved by the clock") == 2 and "MiB free" in out


def test_a_save_by_the_clock_that_fails_is_told_and_the_run_goes_on(base, monkeypatch, capsys):
    real = torch.save

    def full(obj, f):
        real(obj, f)
        if "model_000002" in str(f.name):
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full)
    assert run("--model-tag=a", "--save-minutes=0.0000001", "--num-iterations=3")["status"] == "ok"
    out = capsys.readouterr().out
    assert "Not saved by the clock at step 2" in out and "a checkpoint needs" in out and "step 1 is still there" in out
    assert manifest_steps(base / "base_checkpoints" / "a") == [3]
