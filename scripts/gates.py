"""
The verdict of a label, gate by gate, from its result file:

    python -m scripts.gates --label=mix005          (reads results/mix005_latest.json)

The declared looks are replayed over the runs in the file; nothing is trained and nothing is written. A file that no
protocol can have written is refused, with what is wrong in it (nanochat/lab/report/result_check.py). With
--exit-code the status is that of the worst candidate: 0 promote, 10 optional, 11 inconclusive, 12 reject, 13 no
verdict. --log-entry drafts the entry for dev/LOG.md. --plateau tells whether the cycles so far have reached a plateau.
"""

import json
import sys
from pathlib import Path

from nanochat.command_line import Parser, say_error
from nanochat.common import get_base_dir
from nanochat.lab.commands import RESULTS_DIR, complete
from nanochat.lab.cycle.rules import plateau
from nanochat.lab.cycle.walk import read_cycles
from nanochat.lab.report.advice import bank_options
from nanochat.lab.report.log_entry import log_entry
from nanochat.lab.report.result_check import changed_verdicts, read_judged
from nanochat.lab.report.result_file import ResultFile, path_of
from nanochat.lab.report.text import verdicts

EXIT = {"promote": 0, "optional": 10, "inconclusive": 11, "reject": 12, None: 13}


def build_parser():
    parser = Parser(prog="python -m scripts.gates", allow_abbrev=False,
                    description="The verdict of a label, gate by gate.")
    parser.add_argument("--label", default="protocol", help="label of the protocol (default: %(default)s)")
    parser.add_argument("--results-dir", type=Path, default=RESULTS_DIR,
                        help="folder that the protocol wrote to (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    parser.add_argument("--exit-code", action="store_true",
                        help="exit with the verdict of the worst candidate: 0 promote, 10 optional, 11 inconclusive, "
                             "12 reject, 13 no verdict")
    parser.add_argument("--plateau", action="store_true", help="say whether the cycles so far have stopped improving")
    parser.add_argument("--log-entry", action="store_true", help="print a draft of the entry for dev/LOG.md")
    return parser


def read_label(folder: Path, label: str) -> ResultFile:
    """The results of a label with the verdicts that its runs give. Raises ValueError where they can give none."""
    path = path_of(label, folder)
    try:
        results = read_judged(path)
    except FileNotFoundError:
        known = sorted(p.name.removesuffix("_latest.json") for p in folder.glob("*_latest.json"))
        raise ValueError(f"{path} is missing: run `make protocol LABEL={label}`; labels here: "
                         f"{', '.join(known) or 'none'}") from None
    if results.declaration is None:
        raise ValueError(f"{path} has no declaration: it was not written by a protocol of this version")
    for line in changed_verdicts(path, results):
        print(f"note: {line}", file=sys.stderr)
    return results


def base_of(settings) -> dict:
    """{"NANOCHAT_BASE_DIR": ...} of a comparison whose base dir is not the one that is set now."""
    home = Path(settings.base_dir or get_base_dir()).resolve()
    base = home.parent.parent if home.parent.name == "lab" else home
    now = get_base_dir().resolve()
    return {} if now in (base, home) else {"NANOCHAT_BASE_DIR": str(base)}


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    try:
        if args.plateau:
            reached, why = plateau(read_cycles(args.results_dir))
            print(f"plateau: {'yes' if reached else 'no'}; {why}")
            return 0
        results = read_label(args.results_dir, args.label)
    except (ValueError, OSError) as e:
        say_error(e)
        return 2
    if args.json:
        print(json.dumps([verdict.to_json() for verdict in results.verdicts], indent=1, allow_nan=False))
    elif args.log_entry:
        print(log_entry(results))
    else:
        print(complete(verdicts(results), bank_options(results.settings), base_of(results.settings)))
    worst = max((EXIT[verdict.verdict] for verdict in results.verdicts), default=EXIT[None])
    return worst if args.exit_code else 0


if __name__ == "__main__":
    sys.exit(main())
