"""
What lies on the disk under NANOCHAT_BASE_DIR, what refers to what, and what can go:

    python -m scripts.runs list
    python -m scripts.runs prune                      # print what would go, and how much that frees; delete nothing
    python -m scripts.runs prune --yes
    python -m scripts.runs prune --label=mix005 --older-than=7 --yes

The weights of a finished comparison go. Its records, rows and results stay, so gates, leaderboard and ledger work as
before, and the same `make protocol` reuses every run. Runs that have not ended, models under names of your own, data
and tokenizers are never touched. Exit code: 0, or 2 for bad input.
"""

import math
import sys
from pathlib import Path

from nanochat.checks import MOST_SEC
from nanochat.command_line import Parser
from nanochat.common import get_base_dir, paste_command
from nanochat.lab.commands import EXIT_OK, RESULTS_DIR, exit_code
from nanochat.lab.ledger import experiments
from nanochat.lab.protocol import disk, prune
from nanochat.lab.table import format_size

DAY_SEC = 86400


def build_parser():
    parser = Parser(prog="python -m scripts.runs", allow_abbrev=False,
                    description="Disk use of runs, what refers to what, and what can go.")
    parser.add_argument("what", choices=("list", "prune"),
                        help="list: what is there; prune: what can go, and with --yes delete it")
    parser.add_argument("--yes", action="store_true", help="with prune: delete")
    parser.add_argument("--label", help="with prune: only what belongs to this comparison")
    parser.add_argument("--older-than", type=float, default=0, metavar="DAYS",
                        help="with prune: only what has not changed for so many days (default: %(default)s)")
    parser.add_argument("--ledger", type=Path, default=experiments.LEDGER, metavar="PATH",
                        help="table of all runs (default: %(default)s)")
    return parser


def read_rows(ledger: Path) -> list[dict]:
    """Rows of the ledger, and of those that lie beside results, as that of `make smoke` does."""
    paths = [ledger, *sorted(RESULTS_DIR.glob("*_experiments.csv"))]
    return [row for path in paths for row in experiments.read_all(path)]


def check(args):
    if not (0 <= args.older_than <= MOST_SEC / DAY_SEC and math.isfinite(args.older_than)):
        raise ValueError(f"--older-than={args.older_than:g}: expected days, 0 or more")
    for flag, given in (("--yes", args.yes), ("--label", args.label), ("--older-than", args.older_than)):
        if args.what == "list" and given:
            raise ValueError(f"{flag} goes with prune")


def work(args) -> int:
    check(args)
    base_dir = get_base_dir()
    items = disk.survey(base_dir, read_rows(args.ledger))
    if args.what == "list":
        print(f"{base_dir}\n\n{disk.listing(items, args.ledger, RESULTS_DIR)}")
        return EXIT_OK
    decisions = prune.decide(items, args.label, args.older_than)
    print(f"{base_dir}\n\n{prune.text(decisions)}\n")
    size = format_size(sum(d.item.bytes for d in decisions if d.goes))
    if args.yes:
        print(f"deleted: {format_size(prune.delete(decisions))} of {size}")
    else:
        print(f"{size} can be freed. Nothing was deleted; this does it:\n  {paste_command(command(args))}")
    return EXIT_OK


def command(args) -> list[str]:
    return ["python", "-m", "scripts.runs", "prune", *([f"--label={args.label}"] if args.label else []),
            *([f"--older-than={args.older_than:g}"] if args.older_than else []), "--yes"]


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    return exit_code(lambda: work(args), "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
