"""
Saving a run: at the steps of --save-every, by the clock of --save-minutes, at its end, and when it ends before that.

Trained weights are saved before anything else at the end, and whatever ends the run. Only whole steps are saved, and
only finite ones.
"""

import shutil
import time
from dataclasses import asdict

import torch

from nanochat.checkpoint_manager import manifest_steps, replace_meta, save_checkpoint
from nanochat.common import print0
from nanochat.run_facts import summarize
from nanochat.run_setup import Run


class Diverged(Exception):
    """A loss, gradient or weight that is not finite. The step was not applied, or its result is not saved."""


def save(run: Run, timed=False):
    """Save this step. timed: it gives way to the next save, unless --keep-last says how many are kept.

    Raises Diverged where a weight or a moment is not finite, and OSError, with the space that is needed, where the step
    cannot be written. Earlier steps are then still there.
    """
    t0 = time.perf_counter()
    model_state, optim_state = run.model.state_dict(), run.optimizer.state_dict()
    if run.ranks.any(not _all_finite(model_state, optim_state)):
        raise Diverged(f"step {run.step}: its weights are not finite; the step is not saved")
    run.uncut = True
    try:
        save_checkpoint(run.checkpoint_dir, run.step, model_state, optim_state, checkpoint_meta(run),
                        run.config.keep_last, run.ranks, timed)
    except OSError as e:
        raise _told_how_much(run, e) from e
    run.last_save, run.saved_step = time.monotonic(), run.step
    run.gives_way = timed or run.config.keep_last > 0
    run.state.clocks["save_sec"] += time.perf_counter() - t0
    print0(f"Saved step {run.step} to {run.checkpoint_dir}")
    run.cut_again()
    write_record(run)


def save_by_clock(run: Run):
    """A save that --save-minutes asks for. It needs room beside the checkpoint that is still to come, and a failure
    costs nothing: the next one is tried as many minutes later."""
    run.last_save = time.monotonic()
    need = needed_bytes(run) * (1 if run.gives_way else 2)
    if run.ranks.broadcast(shutil.disk_usage(run.checkpoint_dir).free < need):
        return print0(f"Not saved by the clock at step {run.step}: {_room(run)}")
    try:
        save(run, timed=True)
    except OSError as e:
        run.uncut = False
        print0(f"Not saved by the clock at step {run.step}: {e}")


def save_result(run: Run):
    """Bring the meta file of the saved step up to date with the validation that came after the save."""
    try:
        replace_meta(run.checkpoint_dir, run.step, checkpoint_meta(run))
    except (OSError, ValueError) as e:
        print0(f"Warning: the meta file of step {run.step} lacks the last validation: {e}")


def write_record(run: Run):
    try:
        run.record.update(**summarize(run))
    except OSError as e:  # it is written again at the next save and at the end
        print0(f"Warning: the record could not be written: {e}")


def rescue(run: Run, status: str):
    """Save the last whole step of a run that ended early, unless it is saved.

    A run that diverged keeps the steps that it has saved before: they are of a healthier time.
    """
    if run.saved_step == run.step or (status == "diverged" and run.saved_step is not None):
        return
    if run.before_step:  # the step under way has read batches that it did not train on
        run.loader.go_back(run.before_step)
    run.model.zero_grad(set_to_none=True)
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    save(run)


def _all_finite(*states) -> bool:
    """Whether no tensor of these nested dicts and lists has an infinity or a NaN."""
    flags, left = [], list(states)
    while left:
        item = left.pop()
        if torch.is_tensor(item):
            flags += [item.isfinite().all()] if item.is_floating_point() else []
        elif isinstance(item, (dict, list, tuple)):
            left += item.values() if isinstance(item, dict) else item
    return all(flag.item() for flag in flags)


def needed_bytes(run: Run) -> int:
    """Bytes of a checkpoint: weights and moments."""
    tensors = [*run.model.state_dict().values(),
               *(t for state in run.optimizer.state.values() for t in state.values() if torch.is_tensor(t))]
    return sum(t.numel() * t.element_size() for t in tensors)


def _room(run: Run) -> str:
    need, free = needed_bytes(run), shutil.disk_usage(run.checkpoint_dir).free
    return f"a checkpoint needs {need / 2**20:.1f} MiB, {run.checkpoint_dir} has {free / 2**20:.1f} MiB free"


def _told_how_much(run: Run, e: OSError) -> OSError:
    steps = manifest_steps(run.checkpoint_dir)
    kept = f"step {steps[-1]} is still there" if steps else "no step is saved"
    return OSError(e.errno, f"{e.strerror or e}: step {run.step} was not saved, {_room(run)}; {kept}; free some, then "
                   "train again with --resume")


def checkpoint_meta(run: Run) -> dict:
    """Contents of meta_%06d.json: upstream's keys, and the further keys that an exact resume needs."""
    config, gpt = run.config, run.model.config
    loop_state = asdict(run.state)
    loop_state["clocks"]["wall_time_sec"] += time.monotonic() - run.started
    told = {k: run.record.facts[k] for k in
            ("run_id", "dataset_id", "tokenizer_id", "config_hash", "git_commit", "dirty")}
    return dict(
        step=run.step, val_bpb=run.state.val_bpb, model_config=gpt.upstream_dict(), user_config=asdict(config),
        device_batch_size=config.device_batch_size, max_seq_len=config.max_seq_len,
        total_batch_size=run.resolved.total_batch_size, dataloader_state_dict=run.loader.state, loop_state=loop_state,
        variant=gpt.variant_dict(), **told)
