"""The log of a training step: a line on the screen, a row of metrics.jsonl, and the clocks of the run."""

import statistics
import time
from dataclasses import dataclass

from nanochat import device as dev
from nanochat import schedule
from nanochat.record import EMA_BETA
from nanochat.run_setup import Run

SPIKE = 10  # times the median of the last SPIKE_WINDOW gradient norms, of which there must be SPIKE_AFTER
SPIKE_WINDOW, SPIKE_AFTER, SPIKES_TOLD = 50, 5, 5


@dataclass
class StepResult:
    """The values that train_step measured in one step."""
    loss: float  # cross-entropy, mean over the whole step, before the update
    terms: dict[str, float]  # the further terms of the training loss, unweighted, by name
    grad_norm: float
    lrm: float  # learning rate multiplier
    dt: float  # seconds
    first: bool  # first step of this process: its time includes compiling and warming up


def log_step(run: Run, result: StepResult):
    """Bring the clocks and the smoothed loss up to date, then record the step. Its lines wait in run.lines, because a
    print may block, as on a terminal that was halted with Ctrl-S, and the step is not whole yet."""
    state = run.state
    _count_time(run, result)
    _count_spike(run, result.grad_norm)
    state.smooth_train_loss = EMA_BETA * state.smooth_train_loss + (1 - EMA_BETA) * result.loss
    smooth = state.smooth_train_loss / (1 - EMA_BETA ** (run.step + 1))  # divides out the 0 that the average starts at
    tok_per_sec = run.resolved.total_batch_size / result.dt
    mfu = 100 * run.resolved.flops_per_token * tok_per_sec / dev.peak_flops(run.device)
    row = {**{f"train/{name}": value for name, value in result.terms.items()},
           "step": run.step, "train/loss": result.loss, "train/smooth_loss": smooth,
           "train/grad_norm": result.grad_norm, "train/lrm": result.lrm, "train/dt": result.dt,
           "train/tok_per_sec": tok_per_sec, "train/mfu": mfu, "train/epoch": run.loader.position["epoch"],
           "total_training_time": state.total_training_time}
    run.record.log(row)
    _tell_step(run, row)


def _count_time(run: Run, result: StepResult):
    state, dt = run.state, result.dt
    if result.first:
        state.clocks["setup_sec"] += time.monotonic() - run.started - dt
        if run.resolved.compile:
            state.clocks["compile_sec"] = (state.clocks["compile_sec"] or 0.0) + dt
    elif run.step >= schedule.TIMED_FROM_STEP:  # a process's first step warms up, also after a resume
        state.total_training_time += dt
        state.timed_steps += 1


def _count_spike(run: Run, norm: float):
    """Count and tell a gradient norm that is far above those of the steps before.

    After such a step the loss may recover, but seeds spread: each of them goes through it in its own way.
    """
    state = run.state
    if len(state.grad_norms) >= SPIKE_AFTER and norm > SPIKE * (median := statistics.median(state.grad_norms)):
        state.grad_spikes += 1
        if state.grad_spikes <= SPIKES_TOLD:
            run.lines.append(f"Warning: gradient norm {norm:.4g} at step {run.step} is {norm / median:.0f} times its "
                             "running median" + ("; further ones are only counted" if state.grad_spikes == SPIKES_TOLD
                                                 else ""))
    state.grad_norms = [*state.grad_norms, norm][-SPIKE_WINDOW:]


def _tell_step(run: Run, row: dict):
    """Upstream's line, and the time that is left."""
    state, step, n, position = run.state, run.step, run.resolved.num_iterations, run.loader.position
    eta = ""
    if state.timed_steps:
        left = state.total_training_time / state.timed_steps * (n - step)
        if run.config.wall_budget_sec > 0:
            left = min(left, run.config.wall_budget_sec - run.spent_sec)
        eta = f" | eta: {left / 60:.1f}m"
    run.lines.append(
        f"step {step:05d}/{n:05d} ({100 * step / n:.2f}%) | loss: {row['train/smooth_loss']:.6f} | "
        f"lrm: {row['train/lrm']:.2f} | dt: {row['train/dt'] * 1000:.2f}ms | "
        f"tok/sec: {int(row['train/tok_per_sec']):,} | bf16_mfu: {row['train/mfu']:.2f} | "
        f"epoch: {position['epoch']} pq: {position['pq_idx']} rg: {position['rg_idx']} | "
        f"total time: {state.total_training_time / 60:.2f}m{eta}")
