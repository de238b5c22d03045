"""Made-up runs on disk, for the tests of scripts.compare, plot and runs: records, upstream checkpoints, banked rows."""

import json
from pathlib import Path

from nanochat.lab.ledger.any_run import find
from nanochat.lab.ledger.experiments import append, row_of_record
from tests.ledger_case import metrics, record

MIX = ("--symplectic-gate", "--symplectic-gate-mix=0.05")


def put(base, seed, *flags, values=(3.0, 2.8, 2.6), every=20, run_id=None, change=None, **options) -> Path:
    """A record with its metrics below `base`; returns its folder. change: over the finished record."""
    made = record(seed, *flags, run_id=run_id, val_bpb=values[-1], min_val_bpb=min(values), **options) | (change or {})
    made["resolved"] = {**made["resolved"], "total_batch_size": 2048}
    folder = Path(base) / "records" / made["run_id"]
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(made))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics(values, every)))
    return folder


def put_upstream(base, tag="d4", losses=((250, 1.3), (500, 1.1), (1000, 0.98)), **config) -> Path:
    """The meta files of an upstream run; its weights are not needed."""
    folder = Path(base) / "base_checkpoints" / tag
    folder.mkdir(parents=True)
    asked = {"depth": 4, "aspect_ratio": 64, "head_dim": 128, "max_seq_len": 256, "num_iterations": losses[-1][0],
             "device_batch_size": 8, "total_batch_size": -1, "matrix_lr": 0.02, "eval_tokens": 512, "mtp": 2, **config}
    for step, bpb in losses:
        meta = {"step": step, "val_bpb": bpb, "total_batch_size": 524288, "user_config": asked,
                "model_config": {"n_layer": 4, "n_embd": 256, "n_head": 2, "n_kv_head": 2, "vocab_size": 300},
                "loop_state": {"smooth_train_loss": 3.0, "total_training_time": 0.5 * step}}
        (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))
    return folder


def bank(ledger, values=(2.60, 2.61, 2.59, 2.60, 2.62, 2.58), **options):
    """Rows of a banked control, a seed each, which end at `values`."""
    for i, value in enumerate(values):
        made = record(900001 + i, val_bpb=value, min_val_bpb=value, **options)
        append(ledger, row_of_record(made, metrics(), label="noise", arm="control", recipe="smoke-cpu"))


def checkpoint(home, tag, step=60, size=1000, **meta) -> Path:
    """A folder with the four files of a step, which hold no weights."""
    folder = Path(home) / "base_checkpoints" / tag
    folder.mkdir(parents=True)
    for name in (f"model_{step:06d}.pt", f"optim_{step:06d}_rank0.pt", f"manifest_{step:06d}.json"):
        (folder / name).write_bytes(b"w" * size)
    (folder / f"meta_{step:06d}.json").write_text(json.dumps({"run_id": tag, "step": step, **meta}))
    return folder


def pair(base, ledger, *flags, a=None, b=None):
    """Runs "a" and "b" on seed 1; flags are those of b. a, b: more of put for each."""
    put(base, 1, run_id="a", **(a or {}))
    put(base, 1, *flags, run_id="b", **(b or {}))
    return find("a", base, ledger), find("b", base, ledger)
