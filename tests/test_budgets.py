"""
The wall budget and the evaluations near a target: when a run ends, how far its schedule is then, and resuming in between.
The clock of most tests is a made-up one that says half a second for every step.

python -m pytest tests/test_budgets.py -q
"""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from nanochat import trainer
from nanochat.checkpoint_manager import manifest_steps
from nanochat.record import read_metrics, read_record
from tests.tiny import make_base
from tests.train_case import assert_same, checkpoint, metrics, run

LONG = ["--num-iterations=60", "--eval-every=25"]


@pytest.fixture
def base(base_dir):
    make_base(base_dir)
    return base_dir


@pytest.fixture
def half_seconds(monkeypatch):
    """A step reads the clock when it begins and when it ends, with nothing in between: each takes half a second."""
    ticks = iter(range(10 ** 9))
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 2, monotonic=time.monotonic))


def steps_of(base, tag):
    return [row for row in read_metrics(base / "records" / tag / "metrics.jsonl") if "train/loss" in row]


def evals_of(base, tag):
    return {row["step"]: row["val/bpb"] for row in read_metrics(base / "records" / tag / "metrics.jsonl") if "val/bpb" in row}


def cut_at(monkeypatch, stop):
    """SIGTERM during this step; undone by the function that comes back."""
    original = trainer.log_step

    def log_step(r, *args):
        original(r, *args)
        if r.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(trainer, "log_step", log_step)
    return lambda: monkeypatch.setattr(trainer, "log_step", original)


# -----------------------------------------------------------------------------
# The wall budget

def test_a_wall_budget_ends_the_run_with_a_whole_warmdown(base, half_seconds):
    facts = run("--model-tag=a", *LONG, "--wall-budget-sec=10", "--final-lr-frac=0")
    results, resolved, rows = facts["results"], facts["resolved"], steps_of(base, "a")
    assert facts["status"] == "ok" and results["bound"] == "wall" and results["steps"] == len(rows) == 31  # 11 untimed and 20 x 0.5 s
    assert facts["clocks"]["total_training_time"] == 10.0
    for row in rows:
        step = row["step"]
        done = max(step / 60, max(0, step - 11) * 0.5 / 10)
        expected = (step + 1) / 2 if step < 2 else min(1.0, (1 - done) / 0.65)
        assert row["train/lrm"] == pytest.approx(expected, rel=1e-9), step
    assert rows[-1]["train/lrm"] < 0.08, "19 of 20 timed steps are done: the last one is taken at the foot of the warmdown"
    assert list(evals_of(base, "a")) == [0, 25, 31] and manifest_steps(base / "base_checkpoints" / "a") == [31]
    assert (resolved["num_iterations"], resolved["total_tokens"], resolved["horizon"]) == (31, 31 * 128, "wall_budget_sec")
    assert resolved["tau"] == pytest.approx(128 / (resolved["matrix_lr"] * resolved["weight_decay"] * 31 * 128))
    assert read_record(base, "a") == facts


def test_the_bound_that_comes_first_ends_the_run(base, half_seconds):
    assert run("--model-tag=a", *LONG, "--wall-budget-sec=24.5")["results"]["bound"] == "iterations"
    facts = run("--model-tag=b", *LONG, "--wall-budget-sec=24")
    assert (facts["results"]["bound"], facts["results"]["steps"]) == ("wall", 59)


def test_on_the_real_clock_the_budget_is_passed_by_less_than_a_step(base):
    facts = run("--model-tag=a", "--num-iterations=1000000", "--eval-every=-1", "--wall-budget-sec=0.3")
    rows = steps_of(base, "a")
    assert facts["results"]["bound"] == "wall" and rows[-1]["step"] == facts["results"]["steps"] - 1
    assert rows[-1]["total_training_time"] >= 0.3 > rows[-2]["total_training_time"]


