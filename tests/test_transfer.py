"""
Our patches on upstream nanochat: off they change no bit, on they are our gate; and a protocol on it.

NANOCHAT_UPSTREAM=../nanochat python -m pytest tests/test_transfer.py -q
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat.common import REPO_ROOT, read_json
from nanochat.gpt import GPTConfig, build_model
from nanochat.lab.profiles import PROFILES
from nanochat.lab.protocol import protocol
from nanochat.lab.protocol.plan import Workload
from nanochat.lab.protocol.results import curve
from nanochat.lab.trees.patches import UPSTREAM_COMMIT, git
from nanochat.lab.trees.tree_arms import make_all_arms
from tests.tiny import make_base

UPSTREAM = os.environ.get("NANOCHAT_UPSTREAM")
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not UPSTREAM, reason="NANOCHAT_UPSTREAM names no checkout of upstream nanochat")]
SEED, GATE = (REPO_ROOT / "patches" / f"nanochat_{name}.patch" for name in ("seed", "symplectic_candidate"))
FLAGS = ["--depth=3", "--head-dim=32", "--aspect-ratio=32", "--max-seq-len=64", "--device-batch-size=4",
         "--total-batch-size=512", "--num-iterations=12", "--warmup-steps=3", "--eval-every=6", "--eval-tokens=1024",
         "--core-metric-every=-1", "--sample-every=-1", "--window-pattern=SL", "--device-type=cpu"]
MODEL = dict(sequence_len=64, vocab_size=128, n_layer=3, n_head=2, n_kv_head=2, n_embd=64, window_pattern="L")


def clone(folder, *patches) -> Path:
    subprocess.run(["git", "clone", "--quiet", UPSTREAM, str(folder)], check=True)
    git(folder, "checkout", "--quiet", "--detach", UPSTREAM_COMMIT)
    for patch in patches:
        git(folder, "apply", str(patch))
    return folder


def python(tree, base, *argv, **variables):
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "TORCHDYNAMO_DISABLE": "1", "NANOCHAT_DTYPE": "float32",
           **variables}
    return subprocess.run([sys.executable, *argv], cwd=tree, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    return {"plain": clone(folder / "plain"), "both": clone(folder / "both", SEED, GATE),
            "other_order": clone(folder / "other", GATE, SEED)}


@pytest.fixture(scope="module")
def trained(trees, tmp_path_factory):
    """{tag: (weights, optimizer, meta)} of short runs on one stream of documents."""
    base = tmp_path_factory.mktemp("base")
    make_base(base, documents=1200, rows_per_group=256)
    runs = {"plain": ("plain", []), "off": ("both", []), "seed42": ("both", ["--seed=42"]),
            "seed7": ("both", ["--seed=7"]), "seed7_again": ("both", ["--seed=7"]),
            "gate": ("both", ["--symplectic-gate"])}
    found = {}
    for tag, (tree, flags) in runs.items():
        done = python(trees[tree], base, "-m", "scripts.base_train", *FLAGS, *flags, f"--model-tag={tag}")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        folder = base / "base_checkpoints" / tag
        found[tag] = (*(torch.load(folder / f"{name}.pt", weights_only=True)
                        for name in ("model_000012", "optim_000012_rank0")),
                      read_json(folder / "meta_000012.json"))
    return found


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


def test_either_order_of_the_patches_gives_one_tree(trees):
    assert git(trees["both"], "diff") == git(trees["other_order"], "diff") != ""


@pytest.mark.parametrize("tag", ["off", "seed42"])
def test_patches_that_are_off_change_no_bit(trained, tag):
    assert same(trained[tag][:2], trained["plain"][:2])
    ours, theirs = trained[tag][2], trained["plain"][2]
    assert (ours["val_bpb"], ours["model_config"], ours["dataloader_state_dict"]) == \
        (theirs["val_bpb"], theirs["model_config"], theirs["dataloader_state_dict"])
    assert ours["loop_state"]["smooth_train_loss"] == theirs["loop_state"]["smooth_train_loss"]


def test_seed_repeats_itself_and_differs_from_others_and_so_does_the_gate(trained):
    assert same(trained["seed7"][:2], trained["seed7_again"][:2])
    assert trained["seed7"][2]["val_bpb"] != trained["plain"][2]["val_bpb"] != trained["gate"][2]["val_bpb"]


DOCUMENTS = """
import sys
from itertools import islice
from nanochat import dataloader
dataloader.set_document_order(int(sys.argv[1]))
for batch, place in islice(dataloader._document_batches(sys.argv[2], None, 128), int(sys.argv[3])):
    for text in batch:
        print(hash(text))
"""


def test_seed_shuffles_the_training_documents_and_never_the_validation_split(trees, tmp_path):
    make_base(tmp_path, documents=1200, rows_per_group=256)

    def documents(seed, split, batches=8):
        done = python(trees["both"], tmp_path, "-c", DOCUMENTS, str(seed), split, str(batches), PYTHONHASHSEED="0")
        assert done.returncode == 0, done.stderr
        return done.stdout.split()
    files, seven, eight = (documents(seed, "train", 12) for seed in (42, 7, 8))
    assert seven == documents(7, "train", 12) and len({*map(tuple, (files, seven, eight))}) == 3
    assert sum(a == b for a, b in zip(files, seven)) < 0.3 * len(files)
    assert documents(7, "val", 2) == documents(42, "val", 2)


LOGITS = """
import json, sys, torch
from nanochat.gpt import GPT, GPTConfig
from nanochat.engine import KVCache
weights, model_config, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
with torch.device("meta"):
    model = GPT(GPTConfig(**model_config))
