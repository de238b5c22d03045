"""
train(config) -> the run's record. One page to read a training run.

Order: everything a user can get wrong is checked first; then the model is built, the record opened, and the
loop runs. At step s the loop validates, samples and saves the weights BEFORE step s is taken, as upstream
does, so that step num_iterations is the end. The loss shown is the mean over the whole step (upstream shows
the last micro-batch).
"""

import gc
import itertools
import math
import signal
import time
import traceback
from dataclasses import asdict

import torch
from filelock import FileLock, Timeout

from nanochat import device as dev
from nanochat import schedule
from nanochat.checkpoint_manager import save_checkpoint
from nanochat.common import get_base_dir, get_dist_info, print0
from nanochat.config import TrainConfig
from nanochat.dataloader import DataLoader
from nanochat.loss_eval import evaluate_bpb
from nanochat.run_facts import summarize
from nanochat.run_setup import Run, set_up

EMA_BETA = 0.9  # smoothing of the loss that is shown and recorded as final_train_loss
CACHED_EVAL_TOKENS = 2 ** 22  # validation batches up to this size are packed once and kept
SAMPLE_PROMPTS = ("The capital of France is", "The chemical symbol of gold is", "If yesterday was Friday, then tomorrow will be",
                  "The opposite of hot is", "The planets of the solar system are:", "My favorite color is",
                  "If 5*x + 3 = 13, then x is")
EXIT_CODES = {"ok": 0, "crash": 1, "diverged": 3, "oom": 4, "interrupted": 130}


class Diverged(Exception):
    """A loss or gradient that is not finite. The step was not applied."""


class Interrupted(Exception):
    """SIGINT or SIGTERM; a checkpoint was saved."""


def train(config: TrainConfig, argv: list[str]) -> dict:
    """Run one training and return its record (run.json as a dict). Raises ValueError or OSError for bad input
    before anything is trained; what happens later is told by the record's status."""
    started = time.monotonic()
    if get_dist_info()[2] > 1:
        raise ValueError("more than one rank is not here yet: start one process, without torchrun")
    base_dir = get_base_dir()
    tag = config.model_tag or f"d{config.depth}"
    (base_dir / "base_checkpoints").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(base_dir / "base_checkpoints" / f".{tag}.lock", timeout=0):
            run = set_up(config, argv, base_dir, tag, started)
            return _guarded(run)
    except Timeout:
        raise ValueError(f"another process is training --model-tag={tag} in {base_dir}; wait for it, or choose another tag") from None


def _guarded(run: Run) -> dict:
    """The loop, and a record of how it ended."""
    handlers = {s: signal.signal(s, lambda signum, frame: _on_signal(run, signum)) for s in (signal.SIGINT, signal.SIGTERM)}
    status, error = "ok", None
    try:
        loop(run)
    except Diverged as e:
        status, error = "diverged", str(e)
    except (Interrupted, KeyboardInterrupt) as e:
        status, error = "interrupted", str(e) or "stopped without saving"
    except Exception as e:
        oom = isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(e)
        status, error = "oom" if oom else "crash", f"{type(e).__name__}: {e}"
        if not isinstance(e, (ValueError, OSError)):  # those say it all: a corrupt shard, a full disk
            traceback.print_exc()
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        gc.unfreeze()
        gc.enable()
    run.state.clocks["wall_time_sec"] += time.monotonic() - run.started
    if error:
        print0(f"Run ended {status}: {error}")
    try:
        run.record.finish(status, error=error, load_end=dev.load_average(), **summarize(run))
    except OSError as e:
        print0(f"The record could not be written: {e}")
    return {**run.record.facts, "status": status, "error": error}


def _on_signal(run: Run, signum):
    if run.stop_signal is not None:  # asked twice: do not wait for the step to end
        raise KeyboardInterrupt
    run.stop_signal = signum
    print0(f"Received {signal.Signals(signum).name}: saving after this step or validation batch (again = stop at once)")


# -----------------------------------------------------------------------------
# The loop

def due(every: int, step: int, last: bool) -> bool:
    return every > 0 and (last or step % every == 0)


