"""
Lay two runs that exist side by side, without training: what they are, what differs, their curves, what follows.

    python -m scripts.compare nc_mix005_d4_control_s1337 nc_mix005_d4_candidate_s1337
    python -m scripts.compare d12 ~/other-nanochat/base_checkpoints/d12    # a run of ours, an upstream checkpoint
    python -m scripts.compare "row 12" "row 15"                            # rows of the ledger

A run is a tag in the base directory, the path of a record or of a checkpoint folder, or "row N" of the ledger. Two runs
are one seed each, so no verdict is given; the last line is the command of the comparison that would answer. Exit code:
0, or 2 for bad input.
"""

import sys
from pathlib import Path

from nanochat.command_line import Parser
from nanochat.common import REPO_ROOT, get_base_dir
from nanochat.lab.commands import EXIT_OK, exit_code
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.any_run import find
from nanochat.lab.report.two_runs import page


def build_parser():
    parser = Parser(prog="python -m scripts.compare", allow_abbrev=False,
                    description="Lay two runs that exist side by side, and say what can be concluded.")
    parser.add_argument("a", metavar="A", help="a tag, the path of a record or checkpoint, or 'row N' of the ledger")
    parser.add_argument("b", metavar="B", help="the other run; + means that B is better")
    parser.add_argument("--ledger", type=Path, default=experiments.LEDGER, metavar="PATH",
                        help="table of all runs, the bank included (default: %(default)s)")
    return parser


def compare(args) -> int:
    base_dir = get_base_dir()
    a, b = find(args.a, base_dir, args.ledger), find(args.b, base_dir, args.ledger)
    rows = experiments.read_all(args.ledger)
    print(page(a, b, rows, REPO_ROOT))
    return EXIT_OK


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    return exit_code(lambda: compare(args), "stopped")


if __name__ == "__main__":
    sys.exit(main())
