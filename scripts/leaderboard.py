"""
Write the tables of all arms, and their picture, from the ledger:

    python -m scripts.leaderboard                       results/leaderboard.md and .png
    python -m scripts.leaderboard --ledger=dev/ledger/reference.csv --page=dev/LEADERBOARD.md

The first line reads your rows (dev/ledger/experiments.csv) and those that came with the project, and says which are
which. It writes to no tracked file. The second line makes the page of the project anew. Verdicts are those that the
runs in results/*_latest.json give. A file or a row that no run can have left is not taken, and it is named. In a page
that exists only the text between the markers is rewritten. Exit code: 0 done, 2 bad input.
"""

import sys
from pathlib import Path

from nanochat.command_line import Parser, say_error
from nanochat.common import atomic_write, read_regular
from nanochat.lab.commands import RESULTS_DIR
from nanochat.lab.ledger.experiments import LEDGER, from_reference, read_all
from nanochat.lab.ledger.row_check import kept_rows
from nanochat.lab.report.entries import verdicts_of
from nanochat.lab.report.leaderboard import BEGIN, END, markdown, replaced, with_rivals
from nanochat.lab.report.leaderboard_plot import draw_leaderboard
from nanochat.lab.report.result_check import changed_verdicts, read_judged
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.report.sections import sections

PAGE = RESULTS_DIR / "leaderboard.md"
NEW_PAGE = f"""# Leaderboard
Made by `make leaderboard` from your rows and those that came with the project. The order is an overview, not a test:
a test is a verdict of `make protocol`.

![The tables as a picture]({PAGE.stem}.png)

{BEGIN}
{END}
"""


def build_parser():
    parser = Parser(prog="python -m scripts.leaderboard", allow_abbrev=False,
                    description="Write the leaderboard from the ledger.")
    parser.add_argument("--ledger", type=Path, default=LEDGER, metavar="PATH",
                        help="table of all runs (default: dev/ledger/experiments.csv and the project's reference.csv)")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="PATH",
                        help="page to write, with its picture beside it (default: %(default)s)")
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


def page_text(path: Path) -> str:
    """The page as it is. The default page is begun where it is missing; any other has to be there."""
    return NEW_PAGE if path == PAGE and not path.exists() else read_regular(path).decode("utf-8").replace("\r\n", "\n")


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    try:
        files = all_results(args.results)
        rows, left_out = kept_rows(read_all(args.ledger), [run for results in files for run in results.runs])
        verdicts = verdicts_of(files)
        print(*left_out, sep="\n", end="\n" if left_out else "")
        page = page_text(args.page)
        atomic_write(args.page, replaced(page, markdown(rows, verdicts), str(args.page)))
        picture = args.page.with_name(args.page.stem.lower() + ".png")
        drawn = draw_leaderboard(picture, with_rivals(sections(rows, verdicts)))
    except (ValueError, OSError) as e:
        say_error(e)
        return 2
    said = f", {picture}" if drawn else "; nothing to draw yet"
    shipped = sum(map(from_reference, rows))
    also = f" and {shipped} that came with the project" if shipped else ""
    print(f"{len(rows) - shipped} rows of {args.ledger}{also}; written: {args.page}{said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