def eval_due(run: Run, last: bool) -> bool:
    """On the regular grid, and near a declared target on a denser one until it is reached. A checkpoint is saved after the
    validation of its step: the run that resumes from it takes that validation again."""
    config, state = run.config, run.state
    if due(config.eval_every, run.step, last) or state.last_eval_step == run.step:
        return True
    near = state.val_bpb is not None and state.val_bpb <= config.target_bpb + config.eval_near_bpb
    return near and state.min_val_bpb > config.target_bpb and due(config.eval_near_target, run.step, False)


def loop(run: Run):
    config, step_at_start = run.config, run.step
    while True:
        step, run.bound = run.step, run.reached()
        last = run.bound is not None
        run.model.step.fill_(step)
        if eval_due(run, last):
            validate(run, last)
        if step > 0 and due(config.sample_every, step, last):
            sample(run)
        save_due = step > 0 and due(config.save_every, step, False)
        late = config.save_minutes > 0 and time.monotonic() - run.last_save > 60 * config.save_minutes
        stop = run.stop_signal is not None and not last
        if last or (step != step_at_start and (save_due or late)) or stop:
            save(run)
        if stop:
            raise Interrupted(f"{signal.Signals(run.stop_signal).name} at step {step}; go on with --resume-from-step={step}")
        if last:
            return
        train_step(run, first=step == step_at_start)
        run.step += 1
        if step == step_at_start:  # after the first step nothing that lives is garbage: stop looking for it
            gc.collect()
            gc.freeze()
            gc.disable()
        elif run.step % 5000 == 0:
            gc.collect()


def set_schedule(run: Run) -> float:
    """Rates, momentum and decay of this step; returns the learning rate multiplier."""
    config, n, step = run.config, run.resolved.num_iterations, run.step
    at = schedule.budget_position(step, n, run.spent_sec, config.wall_budget_sec)
    lrm = schedule.lr_multiplier(step, n, config.warmup_steps, config.warmdown_ratio, config.final_lr_frac, config.warmdown_shape, at)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * lrm
        if group["kind"] == "muon":
            group["momentum"] = schedule.muon_momentum(step, n, config.warmdown_ratio, at)
            group["weight_decay"] = run.resolved.weight_decay * schedule.weight_decay_multiplier(at, n)
    return lrm


def train_step(run: Run, first: bool):
    accum = run.resolved.grad_accum_steps
    dev.synchronize(run.device)
    t0 = time.perf_counter()
    total_loss = torch.zeros((), device=run.device)
    for _ in range(accum):
        x, y = next(run.loader)
        loss = run.compiled(x, y) / accum
        loss.backward()
        total_loss += loss.detach()
    lrm = set_schedule(run)
    params = [p for p in run.model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in params])
    loss, norm = total_loss.item(), grad_norm.item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(f"step {run.step}: loss {loss}, gradient norm {norm}; the step was not applied")
    run.optimizer.step()
    run.model.zero_grad(set_to_none=True)
    dev.synchronize(run.device)
    log_step(run, time.perf_counter() - t0, loss, norm, lrm, first)


def log_step(run: Run, dt: float, loss: float, grad_norm: float, lrm: float, first: bool):
    state, step, r = run.state, run.step, run.resolved
    if first:
        state.clocks["setup_sec"] += time.monotonic() - run.started - dt
        if r.compile:
            state.clocks["compile_sec"] = (state.clocks["compile_sec"] or 0.0) + dt
    elif step >= schedule.TIMED_FROM_STEP:  # a process's first step warms up, also after a resume
        state.total_training_time += dt
        state.timed_steps += 1
    state.smooth_train_loss = EMA_BETA * state.smooth_train_loss + (1 - EMA_BETA) * loss
    smooth = state.smooth_train_loss / (1 - EMA_BETA ** (step + 1))
    tok_per_sec = r.total_batch_size / dt
    mfu = 100 * r.flops_per_token * tok_per_sec / dev.peak_flops(run.device)
    position = run.loader.position
    run.record.log({"step": step, "train/loss": loss, "train/smooth_loss": smooth, "train/grad_norm": grad_norm, "train/lrm": lrm,
                    "train/dt": dt, "train/tok_per_sec": tok_per_sec, "train/mfu": mfu, "train/epoch": position["epoch"],
                    "total_training_time": state.total_training_time})
    eta = ""
    if state.timed_steps:
        left = state.total_training_time / state.timed_steps * (r.num_iterations - step)
        if run.config.wall_budget_sec > 0:
            left = min(left, run.config.wall_budget_sec - run.spent_sec)
        eta = f" | eta: {left / 60:.1f}m"
    print0(f"step {step:05d}/{r.num_iterations:05d} ({100 * step / r.num_iterations:.2f}%) | loss: {smooth:.6f} | lrm: {lrm:.2f} | "
           f"dt: {dt * 1000:.2f}ms | tok/sec: {int(tok_per_sec):,} | bf16_mfu: {mfu:.2f} | epoch: {position['epoch']} "
           f"pq: {position['pq_idx']} rg: {position['rg_idx']} | total time: {state.total_training_time / 60:.2f}m{eta}")


