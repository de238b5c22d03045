"""
How often a verdict is wrong, and how often it sees a gain, measured on made-up runs:

    python -m scripts.simulate_gates                            # every table, some of them minutes
    python -m scripts.simulate_gates --table=8.1 --table=bank   # some of them
    python -m scripts.simulate_gates --protocols=40000 --output-json=results/simulate_gates.json
    python -m scripts.simulate_gates --labels                   # several labels of one candidate: minutes

Made-up runs go through the functions that decide real ones. Each number is printed with its target and the difference
in brackets; a * means that the difference is outside the tolerance. Targets are in ideas/simulation_targets.csv.
Tables 9.1 and 9.2 are of the rule that judges; "lent always", in the others, lends a bank without a test. The
tables `verdicts` and `missed` simulate whole verdicts, on a tenth of the protocols; their targets are in
ideas/verdict_targets.csv. Writes results/simulate_gates.png in the working directory. Exit code: 0 all inside, 1 some
outside, 2 bad input.
"""

import json
import sys
from pathlib import Path

import numpy as np

from nanochat.checks import cut
from nanochat.command_line import Parser
from nanochat.common import atomic_write
from nanochat.lab.arms import MOST_SEED
from nanochat.lab.simulation import labels, verdicts
from nanochat.lab.simulation.made_up_runs import MEASURES, PROTOCOLS, SEED, check, looks_text, measure, read_targets
from nanochat.lab.simulation.plot import draw_error_rates
from nanochat.lab.table import table as as_table
from nanochat.options import hyphenate

IDEAS = Path(__file__).resolve().parent.parent / "ideas"
TARGETS, VERDICT_TARGETS = IDEAS / "simulation_targets.csv", IDEAS / "verdict_targets.csv"
TITLES = {"8.1": "fixed n, pairs not correlated", "8.2": "fixed n, correlated pairs", "8.3": "where assumptions fail",
          "8.4": "against other rules", "8.5": "seeds added until decided, at most 12",
          "bank": "a bank that came out low by luck",
          "9.1": "the rule that judges: the bank is tested, noise as assumed",
          "9.2": "the rule that judges, where its promise bends",
          "verdicts": "how the verdicts fall, by the gain in sd",
          "missed": "a target that only a share of the control's runs reach"}
VERDICT_SHARE = 10  # a verdict is made of one protocol at a time, which takes longer
FEWEST = 1000  # protocols: below, the tolerances are smaller than the luck
MOST = 10 ** 7  # protocols: a thousand times the default takes days


def build_parser():
    parser = Parser(prog="python -m scripts.simulate_gates", allow_abbrev=False,
                    description="Measure by simulation how often verdicts are wrong, and how often "
                                                 "they see a gain.")
    parser.add_argument("--table", action="append", choices=list(TITLES),
                        help="simulate this table; repeat for more (default: every table)")
    parser.add_argument("--labels", action="store_true",
                        help="simulate several labels of one candidate instead: rules for their levels, ways to a "
                             "promotion for nothing, and the price of asking for 0.1 sd")
    parser.add_argument("--protocols", type=int, default=PROTOCOLS,
                        help="made-up protocols for each row of a table (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the made-up runs (default: %(default)s)")
    parser.add_argument("--output-json", metavar="PATH", help="also write every number with its target to this file")
    parser.add_argument("--picture", metavar="PATH", default="results/simulate_gates.png",
                        help="draw the error rates to this file (default: %(default)s)")
    return parser


def simulate_table(cells, protocols: int, seed: int) -> list[dict]:
    """Measure the cells of one table and print them as they come."""
    measures = [name for name in MEASURES if any(name in cell.targets for cell in cells)]
    print(f"\n{cells[0].table}: {TITLES[cells[0].table]}")
    print(f"{'data':24}{'rho':>4}{'nu':>4}{'K':>4}{'n':>6}  {'rule':23}" + "".join(f"{name:>22}" for name in measures))
    rows = []
    for cell in cells:
        found = {row["measure"]: row for row in check(cell, measure(cell, protocols, seed), protocols)}
        head = f"{cell.data:24}{cell.rho:>4g}{cell.nu:>4}{cell.K:>4}{looks_text(cell.looks):>6}  {cell.rule:23}"
        print(head + "".join(f"{number(found.get(name)):>22}" for name in measures), flush=True)
        rows += found.values()
    return rows


