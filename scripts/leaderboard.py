"""
Rewrite the tables of dev/LEADERBOARD.md, and their picture, from the ledger:

    python -m scripts.leaderboard

Reads dev/ledger/experiments.csv; verdicts are those that the runs in results/*_latest.json give.
A file or a row that no run can have left is not taken, and it is named. Text outside the markers stays as it is.
Exit code: 0 done, 2 bad input.
"""

import argparse
import sys
from pathlib import Path

from nanochat.common import REPO_ROOT, atomic_write
from nanochat.lab.ledger.experiments import LEDGER, read
from nanochat.lab.ledger.row_check import kept_rows
from nanochat.lab.report.leaderboard import markdown, profiles, replaced, verdicts_of, with_rivals
from nanochat.lab.report.plots import draw_leaderboard
from nanochat.lab.report.result_check import changed_verdicts, read_judged
from nanochat.lab.report.result_file import ResultFile

PAGE = REPO_ROOT / "dev" / "LEADERBOARD.md"


def build_parser():
    parser = argparse.ArgumentParser(prog="python -m scripts.leaderboard", allow_abbrev=False,
                                     description="Rewrite the leaderboard from the ledger.")
    parser.add_argument("--ledger", type=Path, default=LEDGER, metavar="PATH",
                        help="table of all runs (default: dev/ledger/experiments.csv)")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="PATH",
                        help="page to rewrite (default: dev/LEADERBOARD.md)")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="FOLDER",
                        help="folder of the verdicts (default: results)")
    return parser


def all_results(folder) -> list[ResultFile]:
    """The result files in a folder, by name, with the verdicts that their runs give.

    A file that is not as a protocol writes it is left out. Its name and the reason are printed.
    """
    found = []
    for path in sorted(Path(folder).glob("*_latest.json")):
        try:
            found.append(read_judged(path))
            for line in changed_verdicts(path, found[-1]):
                print(line)
        except ValueError as e:
            print(f"{path}: left out, {e}")
    return found


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    try:
        files = all_results(args.results)
        rows, left_out = kept_rows(read(args.ledger), [run for results in files for run in results.runs])
        verdicts = verdicts_of(files)
        print(*left_out, sep="\n", end="\n" if left_out else "")
        page = args.page.read_text(encoding="utf-8")
        atomic_write(args.page, replaced(page, markdown(rows, verdicts), str(args.page)))
        picture = args.page.with_name(args.page.stem.lower() + ".png")
        drawn = draw_leaderboard(picture, with_rivals(profiles(rows, verdicts)))
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    said = f", {picture}" if drawn else "; nothing to draw yet"
    print(f"{len(rows)} rows of {args.ledger}; written: {args.page}{said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
