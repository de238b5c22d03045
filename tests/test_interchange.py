"""
Our files in upstream nanochat and upstream's in ours, run beside each other:

    NANOCHAT_UPSTREAM=../nanochat python -m pytest tests/test_interchange.py -q
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.checkpoint_manager import load_checkpoint, load_model
from nanochat.dataloader import DataLoader
from nanochat.loss_eval import evaluate_bpb
from nanochat.tokenizer import get_token_bytes
from nanochat.tree_score import score
from tests.conftest import REPO_ROOT
from tests.tiny import make_base

UPSTREAM = os.environ.get("NANOCHAT_UPSTREAM")
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not UPSTREAM, reason="NANOCHAT_UPSTREAM names no checkout of upstream nanochat")]
FLAGS = ["--depth=2", "--head-dim=32", "--aspect-ratio=32", "--max-seq-len=64", "--device-batch-size=4",
         "--total-batch-size=256", "--num-iterations=20", "--warmup-steps=3", "--eval-every=10", "--eval-tokens=1024",
         "--core-metric-every=-1", "--sample-every=-1", "--window-pattern=SL"]
STEP_LOSS = re.compile(r"^step \d+/\d+ .*? loss: ([\d.]+)", re.M)
VAL_BPB = re.compile(r"Validation bpb: ([\d.]+)")


def run(tree, base, *argv) -> str:
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "TORCHDYNAMO_DISABLE": "1",
                   "NANOCHAT_DTYPE": "float32"}
    done = subprocess.run([sys.executable, "-m", *argv], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A base dir in which each project has trained 20 steps on the same stream; and the output of each."""
    base = tmp_path_factory.mktemp("interchange")
    make_base(base, documents=1200, rows_per_group=256)
    theirs = run(Path(UPSTREAM), base, "scripts.base_train", *FLAGS, "--model-tag=theirs")
    ours = run(REPO_ROOT, base, "scripts.base_train", *FLAGS, "--model-tag=ours", "--data-order=file", "--no-compile")
    return base, ours, theirs


def val_bpb(base, tag) -> float:
    model, tokenizer, meta = load_model("base", "cpu", tag, step=20, base_dir=base)
    batches = DataLoader(tokenizer, 4, 64, "val", data_dir=base / "base_data_climbmix")
    return evaluate_bpb(model, [next(batches) for _ in range(4)], get_token_bytes(base_dir=base))


def test_20_steps_on_one_stream_give_the_same_losses(both):
    _, ours, theirs = both
    a, b = ([float(x) for x in STEP_LOSS.findall(out)] for out in (ours, theirs))
    assert len(a) == len(b) == 20 and max(abs(x - y) for x, y in zip(a, b)) < 1e-3
    assert ([float(x) for x in VAL_BPB.findall(ours)]
            == pytest.approx([float(x) for x in VAL_BPB.findall(theirs)], abs=1e-4))


def test_upstream_evaluates_our_checkpoint_to_the_bpb_that_we_do(both):
    base, ours, _ = both
    out = run(Path(UPSTREAM), base, "scripts.base_eval", "--eval=bpb", "--model-tag=ours", "--device-batch-size=4",
              "--split-tokens=1024")
    theirs = float(re.search(r"val bpb: ([\d.]+)", out).group(1))
    assert (theirs == pytest.approx(val_bpb(base, "ours"), abs=2e-6)
            and theirs == pytest.approx(float(VAL_BPB.findall(ours)[-1]), abs=2e-6))


def test_we_evaluate_upstreams_checkpoint_to_the_bpb_that_it_printed(both):
    base, _, theirs = both
    assert val_bpb(base, "theirs") == pytest.approx(float(VAL_BPB.findall(theirs)[-1]), abs=2e-6)


def test_the_controls_evaluator_scores_upstreams_model_by_its_logits(both, monkeypatch):
    """The tree's own code builds the model; val_bpb is the one that upstream printed, and no token is seen early."""
    base, _, theirs = both
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    config = {"device_batch_size": 4, "max_seq_len": 64, "eval_tokens": 1024}
    order = {"home": str(base), "tag": "theirs", "tree": UPSTREAM,
             "facts": {"config": config, "device": {"kind": "cpu"}}}
    found = score(order, 20, "float32")
    assert found["val_bpb"] == pytest.approx(float(VAL_BPB.findall(theirs)[-1]), abs=2e-6)
    assert found["dtype"] == "float32" and found["repeated"] == found["before_cut"] == 0


def test_optimizer_files_have_one_layout(both):
    base, _, _ = both
    ours, theirs = (load_checkpoint(base / "base_checkpoints" / tag, 20, "cpu", load_optimizer=True)[1]
                    for tag in ("ours", "theirs"))
    assert [{**g, "lr": 0, "weight_decay": 0} for g in ours["param_groups"]] == \
        [{**g, "lr": 0, "weight_decay": 0} for g in theirs["param_groups"]]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, state in ours["state"].items():
        assert {k: getattr(v, "shape", v) for k, v in state.items()} == \
            {k: getattr(v, "shape", v) for k, v in theirs["state"][index].items()}