def simulate_verdict_table(cells, protocols: int, seed: int) -> list[dict]:
    """Like simulate_table, for whole verdicts. A target may be a range; the difference is to its nearer end."""
    print(f"\n{cells[0].table}: {TITLES[cells[0].table]}")
    print(f"{'cell':48}" + "".join(f"{name:>26}" for name in verdicts.MEASURES))
    rows = []
    for cell in cells:
        found = {row["measure"]: row for row in
                 verdicts.check(cell, verdicts.measure(cell, protocols, seed), protocols)}
        print(f"{cell.name:48}" + "".join(f"{number(found.get(name)):>26}" for name in verdicts.MEASURES), flush=True)
        rows += found.values()
    return rows


def number(row) -> str:
    if row is None:
        return ""
    ends = np.unique(row["target"])  # a number, or a range
    target = " to ".join(f"{end:g}" for end in ends)
    return f"{row['found']:.2f} ({target} {row['difference']:+.2f}){' ' if row['inside'] else '*'}"


def simulate_labels(protocols: int, seed: int) -> list[dict]:
    """The tables of simulation/labels.py, printed: percentages of families of labels."""
    rows = []
    for title, make in (("levels of a candidate's labels", labels.rule_rows),
                        ("ways to a promotion for nothing", labels.route_rows),
                        ("the price of asking for more than a trivial gain", labels.margin_rows)):
        found = make(protocols, seed)
        cells = [[f"{value:.1f}" if isinstance(value, float) and name != "gain_sd" else str(value)
                  for name, value in row.items()] for row in found]
        print(f"\n{title}, percent of {protocols:,}\n{as_table(list(found[0]), cells)}", flush=True)
        rows += [{"table": title, **row} for row in found]
    return rows


def summary(rows) -> str:
    """The largest difference of every table, and the measures that are outside their tolerance."""
    lines = []
    for table in dict.fromkeys(row["table"] for row in rows):
        for kind in ("false_promotion", "power", "seeds", *verdicts.VERDICTS):
            some = [row for row in rows if row["table"] == table and row["measure"].startswith(kind)]
            if some:
                worst = max(abs(row["difference"]) for row in some)
                outside = sum(not row["inside"] for row in some)
                lines.append(f"{table:9}{kind:16} {len(some):4} numbers, largest difference {worst:.2f}, "
                             f"{outside} outside")
    return "\n".join(lines)


def main(argv=None) -> int:
    parser = build_parser()
    args = parser.parse_args(hyphenate(sys.argv[1:] if argv is None else argv))
    if args.protocols < FEWEST:
        parser.error(f"--protocols={args.protocols}: expected at least {FEWEST}; with fewer, luck outweighs the "
                     "tolerances")
    if args.protocols > MOST:
        parser.error(f"--protocols={cut(args.protocols)}: expected at most {MOST:,}, and these take days")
    if not 0 <= args.seed <= MOST_SEED:
        parser.error(f"--seed={cut(args.seed)}: expected 0 to {MOST_SEED:,}")
    if args.labels:
        return write_json(args, simulate_labels(args.protocols, args.seed))
    tables = args.table or list(TITLES)
    kinds = ((read_targets(TARGETS), simulate_table, args.protocols),
             (verdicts.read_targets(VERDICT_TARGETS), simulate_verdict_table, args.protocols // VERDICT_SHARE))
    rows = []
    for cells, simulate, protocols in kinds:
        for table in dict.fromkeys(cell.table for cell in cells if cell.table in tables):
            rows += simulate([cell for cell in cells if cell.table == table], protocols, args.seed)
    print(f"\n{summary(rows)}")
    if draw_error_rates(args.picture, rows, args.protocols):
        print(f"picture: {args.picture}")
    return write_json(args, rows)


def write_json(args, rows) -> int:
    """Write the rows where that was asked for. Returns the exit code."""
    if args.output_json:
        facts = {"protocols": args.protocols, "seed": args.seed, "rows": rows}
        atomic_write(args.output_json, json.dumps(facts, indent=1) + "\n")
    return int(not all(row.get("inside", True) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
