"""
The ledger, a table with one row for every run: look at it, add the record of a run, run a row again.

    python -m scripts.ledger --last=20                        the newest rows, newest last
    python -m scripts.ledger --where label=mix005 --where 'val_bpb<2.7' --columns seed val_bpb
    python -m scripts.ledger --import nc_mix005_d4_gate_s1337 --label=mix005 --arm=gate
    python -m scripts.ledger --rerun 12                       print commit, base dir and command of row 12
    python -m scripts.ledger --rerun 12 --run                 run them, in a worktree, and compare val_bpb
    python -m scripts.ledger --rerun r12                      the same for row 12 of the rows that came with the project

Rows that came with the project are shown too, with an r before their number. Nothing is added to their file.
Exit code: 0 ok (with --run: the same val_bpb), 1 another val_bpb, 2 bad input, 130 interrupted.
"""

import difflib
import re
import sys
from pathlib import Path

from nanochat import dataset, tokenizer
from nanochat.command_line import Parser
from nanochat.common import get_base_dir
from nanochat.lab import profiles
from nanochat.lab.arms import NAME
from nanochat.lab.commands import EXIT_OK, exit_code
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.imports import find_run
from nanochat.lab.ledger.rerun import Rerun, home_of
from nanochat.lab.table import table

COLUMNS = ("row", "timestamp", "label", "arm", "seed", "profile", "val_bpb", "final_train_loss", "tok_per_sec_median",
           "time_to_target_sec_measured", "wall_time_sec", "status")
EXIT_DIFFERS = 1
CONDITION = re.compile(r"(\w+)\s*([=<>])\s*(.*)")
HASH_LETTERS = 8


def build_parser():
    parser = Parser(prog="python -m scripts.ledger", allow_abbrev=False,
                    description="Look at the table of all runs, add a run to it, run a row again.")
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION",
                        help="show only rows with column=value, column<value or column>value; without a value: "
                             "rows with an empty cell; repeat for more conditions")
    parser.add_argument("--last", type=int, metavar="N", help="show only the newest N rows")
    parser.add_argument("--columns", nargs="+", metavar="COLUMN",
                        help=f"columns to show; 'all' shows all of them (default: {' '.join(COLUMNS)})")
    parser.add_argument("--import", dest="import_run", metavar="RUN",
                        help="add the run with this id, or with this path to its folder")
    parser.add_argument("--label", metavar="LABEL", help="with --import: label of the run")
    parser.add_argument("--arm", metavar="ARM", help="with --import: arm of the run, like control")
    parser.add_argument("--rerun", metavar="ROW",
                        help="print the commands that run this row again: 12, or r12 of the rows of the project")
    parser.add_argument("--run", action="store_true", help="with --rerun: run them, in a worktree, and compare val_bpb")
    parser.add_argument("--ledger", type=Path, default=experiments.LEDGER, metavar="PATH",
                        help="file of the ledger (default: %(default)s)")
    return parser


# -----------------------------------------------------------------------------
# Show

def known_column(name: str) -> str:
    columns = ["row", *experiments.schema()]
    if name not in columns:
        near = difflib.get_close_matches(name, columns, n=1)
        raise ValueError(f"{name!r} is no column of the ledger"
                         + (f"; did you mean {near[0]}?" if near else f": {', '.join(columns)}"))
    return name


def parse_condition(text: str) -> tuple:
    """
    >>> parse_condition("seed=1337"), parse_condition("val_bpb < 2.5"), parse_condition("label=")
    (('seed', '=', 1337), ('val_bpb', '<', 2.5), ('label', '=', None))
    """
    match = CONDITION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"--where {text!r}: expected column=value, column<value or column>value")
    name, op, value = match.groups()
    if name == "row":
        raise ValueError(f"--where {text!r}: rows are numbered, not stored; --last shows the newest")
    return known_column(name), op, experiments.parse_cell(name, value)


def show(args):
    if args.last is not None and args.last < 1:
        raise ValueError(f"--last={args.last}: expected 1 or more")
    columns = (["row", *experiments.schema()] if args.columns == ["all"] else
               [known_column(name) for name in args.columns or COLUMNS])
    rows = experiments.read_all(args.ledger, where=[parse_condition(text) for text in args.where], last=args.last)
    if rows:
        print(table(columns, [[cell(name, row[name]) for name in columns] for row in rows]))
    shipped, meet = sum(map(experiments.from_reference, rows)), " that meet this" * bool(args.where)
    print(f"{len(rows) - shipped or 'no'} rows{meet} in {args.ledger}"
          + (f"; {shipped} (r...) came with the project, in {experiments.REFERENCE}" if shipped else ""))


def cell(name: str, value) -> str:
    """
    >>> cell("val_bpb", 2.648291234), cell("arm", None), cell("git_commit", "ceffe96ad1c4")
    ('2.648291', '', 'ceffe96a')
    """
    if value is None:
        return ""
    if name.endswith(("_hash", "_id", "_commit")) and name != "run_id":
        return str(value)[:HASH_LETTERS]
    return f"{value:.7g}" if isinstance(value, float) else str(value)


# -----------------------------------------------------------------------------
# Import and run again

def import_run(args):
    for flag, value in (("--label", args.label), ("--arm", args.arm)):
        if value is not None and not NAME.fullmatch(value):
            raise ValueError(f"{flag}={value}: expected letters, digits, '.', '_' and '-'")
    if args.label == experiments.NOISE:
        raise ValueError(f"--label={args.label}: the bank is filled by `make noise`, whole, never by picking runs; "
                         "choose another label")
    record, metrics, profile = find_run(args.import_run, get_base_dir())
    row = experiments.row_of_record(record, metrics, label=args.label, arm=args.arm, recipe=profile)
    for other in experiments.read_all(args.ledger, run_id=row["run_id"]):
        if experiments.identity(other) == experiments.identity(row):
            file = experiments.REFERENCE if experiments.from_reference(other) else args.ledger
            raise ValueError(f"{args.import_run} is in {file} already, as row {other['row']}")
    experiments.append(args.ledger, row)
    print(f"added {row['run_id']} ({row['status'] or 'status not known'}) to {args.ledger}")


def rerun(args) -> int:
    row = experiments.row_of_number(args.ledger, args.rerun, f"--rerun={args.rerun}")
    again = Rerun(row, home_of(row, get_base_dir()))
    print(again.describe(), flush=True)
    if not args.run:
        return EXIT_OK
    again.refuse_patched()  # before a corpus is made for it
    if row["profile"] in profiles.PROFILES:
        profile = profiles.get_profile(row["profile"])
        if again.home != profile.home(get_base_dir()):  # it ran on a corpus of the user's own
            profile = profiles.on_data(profile, again.home.name, get_base_dir())
        profiles.prepare(profile, again.home, dataset, tokenizer, again.home / "logs")
    same, lines = again.compare(again.run())
    print("\n".join(lines))
    return EXIT_OK if same else EXIT_DIFFERS


def work(args) -> int:
    if args.run and args.rerun is None:
        raise ValueError("--run goes with --rerun ROW")
    for name in ("label", "arm"):
        if getattr(args, name) is not None and args.import_run is None:
            raise ValueError(f"--{name} goes with --import RUN; to show some rows: --where {name}=...")
    if args.import_run is not None:
        import_run(args)
    elif args.rerun is not None:
        return rerun(args)
    else:
        show(args)
    return EXIT_OK


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    return exit_code(lambda: work(args), "stopped")


if __name__ == "__main__":
    sys.exit(main())
