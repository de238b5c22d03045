"""
Walk a cycle, phases 0 to 5 of ideas/plan.md, as far as the gates allow:

    python -m scripts.cycle --label=cycle1 --dry-run
    python -m scripts.cycle --label=cycle1 --profile=smoke-cpu --depths 2 4

Each step is a template of runs/ under the label <label>_<template>. A step that is done, by its result files and the
ledger, is not run again, so a stopped cycle goes on with the same command. Variables of the templates (SEEDS,
MAX_SEEDS, PRIMARY, BATCH, DEPTH, TARGET_FLOPS, ...) are read from the environment. Writes results/<label>_cycle.json.
Exit code: 0 walked to where the gates end it, 1 stopped for want of runs, 2 bad input, 130 interrupted.
"""

import os
import sys
from pathlib import Path

from nanochat.checks import MOST_RATIO, cut
from nanochat.command_line import Parser, say_error
from nanochat.common import REPO_ROOT, get_base_dir
from nanochat.lab.arms import parse_depths, require_label
from nanochat.lab.commands import RESULTS_DIR, call
from nanochat.lab.cycle.rules import PHASES, plateau
from nanochat.lab.cycle.walk import Cycle, read_cycles, walk
from nanochat.lab.ledger.bank import noise_seeds
from nanochat.lab.ledger.experiments import LEDGER
from nanochat.lab.profiles import PROFILES, choose, on_data
from nanochat.lab.protocol.runner import stop_on_signals


def build_parser():
    parser = Parser(prog="python -m scripts.cycle", allow_abbrev=False,
                    description="Run phases 0 to 5 of ideas/plan.md, as far as the verdicts allow.")
    parser.add_argument("--label", default="cycle1",
                        help="name of the cycle; each step adds _<template> (default: %(default)s)")
    parser.add_argument("--profile", choices=list(PROFILES), help="the workload (default: as scripts.protocol)")
    parser.add_argument("--data", metavar="NAME", help="a corpus of your own (as scripts.protocol)")
    parser.add_argument("--flags", default="", metavar="FLAGS",
                        help="training flags of every arm, as in --flags='--num-iterations=30'")
    parser.add_argument("--depths", nargs="+", action="extend", metavar="DEPTH",
                        help="depths of the miniseries (default: 8 12 16)")
    parser.add_argument("--ratios", nargs="+", metavar="RATIO", default=["8", "10", "12"],
                        help="tokens per parameter in the horizon sweep (default: 8 10 12)")
    parser.add_argument("--noise-seeds", type=int, default=8, metavar="N",
                        help="control runs to bank first (default: %(default)s)")
    parser.add_argument("--ledger", type=Path, default=LEDGER, metavar="PATH",
                        help="table of all runs, the bank included (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and which steps are done; run nothing")
    return parser


def require_ratio(text: str):
    try:
        ok = 0 < float(text) <= MOST_RATIO
    except ValueError:
        ok = False
    if not ok:
        raise ValueError(f"--ratios: {cut(text)!r} is no number of tokens per parameter, expected one above 0, at most "
                         f"{MOST_RATIO:g}")


def make_cycle(args) -> Cycle:
    require_label(args.label)
    noise_seeds(args.noise_seeds)  # refuses a number that is no number of runs
    for ratio in args.ratios:
        require_ratio(ratio)
    profile = on_data(choose(args.profile, "protocol-16gb").profile, args.data, get_base_dir())
    return Cycle(args.label, profile, args.flags, parse_depths(args.depths or ["8 12 16"]), args.ratios, RESULTS_DIR,
                 args.ledger, args.noise_seeds, args.dry_run, profile.home(get_base_dir()))


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    try:
        cycle = make_cycle(args)
        phases = ", ".join(f"{i} {name}" for i, name in enumerate(PHASES))
        print(f"cycle {cycle.label}: profile {cycle.workload}; {phases}")
        print("each step says how many cells, how long and how much disk before it begins; --dry-run lists the steps")
        record = walk(cycle, call)
        print(plateau(read_cycles(RESULTS_DIR))[1])
    except (ValueError, OSError) as e:
        say_error(e)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0 if record.complete or cycle.dry_run else 1


if __name__ == "__main__":
    os.chdir(REPO_ROOT)  # as the templates do: results/ is the repository's
    here = Path(sys.executable).parent  # the templates take this Python
    os.environ.update(SKIP_SETUP="1", PATH=f"{here}{os.pathsep}{os.environ['PATH']}")
    stop_on_signals()
    sys.exit(main())
