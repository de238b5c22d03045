"""
Compare candidates with a control on the same seeds, and give a verdict on each candidate:

    python -m scripts.protocol --label=mix005 --seeds 1337 2026 --num-iterations=64 \\
        --candidate="mix005: --symplectic-gate --symplectic-gate-mix=0.05"

An arm is the control or a candidate; a cell is the run of an arm on a seed. Every arm is checked before the first run.
Complete runs are reused, and stopped runs are resumed. Writes results/<label>_latest.json, <label>_history.csv and
<label>.png in the working directory, and a row for each run into the ledger. Exit code: 0 all runs ok, 1 some run
failed, 2 bad input, 130 interrupted (the same command goes on).
"""

import os
import sys
from pathlib import Path

from nanochat import dataset, tokenizer
from nanochat.checks import cut
from nanochat.command_line import Parser
from nanochat.common import get_base_dir
from nanochat.lab import profiles
from nanochat.lab.arms import parse_seeds, refuse_equal, same_run, split_flags, without_the_control
from nanochat.lab.commands import exit_code, extra_words
from nanochat.lab.ledger.experiments import LEDGER
from nanochat.lab.protocol.build import build_protocol, check_arms, choose_workload, make_data
from nanochat.lab.protocol.plan import Plan
from nanochat.lab.protocol.protocol import Protocol, run
from nanochat.lab.protocol.runner import stop_on_signals
from nanochat.lab.trees.tree_arms import make_all_arms
from nanochat.lab.verdict.declaration import PRIMARY
from nanochat.lab.verdict.looks import MAX_SEEDS, MOST_SEEDS

DEFAULT_SEEDS = ("1337", "2026")
DEFAULT_CANDIDATE = "--symplectic-gate --symplectic-gate-mix=0.15"
TAKES_FLAGS = ("--candidate", "--flags", "--arm")


def build_parser():
    parser = Parser(prog="python -m scripts.protocol", allow_abbrev=False,
                    description="Compare candidates with a control on the same seeds, and give a "
                                "verdict on each.")
    parser.add_argument("--label", default="", help="name of the comparison, of its result files and of its runs")
    parser.add_argument("--seeds", nargs="+", action="extend", metavar="SEED",
                        help=f"whole numbers, the same for every arm (default: {' '.join(DEFAULT_SEEDS)})")
    parser.add_argument("--candidate", action="append", metavar="'[NAME:] FLAGS'",
                        help=f"training flags that a candidate adds to the control; repeat for more candidates "
                             f"(default: {DEFAULT_CANDIDATE})")
    parser.add_argument("--grid", action="store_true",
                        help="the candidates are points of a grid (runs/): leave out one that is the control itself")
    parser.add_argument("--arm", action="append", default=[], metavar="'NAME: tree=PATH patch=FILE flags=...'",
                        help="an arm on another checkout, or with patches (patches/README.md); rename=OURS:THEIRS maps "
                             "a flag that it has under another name; an arm named control replaces the control")
    parser.add_argument("--profile", choices=list(profiles.PROFILES),
                        help="the workload: model, batch, steps and data (default: protocol-16gb on a CUDA card of "
                             "16 GB, smoke-16gb on a smaller one, smoke-mps on a Mac's GPU, else smoke-cpu)")
    parser.add_argument("--data", metavar="NAME",
                        help="train on a corpus of your own in place of the profile's: what python -m nanochat.dataset "
                             "--from PATH --name NAME made")
    parser.add_argument("--num-iterations", type=int, help="optimizer steps, in place of the profile's")
    parser.add_argument("--flags", default="", metavar="'FLAGS'",
                        help="training flags for every arm, the control included")
    _add_rules(parser)
    parser.add_argument("--aa", action="store_true", default=os.environ.get("AA", "") not in ("", "0"),
                        help="candidates are the control on other seeds, so that every promotion is a false one "
                             "(also AA=1)")
    parser.add_argument("--ledger", type=Path, default=LEDGER, metavar="PATH",
                        help="table of all runs, the bank included (default: dev/ledger/experiments.csv, or "
                             "NANOCHAT_LEDGER)")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="runs side by side (default: on a CPU the arms of a seed, else 1)")
    parser.add_argument("--timeout-minutes", type=float, metavar="MINUTES",
                        help="stop a run after this long; the same command resumes it")
    parser.add_argument("--fresh", action="store_true", default=os.environ.get("FRESH", "") not in ("", "0"),
                        help="reuse no run (also FRESH=1)")
    return parser


