"""The contents of run.json: options, code and data of a run, its device, and its results."""

import os
import statistics
import sys
from dataclasses import asdict
from datetime import datetime, timezone

import torch

from nanochat import device as dev
from nanochat.code_identity import tree_hash
from nanochat.config import config_hash, profile_hash
from nanochat.cost import ended_by_wall_budget
from nanochat.git import git_state
from nanochat.manifest import get_dataset_id
from nanochat.record import RunRecord, TensorBoardSink, WandbSink, read_metrics, record_dir, versions
from nanochat.schedule import TIMED_FROM_STEP


def make_record(run, argv: list[str], tokenizer_id: str, resumed_from: int | None) -> RunRecord:
    """The record of a run that is about to start. It is held: nothing is on disk yet. Raises ValueError where wandb or
    TensorBoard is asked for and cannot begin."""
    config, device = run.config, run.device
    dataset_id, tree = get_dataset_id(run.base_dir), tree_hash()
    facts = dict(
        model_tag=run.tag, config=asdict(config), argv=argv, command=run.stage.command_line(argv),
        config_hash=config_hash(config, dataset_id, tokenizer_id, tree), dataset_id=dataset_id,
        tokenizer_id=tokenizer_id, profile_hash=profile_hash(config, device.type, dataset_id, tokenizer_id),
        tree_hash=tree, **git_state(), versions=versions(),
        device={"kind": device.type, "name": dev.device_name(device)}, threads=torch.get_num_threads(),
        load_start=dev.load_average(), load_end=None,
        started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"), resumed_from_step=resumed_from,
        error=None, resolved=asdict(run.resolved), pid=os.getpid())
    sinks = []
    if config.run != "dummy":
        sinks.append(WandbSink(config.run, asdict(config)))
    if config.tensorboard:
        sinks.append(TensorBoardSink(record_dir(run.base_dir, run.tag) / "tensorboard"))
    return RunRecord(run.base_dir, run.tag, facts, sinks, held=True)


def summarize(run) -> dict:
    """Clocks and results so far. A value that was not measured is None."""
    state, tokens_per_step = run.state, run.resolved.total_batch_size
    rows = [row for row in ([] if run.record.held else read_metrics(run.record.metrics_path)) if "train/loss" in row]
    timed = [row["train/dt"] for row in rows if row["step"] >= TIMED_FROM_STEP]
    dt = statistics.median(timed) if timed else None
    results = dict(
        val_bpb=state.val_bpb, min_val_bpb=state.min_val_bpb,
        final_train_loss=rows[-1]["train/smooth_loss"] if rows else None,
        tok_per_sec_median=tokens_per_step / dt if dt else None, dt_median_ms=1000 * dt if dt else None,
        avg_tok_per_sec=tokens_per_step * state.timed_steps / state.total_training_time if state.timed_steps else None,
        peak_mem_mib=dev.peak_memory_mib(run.device), trained_tokens=tokens_per_step * run.step, steps=run.step,
        grad_spikes=state.grad_spikes, epochs_used=run.loader.epochs_used(), bound=run.bound)
    resolved = ended_by_wall_budget(run.resolved, run.step) if run.bound == "wall" else run.resolved
    return dict(clocks={**state.clocks, "total_training_time": state.total_training_time}, results=results,
                resolved=asdict(resolved))


def print_summary(facts: dict):
    """Upstream's closing lines."""
    results, clocks = facts["results"], facts["clocks"]
    print(f"Peak memory usage: {results['peak_mem_mib'] or 0:.2f}MiB")
    print(f"Total training time: {clocks['total_training_time'] / 60:.2f}m")
    if results["min_val_bpb"] is not None:
        print(f"Minimum validation bpb: {results['min_val_bpb']:.6f}")
    sys.stdout.flush()
