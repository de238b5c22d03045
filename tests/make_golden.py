"""
Golden figures of upstream nanochat for test_parity.py: runs a checkout of it and writes golden_upstream.json.

python tests/make_golden.py PATH_TO_UPSTREAM                  (figures of everything, into the JSON beside this file)
python tests/make_golden.py PATH_TO_UPSTREAM --tensors=FILE   (whole tensors of every case, for the live test)

Inputs and figures are those of closed_form.py. Upstream's trainer is a script: of it, the statements that compute
its numbers are picked out and run.
"""

import argparse
import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch
from closed_form import CASES, RATES, figures, forward, initial_weights, updates

GOLDEN = Path(__file__).with_name("golden_upstream.json")
TRAININGS = (  # (flags, vocabulary)
    ("--depth=4", 4096), ("--depth=11 --aspect-ratio=50", 32768), ("--depth=12", 32768),
    ("--depth=6 --head-dim=64 --window-pattern=L --max-seq-len=512 --total-batch-size=16384 "
     "--num-iterations=5000", 8192),
    ("--depth=24 --target-param-data-ratio=8 --weight-decay=0.2", 32768),
    ("--depth=20 --target-flops=1e18 --warmdown-ratio=0.3 --warmup-steps=7 --final-lr-frac=0", 65536),
    ("--depth=5 --num-iterations=450 --target-flops=1e15 --device-batch-size=4 --total-batch-size=24576", 50257),
)
WANTED = set("""param_counts num_flops_per_token num_scaling_params target_tokens D_REF total_batch_size batch_lr_scale
    weight_decay_scaled num_iterations total_tokens grad_accum_steps""".split())
NAMES = WANTED | set("args num_params d12_ref B_REF batch_ratio tokens_per_fwdbwd world_tokens_per_fwdbwd".split())
FUNCTIONS = {"build_model_meta", "get_scaling_params", "get_lr_multiplier", "get_muon_momentum", "get_weight_decay"}


def is_wanted(node) -> bool:
    text = ast.unparse(node)
    stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return getattr(node, "name", None) in FUNCTIONS or text.startswith(("parser", "model = build_model_meta(")) \
        or isinstance(node, (ast.Assign, ast.If)) and bool(stored & NAMES)


def trainer_numbers(source: str, flags: str, vocab_size: int, GPT, GPTConfig) -> dict:
    """Run the statements of upstream's trainer that bind NAMES or define FUNCTIONS; return the bound values."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if is_wanted(node)]
    sys.argv = ["base_train", *flags.split()]
    found = dict(argparse=argparse, math=math, torch=torch, print0=lambda *_: None, GPT=GPT, GPTConfig=GPTConfig,
                 vocab_size=vocab_size, ddp_world_size=1)
    exec(compile(tree, "base_train", "exec"), found)
    n = found["num_iterations"]
    schedule = [[it, *(found[f](it) for f in ("get_lr_multiplier", "get_muon_momentum", "get_weight_decay"))]
                for it in sorted({i for i in (0, 1, 6, 7, 39, 40, 399, 400, n // 3, n // 2, n - 1, n) if i <= n})]
    numbers = {key: found[key] for key in sorted(WANTED)}
    return dict(flags=flags, vocab_size=vocab_size, schedule=schedule, args=vars(found["args"]), **numbers)


def run_upstream(path: str, tensors: str | None) -> dict:
    sys.path.insert(0, path)
    from nanochat.gpt import GPT, GPTConfig
    results, whole = {}, {}
    for name, config in CASES.items():
        with torch.device("meta"):
            model = GPT(GPTConfig(**config))
        model.to_empty(device="cpu")
        torch.manual_seed(42)
        model.init_weights()
        init, weights = initial_weights(model), {key: p.detach().clone() for key, p in model.named_parameters()}
        out, moved = forward(model, config), updates(model, model.setup_optimizer(**RATES))
        results[name] = dict(init=init, **figures(out, moved))
        whole[name] = dict(init=weights, updates=moved, **out)
    if tensors:
        torch.save(whole, tensors)
    source = Path(path, "scripts/base_train.py").read_text(encoding="utf-8")
    return {**results, "trainings": [trainer_numbers(source, *training, GPT, GPTConfig) for training in TRAININGS]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("upstream")
    parser.add_argument("--tensors")
    parser.add_argument("--print", action="store_true",
                        help="figures in the dtype of NANOCHAT_DTYPE, as JSON on the last line")
    args = parser.parse_args()
    if args.tensors or args.print:
        torch.set_num_threads(1)
        return print("\n" + json.dumps(run_upstream(args.upstream, args.tensors)))
    commit = subprocess.run(["git", "-C", args.upstream, "rev-parse", "HEAD"], check=True, capture_output=True,
                            text=True).stdout.strip()
    golden = dict(upstream_commit=commit, torch=torch.__version__)
    for dtype in ("float32", "bfloat16"):  # upstream fixes its dtype at import: a process each, its compilation off
        run = subprocess.run([sys.executable, __file__, args.upstream, "--print"], check=True, capture_output=True,
                             text=True, env={**os.environ, "NANOCHAT_DTYPE": dtype, "TORCHDYNAMO_DISABLE": "1"})
        short = json.loads(run.stdout.splitlines()[-1], parse_float=lambda text: float(f"{float(text):.12g}"))
        golden["trainings"] = short.pop("trainings")
        golden[dtype] = short
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
