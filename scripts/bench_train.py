"""
Training speed of this tree against an upstream nanochat checkout, on this machine.

    python -m scripts.bench_train --upstream ../nanochat --rounds 2 --output-json bench.json

A case is a batch size, a dtype and a mode. Each is run in turn in both trees, through the public command of the tree,
on the same shards and tokenizer: those of the smoke-cpu profile, which `make smoke` makes. Compare the ratios of the
median step times, because the seconds depend on the machine. Upstream keeps no record of its steps, so the times of
both are read from the step lines on stdout, without the first ones. Let nothing else run meanwhile.
"""

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from nanochat.command_line import Parser, say_error
from nanochat.common import REPO_ROOT, child_environment, get_base_dir, write_json

SHAPE = ["--depth=4", "--max-seq-len=512", "--window-pattern=L", "--eval-every=-1", "--core-metric-every=-1",
         "--sample-every=-1"]
BATCHES = {2048: ("--device-batch-size=4", 14), 16384: ("--device-batch-size=32", 6)}  # tokens a step: (rows, steps)
WARM_UP_STEPS = 3
STEP_MS = re.compile(r"^step \d+/.* dt: ([\d.]+)ms", re.M)


def case_command(ours: bool, tokens: int, dtype: str, compiled: bool) -> tuple[list[str], dict]:
    """(argv, extra environment) of one case in one tree."""
    rows, steps = BATCHES[tokens]
    argv = [sys.executable, "-m", "scripts.base_train", *SHAPE, rows, f"--total-batch-size={tokens}",
            f"--num-iterations={steps}"]
    environment = {"NANOCHAT_DTYPE": dtype}
    if ours:
        argv += ["--model-tag=bench_ours", "--data-order=file", "--compile" if compiled else "--no-compile"]
    else:
        argv += ["--model-tag=bench_upstream"]
        environment |= {} if compiled else {"TORCHDYNAMO_DISABLE": "1"}
    return argv, environment


def step_ms(tree: Path, base_dir: Path, ours: bool, case: tuple) -> float:
    """Median milliseconds of a step after the warm-up. Raises ValueError with the end of the output if it failed."""
    argv, environment = case_command(ours, *case)
    run = subprocess.run(argv, cwd=tree, capture_output=True, encoding="utf-8", errors="replace",
                         env=child_environment(NANOCHAT_BASE_DIR=base_dir, PYTHONPATH="", **environment))
    times = [float(ms) for ms in STEP_MS.findall(run.stdout)][WARM_UP_STEPS:]
    if run.returncode or not times:
        raise ValueError(f"{' '.join(argv)} in {tree} failed:\n"
                         + "\n".join((run.stdout + run.stderr).splitlines()[-8:]))
    return statistics.median(times)


def measure(upstream: Path, base_dir: Path, cases: list[tuple], rounds: int) -> list[dict]:
    rows = []
    for case in cases:
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(step_ms(REPO_ROOT, base_dir, True, case))
            theirs.append(step_ms(upstream, base_dir, False, case))
        tokens, dtype, compiled = case
        row = dict(tokens_per_step=tokens, dtype=dtype, compiled=compiled, rounds=rounds,
                   ours_tok_per_sec=1000 * tokens / statistics.median(ours),
                   upstream_tok_per_sec=1000 * tokens / statistics.median(theirs),
                   ratio=statistics.median(t / o for o, t in zip(ours, theirs)), load=os.getloadavg()[0])
        rows.append(row)
        print(f"{tokens:6d} tokens  {dtype:8s}  {'compiled' if compiled else 'eager':8s}  "
              f"ours {row['ours_tok_per_sec']:7.0f}  "
              f"upstream {row['upstream_tok_per_sec']:7.0f} tok/s  ratio {row['ratio']:.2f}", flush=True)
    return rows


def main() -> int:
    parser = Parser(prog="bench_train",
                    description="Measure training speed against an upstream checkout.")
    parser.add_argument("--upstream", type=Path, required=True, help="folder of a checkout of karpathy/nanochat")
    parser.add_argument("--base-dir", type=Path, default=None,
                        help="base dir with the shards and the tokenizer (default: the smoke-cpu profile's)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each case is run in each tree")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(BATCHES), choices=list(BATCHES),
                        help="tokens a step (default: both)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="compute dtypes (default: both)")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"],
                        help="with and without torch.compile (default: both)")
    parser.add_argument("--output-json", type=Path, default=None, help="also write the figures to this file")
    args = parser.parse_args()
    base_dir = args.base_dir or get_base_dir() / "lab" / "smoke-cpu"
    cases = list(itertools.product(args.tokens, args.dtypes, [mode == "compiled" for mode in args.modes]))
    try:
        rows = measure(args.upstream.resolve(), base_dir.resolve(), cases, args.rounds)
    except ValueError as e:
        say_error(e, "bench_train")
        return 1
    if args.output_json:
        write_json(args.output_json, rows)
    print(json.dumps({"least_ratio": min(row["ratio"] for row in rows)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
