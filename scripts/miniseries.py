"""
Control and candidate at several depths, then one verdict on whether the gain holds at all of them:

    python -m scripts.miniseries --label=mix005 --depths 8 12 16 \\
        --candidate="mix005: --symplectic-gate --symplectic-gate-mix=0.05"

Each depth is a protocol of its own, label <label>_d<depth>, with its own noise bank. Complete runs are reused, so a
stopped miniseries goes on with the same command and repeats nothing. Without --seeds, seeds are added until each depth
is decided. Writes results/<label>_miniseries.json. Exit code: 0 judged, 2 bad input or a depth without verdict, 130
interrupted.
"""

import sys

from nanochat.command_line import Parser, say_error
from nanochat.common import get_base_dir, write_json
from nanochat.lab import own_data
from nanochat.lab.arms import parse_depths, parse_seeds, require_label
from nanochat.lab.commands import EXIT_FAILED_CELL, RESULTS_DIR, call, module_command, now, paste
from nanochat.lab.cycle import miniseries
from nanochat.lab.ledger.bank import noise_seeds
from nanochat.lab.profiles import get_profile
from nanochat.lab.protocol.runner import stop_on_signals
from nanochat.lab.report.index import index_for
from nanochat.lab.verdict.looks import MAX_SEEDS

# Flags of scripts.protocol that go there as they are
PASSED_ON = ("--candidate", "--seeds", "--until", "--max-seeds", "--noise", "--primary", "--target-bpb", "--fallback",
             "--min-gain", "--jobs", "--timeout-minutes", "--fresh", "--ledger")


def build_parser():
    parser = Parser(prog="python -m scripts.miniseries", allow_abbrev=False,
                    description="Compare a candidate with the control at several depths.",
                    epilog=f"These flags are passed on to scripts.protocol: {', '.join(PASSED_ON)}.")
    parser.add_argument("--label", default="miniseries",
                        help="name of the result files; each depth adds _d<depth> (default: %(default)s)")
    parser.add_argument("--depths", nargs="+", action="extend", metavar="DEPTH",
                        help="numbers of layers (default: 8 12 16)")
    parser.add_argument("--profile", help="the workload, apart from the depth (default: as scripts.protocol)")
    parser.add_argument("--data", metavar="NAME", help="a corpus of your own (as scripts.protocol)")
    parser.add_argument("--num-iterations", type=int, help="optimizer steps, in place of the profile's")
    parser.add_argument("--flags", default="", metavar="FLAGS", help="training flags for every arm at every depth")
    parser.add_argument("--noise-seeds", type=int, default=8, metavar="N",
                        help="control runs to bank at each depth first; 0 = none, and none with --noise=own "
                             "(default: %(default)s)")
    parser.add_argument("--judge", action="store_true", help="run nothing: judge the result files that exist")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return parser


def join_values(argv):
    """A value that begins with -- reads as an option; joined by = it is a value.

    >>> join_values(["--flags", "--matrix-lr=0.03", "--label=x"])
    ['--flags=--matrix-lr=0.03', '--label=x']
    """
    out, words = [], iter(argv)
    for word in words:
        value = next(words, None) if word in ("--flags", "--candidate") else None
        out.append(word if value is None else f"{word}={value}")
    return out


def refuse_unknown(rest):
    unknown = [word for word in rest if word.startswith("-") and word.partition("=")[0] not in PASSED_ON]
    if unknown:
        raise ValueError(f"unknown flag {unknown[0]}; --help lists them all")


def commands(args, depths, rest) -> list[list[str]]:
    """The public commands of a miniseries: noise and protocol of each depth."""
    given = {word.partition("=")[0] for word in rest}
    until = [] if given & {"--seeds", "--until"} else ["--until=decided"]
    where = [f"--profile={args.profile}"] if args.profile else []
    where += [f"--data={args.data}"] if args.data else []
    steps = [] if args.num_iterations is None else [f"--num-iterations={args.num_iterations}"]
    ledger = [word for word in rest if word.startswith("--ledger=")]
    out = []
    for depth in depths:
        flags = " ".join(filter(None, [*steps, args.flags, f"--depth={depth}"]))
        if args.noise_seeds and "--noise=own" not in rest:
            out.append(module_command("scripts.noise", "--run", f"--seeds={args.noise_seeds}", *where,
                                      f"--flags={flags}", *ledger))
        out.append(module_command("scripts.protocol", f"--label={miniseries.label_of(args.label, depth)}", *where,
                                  f"--flags={flags}", *until, *rest))
    return out


def plan_line(args, depths, rest) -> str:
    """How many cells there are at most; --seeds and --candidate are read by the parser of scripts.protocol alone."""
    parser = Parser(add_help=False)
    parser.add_argument("--candidate", action="append")
    parser.add_argument("--seeds", nargs="+", action="extend")
    parser.add_argument("--max-seeds", type=int, default=MAX_SEEDS)
    given = parser.parse_known_args(rest)[0]
    seeds = len(parse_seeds(given.seeds)) if given.seeds and "--until=decided" not in rest else given.max_seeds
    arms = 1 + len(given.candidate or [None])
    bank = args.noise_seeds if "--noise=own" not in rest else 0
    cells, at_each = len(depths) * (bank + arms * seeds), f"{len(depths)} depth{'s' * (len(depths) != 1)}, at each"
    return (f"{cells} cells at most: {at_each} {bank} control runs for the bank and {arms} arms x {seeds} seeds. "
            "Each step says its time and its disk before it begins")


def run(args, depths, rest) -> int:
    """Every depth in turn; a failed or diverged cell is a fact that the verdict reads.

    Returns the exit code that stopped it, or 0.
    """
    print(plan_line(args, depths, rest))
    for command in commands(args, depths, rest):
        print(f"$ {paste(command)}")
        code = 0 if args.dry_run else call(command)
        # A bank has no verdict that would say what failed.
        if code and not (code == EXIT_FAILED_CELL and "scripts.protocol" in command):
            return code
    return 0


def judge(args, depths) -> int:
    results = miniseries.read_depths(RESULTS_DIR, args.label, depths)
    verdicts = miniseries.judge(results)
    path = RESULTS_DIR / f"{args.label}_miniseries.json"
    write_json(path, {"timestamp": now(), "label": args.label, "depths": depths,
                      "verdicts": miniseries.summary(verdicts)})
    alpha = max(found.declaration.alpha for found in results.values())
    print(miniseries.results_table(verdicts, alpha))
    print(f"written: {', '.join(map(str, filter(None, [path, index_for(path)])))}")
    return 0


def main(argv=None) -> int:
    args, rest = build_parser().parse_known_args(join_values(sys.argv[1:] if argv is None else argv))
    try:
        require_label(args.label)
        depths = parse_depths(args.depths or ["8 12 16"])
        refuse_unknown(rest)
        if args.profile:
            get_profile(args.profile)
        if args.data:
            own_data.find(args.data, get_base_dir())
        if args.noise_seeds:
            noise_seeds(args.noise_seeds)  # refuses a number that is no number of runs
        code = 0 if args.judge else run(args, depths, rest)
        return code or (0 if args.dry_run else judge(args, depths))
    except (ValueError, OSError) as e:
        say_error(e)
        return 2


if __name__ == "__main__":
    stop_on_signals()
    sys.exit(main())