model.to_empty(device="cpu")
model.init_weights()
model.load_state_dict(torch.load(weights), strict=True)
model.eval()
ids = torch.load(weights + ".ids")
def cache(rows):
    c = model.config
    return KVCache(rows, c.n_kv_head, 64, c.n_embd // c.n_head, c.n_layer, "cpu", torch.float32)
with torch.inference_mode():
    full = model(ids)
    kv = cache(len(ids))
    steps = torch.cat([model(ids[:, :5], kv_cache=kv)]
                      + [model(ids[:, i:i + 1], kv_cache=kv) for i in range(5, ids.size(1))], dim=1)
    one, many = cache(1), cache(3)
    model(ids[:1, :9], kv_cache=one)
    many.prefill(one)
    copies = torch.cat([model(ids[:1, i:i + 1].expand(3, 1), kv_cache=many) for i in range(9, ids.size(1))], dim=1)
    kv.reset()
    again = model(ids, kv_cache=kv)
torch.save(dict(full=full, steps=steps, copies=copies, again=again), out)
"""


@pytest.mark.parametrize("mix, eps", [(0.15, 1e-6), (1.0, 1e-3)])
def test_gate_equals_ours_and_decoding_equals_the_full_forward(trees, tmp_path, mix, eps):
    gate = dict(symplectic_gate_mix=mix, symplectic_gate_eps=eps)
    model = build_model(GPTConfig(**MODEL, residual="symplectic", **gate), "cpu", seed=1).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    ids = torch.randint(0, MODEL["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(1))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    torch.save(ids, tmp_path / "w.pt.ids")
    done = python(trees["both"], tmp_path, "-c", LOGITS, str(tmp_path / "w.pt"), json.dumps({**MODEL, **gate}),
                  str(tmp_path / "out.pt"))
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.inference_mode():
        ours = model(ids)
    assert (ours - theirs["full"]).abs().max() < 1e-5 and theirs["full"].std() > 0.1
    assert (theirs["steps"] - theirs["full"]).abs().max() < 1e-4
    assert (theirs["copies"] - theirs["full"][:1, 9:]).abs().max() < 1e-4
    assert (theirs["again"] - theirs["full"]).abs().max() < 1e-4  # a cache that was reset
    plain = build_model(GPTConfig(**MODEL), "cpu", seed=1).eval()
    plain.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert (plain(ids) - theirs["full"]).abs().max() > 1e-2  # the gate does something


@pytest.mark.parametrize("flags, message", [(["--symplectic-gate-mix=0.1"], "change nothing without --symplectic-gate"),
                                            (["--symplectic-gate", "--symplectic-gate-mix=1.5"], "expected a mix in"),
                                            (["--symplectic-gate", "--symplectic-gate-eps=0"], "an eps above 0")])
def test_bad_values_are_refused_at_once(trees, tmp_path, flags, message):
    done = python(trees["both"], tmp_path, "-m", "scripts.base_train", *FLAGS, *flags)
    assert done.returncode == 2 and message in done.stderr


def test_protocol_of_two_arms_and_two_seeds_runs_on_upstream(trees, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(protocol, "draw_protocol", lambda *args: False)
    home = tmp_path / "home"
    make_base(home, documents=1200, rows_per_group=256)
    arms = make_all_arms([], [f"control: tree={trees['plain']} patch={SEED}",
                              f"gate: tree={trees['plain']} patch={SEED} patch={GATE} flags=--symplectic-gate "
                              "--symplectic-gate-mix=0.15"], [*FLAGS, "--no-compile", "--dtype=float32"], tmp_path)
    made = protocol.Protocol("up", Workload(PROFILES["smoke-cpu"], home), arms, [1, 2])
    made.identify("data", "tok")
    assert protocol.run(made) == 0
    facts = read_json("results/up_latest.json")
    assert ([run["run_status"] for run in facts["runs"]] == ["ok"] * 4
            and len({run["val_bpb"] for run in facts["runs"]}) == 4)
    assert [(run["evaluator"], run.get("fault")) for run in facts["runs"]] == [("control", None)] * 4
    assert (facts["provenance"]["upstream_commit"] == UPSTREAM_COMMIT
            and git(trees["plain"], "status", "--porcelain") == "")
    for run in facts["runs"]:
        assert [step for step, _, _ in curve(home, run["run_tag"])] == [6, 12]
        meta = read_json(home / "base_checkpoints" / run["run_tag"] / "meta_000012.json")
        assert meta["val_bpb"] == run["val_bpb"] and meta["user_config"]["seed"] == run["seed"]
        assert meta["model_config"].get("symplectic_gate_mix") == (0.15 if run["arm"] == "gate" else None)
    assert protocol.run(made) == 0 and read_json("results/up_latest.json")["runs"][0]["reused"]
