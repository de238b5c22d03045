"""
The wall budget and the evaluations near a target: the end of a run, its schedule by then, and resuming in between.
Most tests use a made-up clock on which every step takes half a second.

python -m pytest tests/test_budgets.py -q
"""

import shutil
import signal
import time
from types import SimpleNamespace

import pytest

from nanochat import trainer
from nanochat.checkpoint_manager import manifest_steps
from nanochat.record import read_metrics, read_record
from tests.tiny import make_base
from tests.train_case import assert_same, checkpoint, metrics, run

LONG = ["--num-iterations=32", "--eval-every=15", "--eval-tokens=64"]
NEAR = ["--num-iterations=20", "--eval-tokens=64"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base directory with a run that validates after every step, and the same run on the regular grid."""
    path = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(path))
        make_base(path)
        run("--model-tag=every", *NEAR, "--eval-every=1")
        with patch.context() as clock:
            half_second_clock(clock)
            run("--model-tag=plain", *NEAR)
    return path


@pytest.fixture
def base(made, base_dir):
    shutil.copytree(made, base_dir)
    return base_dir


def half_second_clock(monkeypatch):
    """A step reads the clock when it begins and when it ends, with nothing in between: each takes half a second."""
    ticks = iter(range(10 ** 9))
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 2,
                                                         monotonic=time.monotonic))


@pytest.fixture
def half_seconds(monkeypatch):
    half_second_clock(monkeypatch)


def steps_of(base, tag):
    return [row for row in read_metrics(base / "records" / tag / "metrics.jsonl") if "train/loss" in row]


def evals_of(base, tag):
    return {row["step"]: row["val/bpb"] for row in read_metrics(base / "records" / tag / "metrics.jsonl")
            if "val/bpb" in row}


def cut_at(monkeypatch, stop):
    """SIGTERM during this step; undone by the function that comes back."""
    original = trainer.log_step

    def log_step(r, *args):
        original(r, *args)
        if r.step == stop:
            signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(trainer, "log_step", log_step)
    return lambda: monkeypatch.setattr(trainer, "log_step", original)


# -----------------------------------------------------------------------------
# The wall budget

def test_a_wall_budget_ends_the_run_with_a_whole_warmdown(base, half_seconds):
    facts = run("--model-tag=a", *LONG, "--wall-budget-sec=6", "--final-lr-frac=0")
    results, resolved, rows = facts["results"], facts["resolved"], steps_of(base, "a")
    # 11 untimed steps and 12 x 0.5 s
    assert facts["status"] == "ok" and results["bound"] == "wall" and results["steps"] == len(rows) == 23
    assert facts["clocks"]["total_training_time"] == 6.0
    for row in rows:
        step = row["step"]
        done = max(step / 32, max(0, step - 11) * 0.5 / 6)
        expected = (step + 1) / 2 if step < 2 else min(1.0, (1 - done) * 32 / round(0.65 * 32))
        assert row["train/lrm"] == pytest.approx(expected, rel=1e-9), step
    assert rows[-1]["train/lrm"] < 0.13, ("11 of 12 timed steps are done: "
                                          "the last one is taken at the foot of the warmdown")
    assert list(evals_of(base, "a")) == [0, 15, 23] and manifest_steps(base / "base_checkpoints" / "a") == [23]
    assert (resolved["num_iterations"], resolved["total_tokens"], resolved["horizon"]) == (
        23, 23 * 128, "wall_budget_sec")
    assert resolved["tau"] == pytest.approx(128 / (resolved["matrix_lr"] * resolved["weight_decay"] * 23 * 128))
    assert read_record(base, "a") == facts


def test_the_bound_that_comes_first_ends_the_run(base, half_seconds):
    assert run("--model-tag=a", *LONG, "--wall-budget-sec=10.5")["results"]["bound"] == "iterations"
    facts = run("--model-tag=b", *LONG, "--wall-budget-sec=10")
    assert (facts["results"]["bound"], facts["results"]["steps"]) == ("wall", 31)


def test_on_the_real_clock_the_budget_is_passed_by_less_than_a_step(base):
    facts = run("--model-tag=a", "--num-iterations=1000000", "--eval-every=-1", "--wall-budget-sec=0.3")
    rows = steps_of(base, "a")
    assert facts["results"]["bound"] == "wall" and rows[-1]["step"] == facts["results"]["steps"] - 1
    assert rows[-1]["total_training_time"] >= 0.3 > rows[-2]["total_training_time"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [8, 12, 18])
def test_a_resumed_run_goes_on_where_its_budget_was(base, half_seconds, monkeypatch, stop):
    """All steps take the same time here. On a real machine the times differ, and with them the schedule."""
    run("--model-tag=whole", *LONG, "--wall-budget-sec=6")
    go_on = cut_at(monkeypatch, stop)
    facts = run("--model-tag=cut", *LONG, "--wall-budget-sec=6")
    assert (facts["status"] == "interrupted" and facts["results"]["bound"] is None
            and facts["resolved"]["num_iterations"] == 32)
    go_on()
    facts = run("--model-tag=cut", *LONG, "--wall-budget-sec=6", "--resume")
    assert facts["resumed_from_step"] == stop + 1 and facts["results"]["bound"] == "wall"
    assert metrics(base, "cut") == metrics(base, "whole")
    again = run("--model-tag=cut", *LONG, "--wall-budget-sec=6", "--resume")
    assert (again["results"]["steps"] == 23 and again["results"]["bound"] == "wall"
            and metrics(base, "cut") == metrics(base, "whole"))


def test_the_budget_cannot_be_changed_half_way(base):
    run("--model-tag=a", "--wall-budget-sec=1e6")
    with pytest.raises(ValueError, match="other values of wall_budget_sec"):
        run("--model-tag=a", "--wall-budget-sec=2e6", "--resume")


# -----------------------------------------------------------------------------
# Near the target

def watched(base):
    """(curve, crossing, flags): the curve with a validation at every step, and a run with validations near its target.

    The run comes near the target at its second regular validation and reaches it, at step `crossing`, after its third.
    """
    curve = evals_of(base, "every")
    crossing = next(s for s in range(11, 20) if s % 5 and curve[s] < min(curve[i] for i in range(s)))
    near = max(curve[5], curve[10]) - curve[crossing] + 1e-6
    assert curve[0] > curve[crossing] + near, "far from it at the start"
    return curve, crossing, [*NEAR, f"--target-bpb={curve[crossing]}", "--eval-near-target=1",
                             f"--eval-near-bpb={near}"]


def test_evals_get_denser_near_the_target_and_only_until_it_is_reached(base):
    curve, crossing, flags = watched(base)
    run("--model-tag=a", *flags)
    expected = [0, *range(5, crossing + 1), *(s for s in (15, 20) if s > crossing)]
    assert evals_of(base, "a") == {s: curve[s] for s in expected}
    run("--model-tag=b", *flags, "--eval-near-target=2")
    grid = [s for s in range(21) if s % 5 == 0 or (s > 5 and s % 2 == 0)]
    first = next(s for s in grid if curve[s] <= curve[crossing])
    assert list(evals_of(base, "b")) == [s for s in grid if s <= first or s % 5 == 0]


def test_watching_changes_no_weight_and_takes_none_of_the_clock(base, half_seconds):
    _, _, flags = watched(base)
    facts = run("--model-tag=a", *flags)
    plain = read_record(base, "plain")
    assert facts["clocks"]["total_training_time"] == plain["clocks"]["total_training_time"] == 9 * 0.5
    assert ([row for row in metrics(base, "a") if "train/loss" in row]
            == [row for row in metrics(base, "plain") if "train/loss" in row])
    (model_a, optim_a, meta_a), (model_b, optim_b, meta_b) = checkpoint(base, "a", 20), checkpoint(base, "plain", 20)
    assert_same(model_a, model_b)
    assert_same(optim_a["state"], optim_b["state"])
    assert_same(meta_a["dataloader_state_dict"], meta_b["dataloader_state_dict"])


@pytest.mark.slow
def test_a_resumed_run_makes_the_same_evals(base):
    """Also from a checkpoint of the step that reached the target.

    It was saved after that validation. By its state alone, a resumed run would hold the validation to be unnecessary.
    """
    _, crossing, flags = watched(base)
    run("--model-tag=a", *flags, "--save-every=1")
    whole = metrics(base, "a")
    for step in (5, 10, crossing - 1, crossing, crossing + 1):
        run("--model-tag=a", *flags, f"--resume-from-step={step}")
        assert metrics(base, "a") == whole, step
