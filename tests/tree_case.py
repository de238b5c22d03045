"""
A made-up nanochat in a git repository of its own, for test_patches.py and test_tree_arms.py. Its trainer has
upstream's flags and leaves upstream's files, in milliseconds and without torch. TREE_PLAN in the environment is
JSON, {run tag: how}:

    ok    | a checkpoint at every --save-every
    nan   | the loss is not a number at the last step
    wait  | after the first checkpoint, the trainer runs until it is told to stop
    crash | exit code 1 after the second checkpoint
    die   | the trainer is killed after the second checkpoint
    torn  | as die, and the last optimizer file is cut off
"""

import json
import os
import subprocess
from pathlib import Path

from nanochat.common import read_json
from nanochat.lab.profiles import PROFILES
from nanochat.lab.protocol.plan import Workload
from nanochat.lab.protocol.protocol import Protocol
from nanochat.lab.protocol.results import curve
from nanochat.lab.trees.tree_arms import make_all_arms
from nanochat.record import read_record
from tests.lab_case import FAKE, enter

FILES = {"nanochat/__init__.py": "", "README.md": "made up\n", "nanochat/model.py": """\
# the model
LOSS = 3.0

# the rest
WIDTH = 4
""", "scripts/base_train.py": """\
import argparse, json, os, signal, sys, time, zipfile
from pathlib import Path
from nanochat.model import LOSS

parser = argparse.ArgumentParser(description="Pretrain: --not-a-flag, as in\\n  --not-one-either")
parser.add_argument("--device-type", type=str, default="", help="cuda|cpu|mps (as in --nor-this)")
parser.add_argument("--fp8", action="store_true")
for name, default in (("depth", 20), ("aspect-ratio", 64), ("head-dim", 128), ("max-seq-len", 2048),
                      ("num-iterations", -1), ("device-batch-size", 32), ("total-batch-size", -1), ("warmup-steps", 40),
                      ("eval-every", 250), ("eval-tokens", 1), ("core-metric-every", 2000), ("sample-every", 2000),
                      ("save-every", -1), ("resume-from-step", -1)):
    parser.add_argument("--" + name, type=int, default=default)
for name in ("target-flops", "target-param-data-ratio", "matrix-lr"):
    parser.add_argument("--" + name, type=float, default=1.0)
parser.add_argument("--window-pattern", default="SSSL")
parser.add_argument("--experts", type=int, default=0, help="a flag of this tree alone")
parser.add_argument("--run", default="dummy")
parser.add_argument("--model-tag")
args = parser.parse_args()

how = json.loads(os.environ.get("TREE_PLAN", "{}")).get(args.model_tag, "ok")
folder = Path(os.environ["NANOCHAT_BASE_DIR"]) / "base_checkpoints" / args.model_tag
folder.mkdir(parents=True, exist_ok=True)
seed, first = getattr(args, "seed", 42), max(0, args.resume_from_step)
print("starts at", first, flush=True)
if first:
    with zipfile.ZipFile(folder / f"optim_{first:06d}_rank0.pt"):
        pass
for step in range(first, args.num_iterations + 1):
    if step and step != args.resume_from_step and (
            step == args.num_iterations or args.save_every > 0 and step % args.save_every == 0):
        bpb = LOSS - 0.01 * step + 0.001 * (seed % 7) + 0.1 * args.experts
        if how == "nan" and step == args.num_iterations:
            bpb = float("nan")
        with zipfile.ZipFile(folder / f"model_{step:06d}.pt", "w") as f:
            f.writestr("weights", "w" * 1000)
        meta = {"step": step, "val_bpb": bpb, "user_config": vars(args), "total_batch_size": args.total_batch_size,
                "model_config": {"n_layer": args.depth}, "environment": dict(os.environ),
                "loop_state": {"min_val_bpb": bpb if args.eval_every > 0 else float("inf"),
                               "smooth_train_loss": 2.0 * (1 - 0.9 ** step),
                               "total_training_time": 0.5 * max(0, step - 11)}}
        (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))
        with zipfile.ZipFile(folder / f"optim_{step:06d}_rank0.pt", "w") as f:
            f.writestr("moments", "m" * 1000)
        if how == "wait":
            for beat in range(6000):
                (folder / "beat").write_text(str(beat))
                time.sleep(0.01)
        if how in ("die", "torn", "crash") and step >= 2 * args.save_every:
            path = folder / f"optim_{step:06d}_rank0.pt"
            if how == "torn":
                path.write_bytes(path.read_bytes()[:50])
            if how == "crash":
                sys.exit("RuntimeError: made up")
            os.killpg(0, signal.SIGKILL)
"""}
SEED_EDIT = ("scripts/base_train.py", 'parser.add_argument("--run"',
             'parser.add_argument("--seed", type=int, default=42)\n')
