"""
train(config) -> the run's record. One page to read a training run.

Order: options, data and disk are checked first. Then the model is built, the record is opened, and the loop runs. At
step s the loop validates, samples and saves the weights BEFORE step s is taken, as upstream does. So the weights after
the last step are those of step num_iterations. They are saved before the last validation: nothing that follows can cost
them. The loss shown is the mean over the whole step (upstream shows that of the last micro-batch).
"""

import gc
import math
import time
from collections import Counter

import torch
from filelock import FileLock, Timeout

from nanochat import device as dev
from nanochat import schedule
from nanochat.common import get_base_dir, print0
from nanochat.config import TrainConfig
from nanochat.optim import apply_schedule
from nanochat.ranks import Ranks
from nanochat.run_eval import due, eval_due, sample, validate
from nanochat.run_guard import Interrupted, guarded, is_out_of_memory, lower_memory, signal_name, stop_asked
from nanochat.run_log import StepResult, log_step
from nanochat.run_save import Diverged, save, save_by_clock, save_result
from nanochat.run_setup import Run, begin, set_up
from nanochat.stage import BASE, Stage
from nanochat.streams import undisturbed


def train(config: TrainConfig, argv: list[str], stage: Stage = BASE) -> dict:
    """Run one training and return its record (run.json as a dict).

    Raises ValueError or OSError for bad input, and MemoryError where the model does not fit, before anything is
    trained. A later failure raises nothing: the record's status states it. No print raises, not even to a closed pipe.
    """
    started = time.monotonic()
    if Ranks.from_environment().world_size > 1:
        raise ValueError("more than one rank is not here yet: start one process, without torchrun")
    base_dir = get_base_dir()
    tag = config.model_tag or f"d{config.depth}"
    stage.root(base_dir).mkdir(parents=True, exist_ok=True)
    try:
        # A protocol holds the lock for a moment, to ask who runs.
        with undisturbed(), FileLock(stage.lock(base_dir, tag), timeout=1):
            return guarded(_set_up(config, argv, stage, base_dir, tag, started), loop)
    except Timeout:
        raise ValueError(f"another process is training --model-tag={tag} in {base_dir}; "
                         "wait for it, or choose another tag") from None


def _set_up(*args) -> Run:
    """set_up, with memory that does not suffice as a MemoryError of one line."""
    try:
        return set_up(*args)
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise MemoryError(f"out of memory before the first step ({str(e).strip().splitlines()[0]}); "
                          f"{lower_memory(args[0].device_batch_size)}") from e


# -----------------------------------------------------------------------------
# The loop

def loop(run: Run):
    config, step_at_start = run.config, run.step
    while True:
        step, run.bound = run.step, run.reached()
        last = run.bound is not None
        run.model.step.fill_(step)
        if last and run.saved_step != step:
            save(run)
        cut_short = eval_due(run, last) and not validate(run, last)
        if step > 0 and due(config.sample_every, step, last) and not cut_short:
            sample(run)
        stop = stop_asked(run) and (cut_short or not last)
        if not last and step != step_at_start:
            save_if_due(run, stop)
        if stop:
            raise Interrupted(f"{signal_name(run)} at step {step}; " + ("the same command starts it" if step == 0 else
                                                                        f"go on with --resume-from-step={step}"))
        if last:
            save_result(run)
            return
        train_step(run, first=step == step_at_start)
        if step == step_at_start:  # after the first step nothing that lives is garbage: stop looking for it
            gc.collect()
            gc.freeze()
            gc.disable()
        elif run.step % 5000 == 0:
            gc.collect()


def save_if_due(run: Run, stop: bool):
    config = run.config
    late = run.ranks.broadcast(0 < 60 * config.save_minutes < time.monotonic() - run.last_save)
    if due(config.save_every, run.step, False) or stop:
        save(run)
    elif late:
        save_by_clock(run)


def set_schedule(run: Run) -> float:
    """Set rates, momentum and decay of this step; returns the learning rate multiplier."""
    config, n, step = run.config, run.resolved.num_iterations, run.step
    at = schedule.budget_position(step, n, run.spent_sec, config.wall_budget_sec)
    lrm = schedule.lr_multiplier(step, n, config.warmup_steps, config.warmdown_ratio, config.final_lr_frac,
                                 config.warmdown_shape, at)
    momentum = schedule.muon_momentum(step, n, config.warmdown_ratio, at)
    decay = run.resolved.weight_decay * schedule.weight_decay_multiplier(at, n)
    for group in run.optimizer.param_groups:
        apply_schedule(group, lrm, momentum=momentum, weight_decay=decay)
    return lrm


def train_step(run: Run, first: bool):
    accum, run.before_step = run.resolved.grad_accum_steps, run.loader.mark()
    dev.synchronize(run.device)
    t0 = time.perf_counter()
    total_loss, total_terms = torch.zeros((), device=run.device), Counter()
    for _ in range(accum):
        x, y = next(run.loader)
        loss, terms = run.compiled(x, y, with_aux=True)
        (run.model.objective(loss, terms) / accum).backward()
        total_loss += loss.detach() / accum
        total_terms.update({name: term.detach() / accum for name, term in terms.items()})
    if run.config.quiet_start:
        for p in run.model.rounding_only(run.step):
            p.grad.zero_()
    lrm = set_schedule(run)
    params = [p for p in run.model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in params])
    loss, norm = run.ranks.sum(total_loss.item()) / run.ranks.world_size, grad_norm.item()
    terms = {name: run.ranks.sum(term.item()) / run.ranks.world_size for name, term in total_terms.items()}
    if run.ranks.any(not all(map(math.isfinite, (loss, norm, *terms.values())))):
        found = "".join(f", {name} {value}" for name, value in terms.items())
        raise Diverged(f"step {run.step}: loss {loss}, gradient norm {norm}{found}; the step was not applied")
    if first:
        begin(run)
    run.uncut, run.before_step = True, None  # from here on the batches are trained on
    run.optimizer.step()
    run.model.zero_grad(set_to_none=True)
    dev.synchronize(run.device)
    dt = run.ranks.broadcast(time.perf_counter() - t0)  # one clock for all: it moves the schedule and ends the run
    log_step(run, StepResult(loss, terms, norm, lrm, dt, first))
    run.step += 1
    run.cut_again()
    while run.lines:
        print0(run.lines.pop(0))
