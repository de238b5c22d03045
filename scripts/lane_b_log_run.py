"""
Append runs to the ledger of Lane B, a row for each, from their records and the inference that they were run for:

    python -m scripts.lane_b_log_run --inference=results/infer.json \\
        --records nc_lane_d2_control_s1 nc_lane_d2_inferred_s1
    python -m scripts.lane_b_log_run --inference=results/infer.json --label=lane   # its runs that have no row yet

A run is the control, the inferred or the confirmation arm of that inference. Failed runs are logged too. Every run is
checked before the first row is written. Rows go to dev/ledger/lane_b.csv. Exit code: 0 ok; 2 bad input: a run that is
logged already, that has not ended, or that contradicts the inference.
"""

import sys
from pathlib import Path

from nanochat.command_line import Parser
from nanochat.common import get_base_dir, read_json
from nanochat.lab.commands import EXIT_OK, exit_code
from nanochat.lab.horizon import run_log
from nanochat.lab.ledger.imports import find_run
from nanochat.lab.protocol.results import tags_of


def build_parser():
    parser = Parser(prog="python -m scripts.lane_b_log_run", allow_abbrev=False,
                    description="Append runs to the ledger of Lane B (make lane-b).")
    parser.add_argument("--inference", type=Path, required=True, metavar="FILE.json",
                        help="the file that scripts.lane_b_infer_ratio wrote")
    parser.add_argument("--record", "--records", dest="records", nargs="+", action="extend", default=[], metavar="RUN",
                        help="runs to add: ids, or paths to their records")
    parser.add_argument("--label", help="add the runs of results/<label>_latest.json that the ledger does not have")
    parser.add_argument("--notes", default="", metavar="TEXT", help="text for the last column, after the arm")
    parser.add_argument("--ledger", type=Path, default=run_log.LEDGER, metavar="PATH",
                        help="file of the ledger (default: %(default)s)")
    return parser


def log(args) -> int:
    if not (args.records or args.label):
        raise ValueError("no runs: expected --records, or the --label of a protocol")
    facts, base_dir = read_json(args.inference), get_base_dir()
    def rows_of(runs):
        return [run_log.row_of(*find_run(run, base_dir)[:2], facts, args.notes) for run in runs]
    logged = run_log.logged(args.ledger)
    of_label = rows_of(tags_of(args.label)) if args.label else []
    rows = rows_of(args.records) + [row for row in of_label if run_log.identity(row) not in logged]
    if not rows:
        print(f"nothing to add: every run of {args.label} is in {args.ledger}")
    run_log.append(args.ledger, rows)
    for row in rows:
        print(f"added {row['run_id']} ({row['notes']}, {row['status']}) to {args.ledger}")
    return EXIT_OK


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    return exit_code(lambda: log(args), "stopped")


if __name__ == "__main__":
    sys.exit(main())