def _add_rules(parser):
    """The options that are declared before the first run: the rules of the verdict."""
    parser.add_argument("--primary", choices=list(PRIMARY), default="val_bpb",
                        help="the metric that decides; of the other metrics a candidate may not lose more than their "
                             "floor (default: %(default)s)")
    parser.add_argument("--target-bpb", type=float, metavar="BPB",
                        help="val_bpb that the time to target is measured to (default: from the bank)")
    parser.add_argument("--fallback", choices=("wall_time",),
                        help="the metric that decides if a candidate misses the target")
    parser.add_argument("--min-gain", type=float, metavar="GAIN",
                        help="the smallest gain worth having, in bpb or as the log of a ratio of times: a candidate is "
                             "promoted if it is shown to have more, rejected if shown to have less (default: promoted "
                             "above 0.1 sd of a control run, rejected below one sd of the bank)")
    parser.add_argument("--new-hypothesis", metavar="'WHY'",
                        help="the new reason to try candidates that earlier labels tried: they get the level of a "
                             "first label again (0.04), and the reason is shown with the verdict")
    parser.add_argument("--noise", choices=("bank", "own"), default="bank",
                        help="how the noise is known: from banked runs of the control (make noise), or from the "
                             "differences of this comparison alone (default: %(default)s)")
    parser.add_argument("--until", choices=("decided",),
                        help="add seeds, one at a time, until every candidate is promoted, or has a chance below "
                             "10 %% to pass")
    parser.add_argument("--max-seeds", type=int, metavar="N",
                        help=f"with --until: run this many seeds at most (default: {MAX_SEEDS})")


def join_flag_values(argv):
    """argparse takes a value that begins with -- for an option; joined by = it is a value.

    >>> join_flag_values(["--candidate", "--symplectic-gate --depth=4", "--fresh"])
    ['--candidate=--symplectic-gate --depth=4', '--fresh']
    """
    out, words = [], iter(argv)
    for word in words:
        value = next(words, None) if word in TAKES_FLAGS else None
        out.append(word if value is None else f"{word}={value}")
    return out


def all_seeds(seeds, until, most):
    """Every seed that may be run: those given, and with --until the next ones up to --max-seeds.

    >>> all_seeds([5, 9], "decided", 4)
    [5, 9, 10, 11]
    """
    if not until:
        if most is not None:
            raise ValueError(f"--max-seeds={most}: only with --until=decided; otherwise --seeds says it all")
        return seeds
    most = MAX_SEEDS if most is None else most
    if most > MOST_SEEDS:
        raise ValueError(f"--max-seeds={cut(most)}: expected at most {MOST_SEEDS}")
    if len(seeds) > most:
        raise ValueError(f"--max-seeds={most}: {len(seeds)} seeds were given")
    return seeds + [max(seeds) + i for i in range(1, most - len(seeds) + 1)]


def make_protocol(args) -> Protocol:
    """Every error in the arguments is found here, before data is made or anything is trained."""
    seeds = all_seeds(parse_seeds(DEFAULT_SEEDS if args.seeds is None else args.seeds), args.until, args.max_seeds)
    common = [f"--num-iterations={args.num_iterations}"] if args.num_iterations is not None else []
    workload = choose_workload(args.profile, "protocol-16gb", [*common, *split_flags("--flags", args.flags)],
                               args.data)
    candidates = args.candidate or (["aa:"] if args.aa else [] if args.arm else [DEFAULT_CANDIDATE])
    arms = make_all_arms(candidates, args.arm, workload.flags, get_base_dir())
    if args.grid:
        arms = without_the_control(arms)
    if args.aa and (args.arm or not all(same_run(arm, arms[0]) for arm in arms)):
        raise ValueError("--aa runs the control against itself: leave --candidate and --arm out, "
                         "or give candidates no flags")
    if not args.aa:
        refuse_equal(arms)
    plan = Plan(args.primary, args.fallback, args.min_gain, args.target_bpb, args.noise, bool(args.until), args.aa,
                args.new_hypothesis)
    return build_protocol(args.label, workload, arms, seeds, plan=plan, ledger=args.ledger, fresh=args.fresh,
                          timeout_sec=args.timeout_minutes and args.timeout_minutes * 60, jobs=args.jobs,
                          extra=extra_words(args, LEDGER))


def compare(args) -> int:
    protocol = make_protocol(args)
    make_data(protocol, dataset, tokenizer)
    from nanochat.cost import resolve  # needs torch, which takes seconds
    check_arms(protocol, resolve, tokenizer)
    return run(protocol)


def main(argv=None) -> int:
    args = build_parser().parse_args(join_flag_values(sys.argv[1:] if argv is None else argv))
    return exit_code(lambda: compare(args))


if __name__ == "__main__":
    stop_on_signals()
    sys.exit(main())
