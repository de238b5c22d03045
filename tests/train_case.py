"""Run the trainer on a tiny base directory, in this process or as a user would, and compare what it left."""

import os
import subprocess
import sys

import torch

from nanochat.checkpoint_manager import load_checkpoint
from nanochat.config import parse
from nanochat.record import read_metrics
from nanochat.trainer import train
from tests.conftest import REPO_ROOT
from tests.tiny import TRAIN_FLAGS

TIMES = ("train/dt", "train/tok_per_sec", "train/mfu", "total_training_time")  # what differs between equal runs


def run(*flags) -> dict:
    argv = [*TRAIN_FLAGS, *flags]
    return train(parse(argv), argv)


def cli(base, *flags, **kwargs):
    return subprocess.run([sys.executable, "-m", "scripts.base_train", *TRAIN_FLAGS, *flags], cwd=REPO_ROOT, text=True,
                          capture_output=True, env={**os.environ, "NANOCHAT_BASE_DIR": str(base)}, **kwargs)


def checkpoint(base, tag, step=12):
    return load_checkpoint(base / "base_checkpoints" / tag, step, "cpu", load_optimizer=True)


def metrics(base, tag):
    rows = read_metrics(base / "records" / tag / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def assert_same(a, b):
    """Equal to the last bit, however nested."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b


def assert_same_run(base, a, b):
    (model_a, optim_a, meta_a), (model_b, optim_b, meta_b) = checkpoint(base, a), checkpoint(base, b)
    assert_same(model_a, model_b)
    assert_same(optim_a["state"], optim_b["state"])
    assert_same(meta_a["dataloader_state_dict"], meta_b["dataloader_state_dict"])
    assert metrics(base, a) == metrics(base, b)
