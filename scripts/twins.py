"""
How much of a run's noise is rounding? Compare each run with its twin, which starts from an embedding changed by 1e-7:

    python -m scripts.protocol --label=mine --seeds="1 2 3 4 5 6 7 8" --candidate="twin: --perturb=1e-7"
    python -m scripts.twins mine

Reads results/<label>_latest.json of each label, and prints one line a label. `twin rms` is the root mean square of the
difference of twins, in bits per byte. Where it is as large as the spread over seeds, rounding changes a result as much
as another seed does, and another machine gives another result. Exit code: 0, or 2 for bad input.
`bash runs/quiet_start.sh` has an example.
"""

import statistics
import sys

from nanochat.command_line import Parser
from nanochat.lab.arms import CONTROL
from nanochat.lab.commands import EXIT_OK, exit_code
from nanochat.lab.report.result_file import ResultFile, path_of, read_results
from nanochat.lab.table import number, table
from nanochat.lab.verdict.stats import seeds_needed, sigma_interval

TWIN, GAIN = "twin", 0.01  # name of the second arm; bits per byte, for the number of seeds that show it
HEADER = ["label", "seeds", "mean bpb", "sd over seeds", "90 % interval", "twin rms", f"seeds for {GAIN:g}",
          "runs with spikes"]


def pairs_of(found: ResultFile) -> list[tuple]:
    """(control, twin) of every seed that both ended. Raises ValueError for fewer than two."""
    ended = {(run.arm, run.seed): run for run in found.runs if run.val_bpb is not None}
    seeds = [seed for arm, seed in ended if arm == CONTROL and (TWIN, seed) in ended]
    if len(seeds) < 2:
        raise ValueError(f"{found.settings.label}: {len(seeds)} pairs of {CONTROL} and {TWIN} ended, expected 2 or "
                         f"more; run its protocol with --candidate='{TWIN}: --perturb=1e-7'")
    return [(ended[CONTROL, seed], ended[TWIN, seed]) for seed in seeds]


def row(label: str) -> list[str]:
    pairs = pairs_of(read_results(path_of(label)))
    bpb = [control.val_bpb for control, _ in pairs]
    sd, nu = statistics.stdev(bpb), len(bpb) - 1
    low, high = sigma_interval(sd, nu)
    rms = statistics.fmean((control.val_bpb - twin.val_bpb) ** 2 for control, twin in pairs) ** 0.5
    seeds = seeds_needed(GAIN, sd, nu) if sd else None
    spikes = sum(bool(control.grad_spikes) for control, _ in pairs)
    return [label, str(len(pairs)), f"{statistics.fmean(bpb):.4f}", f"{sd:.4f}", f"[{low:.4f}, {high:.4f}]",
            f"{rms:.1e}", number(seeds, "d") or "more than 64", f"{spikes} of {len(pairs)}"]


def show(labels) -> int:
    print(table(HEADER, [row(label) for label in labels]))
    return EXIT_OK


def main(argv=None) -> int:
    parser = Parser(prog="python -m scripts.twins", allow_abbrev=False,
                    description="How much of a run's noise is rounding: each run against its twin, "
                                                 "which starts from an embedding changed by 1e-7.")
    parser.add_argument("labels", nargs="+", metavar="LABEL",
                        help="of a finished protocol with --candidate='twin: --perturb=1e-7'")
    args = parser.parse_args(argv)
    return exit_code(lambda: show(args.labels))


if __name__ == "__main__":
    sys.exit(main())
