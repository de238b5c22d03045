"""
Draw the validation curves of any runs into one picture, without training:

    python -m scripts.plot nc_mix005_d4_control_s1337 nc_mix005_d4_candidate_s1337
    python -m scripts.plot d12 ~/other-nanochat/base_checkpoints/d12 --x=tokens --out=results/d12.png

A run is a tag in the base directory, the path of a record or of a checkpoint folder (upstream's too), or "row N" of the
ledger. A run that is still going on is drawn as far as it is. Exit code: 0, or 2 for bad input.
"""

import sys
from pathlib import Path

from nanochat.command_line import Parser
from nanochat.common import get_base_dir
from nanochat.lab.commands import EXIT_OK, RESULTS_DIR, exit_code, require_writable
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.any_run import find
from nanochat.lab.report.run_plot import AXES, draw_runs, readable


def build_parser():
    parser = Parser(prog="python -m scripts.plot", allow_abbrev=False,
                    description="Draw the validation curves of any runs into one picture.")
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="a tag, the path of a record or checkpoint, or 'row N' of the ledger")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "runs.png", metavar="FILE.png",
                        help="the picture (default: %(default)s)")
    parser.add_argument("--x", choices=list(AXES), default="step",
                        help="what the curves are drawn over (default: %(default)s)")
    parser.add_argument("--ledger", type=Path, default=experiments.LEDGER, metavar="PATH",
                        help="table of all runs, for their names (default: %(default)s)")
    return parser


def plot(args) -> int:
    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out={args.out}: expected the name of a .png file")
    require_writable(args.out)
    base_dir = get_base_dir()
    runs = [find(what, base_dir, args.ledger) for what in dict.fromkeys(args.runs)]
    for run in runs:
        if not run.curve:
            print(f"left out: {run.name} has no validation that is known")
    runs = [run for run in runs if run.curve]
    if not runs:
        raise ValueError("no run that was named has a validation, so there is nothing to draw")
    names = readable([run.name for run in runs], [run.row for run in runs])
    draw_runs(args.out, {name: run.curve for name, run in zip(names, runs)}, args.x)
    print(f"picture: {args.out}")
    return EXIT_OK


def main(argv=None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    return exit_code(lambda: plot(args), "stopped")


if __name__ == "__main__":
    sys.exit(main())