BETTER_EDIT = ("nanochat/model.py", "# the rest", "LOSS -= 0.25\n\n")


def git(folder, *args) -> str:
    options = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false",
               "-c", "init.defaultBranch=main", "-c", "core.autocrlf=false"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(["git", "-C", str(folder), *options, *args], check=True, capture_output=True, text=True,
                          env=env).stdout


def make_repo(folder) -> Path:
    folder = Path(folder).resolve()
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    for name, text in FILES.items():
        write(folder / name, text)
    commit(folder, "first")
    return folder


def commit(folder, message) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", message)
    return git(folder, "rev-parse", "HEAD").strip()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def insert(path, before, text):
    """Put `text` in front of `before`, which the file must hold exactly once."""
    old = path.read_text(encoding="utf-8")
    assert old.count(before) == 1
    path.write_text(old.replace(before, text + before), encoding="utf-8")


def make_patch(repo, path, *edits, base="") -> Path:
    """A patch file of `edits` (file, before, text), as in insert, to the committed files. The repo stays unchanged."""
    for name, before, text in edits:
        insert(repo / name, before, text)
    write(path, base + git(repo, "diff", "-U1"))
    git(repo, "checkout", "--quiet", ".")
    return path


def snapshot(folder) -> dict:
    """Every file outside .git, with its content."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and ".git" not in p.relative_to(folder).parts and "__pycache__" not in p.parts}


# -----------------------------------------------------------------------------
# Arms on it, in a protocol

PROFILE = PROFILES["smoke-cpu"]
COMMON = [*PROFILE.flags, "--num-iterations=20", "--dtype=float32"]
CONTROL = "control: tree=tree patch=seed.patch"
BETTER = "better: tree=tree patch=seed.patch patch=better.patch"


def enter_with_tree(folder, monkeypatch):
    """A working directory with a tree and two patches."""
    repo = make_repo(folder / "tree")
    make_patch(repo, folder / "seed.patch", SEED_EDIT)
    make_patch(repo, folder / "better.patch", BETTER_EDIT)
    enter(folder, monkeypatch)


def arms_of(*texts, common=COMMON):
    return make_all_arms([], texts, list(common), "base")


def make(*texts, seeds=(1, 2), common=COMMON, **options):
    workload = Workload(PROFILE, PROFILE.home("base"))
    made = Protocol("t", workload, arms_of(*texts, common=common), list(seeds), trainer=FAKE, **options)
    made.identify("data", "tok")
    return made


def plan(monkeypatch, **how):
    monkeypatch.setenv("TREE_PLAN", json.dumps({f"nc_t_d4_{cell}": what for cell, what in how.items()}))


def record_of(cell):
    return read_record(PROFILE.home("base"), f"nc_t_d4_{cell}")


def starts(cell):
    """The steps at which the trainer began, in the last series of attempts."""
    log = open(f"results/t/nc_t_d4_{cell}.log").read()
    return [int(line.split()[-1]) for line in log.splitlines() if line.startswith("starts at")]


def checkpoints(cell) -> Path:
    return PROFILE.home("base") / "base_checkpoints" / f"nc_t_d4_{cell}"


def curve_of(cell):
    return curve(PROFILE.home("base"), f"nc_t_d4_{cell}")


def meta(cell, step):
    return read_json(checkpoints(cell) / f"meta_{step:06d}.json")