def val_loader(run: Run) -> DataLoader:
    return DataLoader(run.tokenizer, run.config.device_batch_size, run.config.max_seq_len, "val", run.device)


def validate(run: Run, last: bool):
    """val_bpb at this step, into state and record. Who asks to stop does not wait for it, but at the end, where it is
    the result; a resumed run validates this step again."""
    t0 = time.perf_counter()
    config, state = run.config, run.state
    steps = config.eval_tokens // (config.device_batch_size * config.max_seq_len)
    if run.device.type == "cpu" and config.eval_tokens > CACHED_EVAL_TOKENS:
        print0(f"Validating on {config.eval_tokens:,} tokens, long on a CPU; --eval-tokens makes it shorter")
    if run.val_batches is None and config.eval_tokens <= CACHED_EVAL_TOKENS:
        loader = val_loader(run)
        run.val_batches = [next(loader) for _ in range(steps)]
    batches = run.val_batches or (batch for _, batch in zip(range(steps), val_loader(run)))
    if not last:
        batches = itertools.takewhile(lambda _: run.stop_signal is None, batches)
    run.compiled.eval()
    val_bpb = evaluate_bpb(run.compiled, batches, run.token_bytes)
    run.compiled.train()
    if run.stop_signal is not None and not last:
        return
    state.val_bpb = val_bpb
    if not math.isfinite(state.val_bpb):
        raise Diverged(f"step {run.step}: validation bpb {state.val_bpb}")
    print0(f"Step {run.step:05d} | Validation bpb: {state.val_bpb:.6f}")
    state.last_eval_step = run.step
    state.min_val_bpb = min(state.val_bpb, state.min_val_bpb if state.min_val_bpb is not None else state.val_bpb)
    run.record.log({"step": run.step, "val/bpb": state.val_bpb, "total_training_time": state.total_training_time,
                    "total_training_flops": run.resolved.flops_per_token * run.resolved.total_batch_size * run.step})
    state.clocks["eval_sec"] += time.perf_counter() - t0


def sample(run: Run):
    from nanochat.engine import Engine
    t0 = time.perf_counter()
    run.model.eval()
    engine = Engine(run.model, run.tokenizer)
    for prompt in SAMPLE_PROMPTS:
        tokens = run.tokenizer(prompt, prepend="<|bos|>")
        rows, _ = engine.generate_batch(tokens, num_samples=1, max_tokens=16, temperature=0)
        print0(run.tokenizer.decode(rows[0]))
    run.model.train()
    run.state.clocks["eval_sec"] += time.perf_counter() - t0


def save(run: Run):
    t0 = time.perf_counter()
    config, state = run.config, run.state
    loop_state = asdict(state)
    loop_state["clocks"]["wall_time_sec"] += time.monotonic() - run.started
    facts = run.record.facts
    save_checkpoint(run.checkpoint_dir, run.step, run.model.state_dict(), run.optimizer.state_dict(), dict(
        step=run.step, val_bpb=state.val_bpb, model_config=run.model.config.upstream_dict(), user_config=asdict(config),
        device_batch_size=config.device_batch_size, max_seq_len=config.max_seq_len, total_batch_size=run.resolved.total_batch_size,
        dataloader_state_dict=run.loader.state, loop_state=loop_state, variant=run.model.config.variant_dict(),
        **{k: facts[k] for k in ("run_id", "dataset_id", "tokenizer_id", "config_hash", "git_commit", "dirty")}), config.keep_last)
    run.last_save = time.monotonic()
    state.clocks["save_sec"] += time.perf_counter() - t0
    print0(f"Saved step {run.step} to {run.checkpoint_dir}")
    run.record.update(**summarize(run))