@pytest.mark.parametrize("stop", [5, 10, 11, 12, 20, 29])
def test_a_resumed_run_goes_on_where_its_budget_was(base, half_seconds, monkeypatch, stop):
    """With steps that take equal times to the last bit; a real machine's differ, and so does then the schedule."""
    run("--model-tag=whole", *LONG, "--wall-budget-sec=10")
    go_on = cut_at(monkeypatch, stop)
    facts = run("--model-tag=cut", *LONG, "--wall-budget-sec=10")
    assert facts["status"] == "interrupted" and facts["results"]["bound"] is None and facts["resolved"]["num_iterations"] == 60
    go_on()
    facts = run("--model-tag=cut", *LONG, "--wall-budget-sec=10", "--resume")
    assert facts["resumed_from_step"] == stop + 1 and facts["results"]["bound"] == "wall"
    assert metrics(base, "cut") == metrics(base, "whole")
    again = run("--model-tag=cut", *LONG, "--wall-budget-sec=10", "--resume")
    assert again["results"]["steps"] == 31 and again["results"]["bound"] == "wall" and metrics(base, "cut") == metrics(base, "whole")


def test_the_budget_cannot_be_changed_half_way(base):
    run("--model-tag=a", "--wall-budget-sec=1e6")
    with pytest.raises(ValueError, match="other values of wall_budget_sec"):
        run("--model-tag=a", "--wall-budget-sec=2e6", "--resume")


# -----------------------------------------------------------------------------
# Near the target

def watched(base):
    """Flags of a run that comes near at its second regular validation and reaches the target after its third."""
    run("--model-tag=plain", "--num-iterations=24", "--save-every=1")
    run("--model-tag=every", "--num-iterations=24", "--eval-every=1")
    curve = evals_of(base, "every")
    crossing = next(s for s in range(11, 20) if s % 5 and curve[s] < min(curve[i] for i in range(s)))
    target = curve[crossing]
    near = max(curve[5], curve[10]) - target + 1e-6
    assert curve[0] > target + near, "far from it at the start"
    return curve, crossing, ["--num-iterations=24", f"--target-bpb={target}", "--eval-near-target=1", f"--eval-near-bpb={near}"]


def test_evals_get_denser_near_the_target_and_only_until_it_is_reached(base):
    curve, crossing, flags = watched(base)
    run("--model-tag=a", *flags)
    expected = [0, *range(5, crossing + 1), *(s for s in (15, 20, 24) if s > crossing)]
    assert evals_of(base, "a") == {s: curve[s] for s in expected}
    run("--model-tag=b", *flags, "--eval-near-target=2")
    grid = [s for s in range(25) if s in (0, 24) or s % 5 == 0 or (s > 5 and s % 2 == 0)]
    first = next(s for s in grid if curve[s] <= curve[crossing])
    assert list(evals_of(base, "b")) == [s for s in grid if s <= first or s % 5 == 0 or s == 24]


def test_watching_changes_no_weight_and_takes_none_of_the_clock(base, half_seconds):
    _, _, flags = watched(base)
    facts = run("--model-tag=a", *flags)
    plain = read_record(base, "plain")
    assert facts["clocks"]["total_training_time"] == plain["clocks"]["total_training_time"] == 13 * 0.5
    assert [row for row in metrics(base, "a") if "train/loss" in row] == [row for row in metrics(base, "plain") if "train/loss" in row]
    (model_a, optim_a, meta_a), (model_b, optim_b, meta_b) = checkpoint(base, "a", 24), checkpoint(base, "plain", 24)
    assert_same(model_a, model_b)
    assert_same(optim_a["state"], optim_b["state"])
    assert_same(meta_a["dataloader_state_dict"], meta_b["dataloader_state_dict"])


def test_a_run_resumed_at_any_step_makes_the_same_evals(base):
    _, _, flags = watched(base)
    run("--model-tag=a", *flags, "--save-every=1")
    whole = metrics(base, "a")
    for step in range(1, 25):
        run("--model-tag=a", *flags, "--save-every=1", f"--resume-from-step={step}")
        assert metrics(base, "a") == whole, step
