"""
Measure how much the control varies from seed to seed, and print the smallest gains that a protocol can see:

    python -m scripts.noise --run --seeds=8        (= make noise SEEDS=8)
    python -m scripts.noise
    python -m scripts.noise --aa-rate              # false promotions among 24 banked runs or more

The finished runs are the noise bank. They are on seeds that protocols do not use. Complete runs are reused, so that
--seeds=10 after --seeds=8 trains two more.
Rows go to dev/ledger/experiments.csv. Exit code: 0 ok, 1 some run failed, 2 bad input, 130 interrupted (go on
with the same command).
"""

import os
import shlex
import sys
from pathlib import Path

from nanochat import dataset, tokenizer
from nanochat.command_line import Parser
from nanochat.common import get_base_dir, write_json
from nanochat.lab import profiles
from nanochat.lab.arms import CONTROL, make_arms, split_flags
from nanochat.lab.commands import EXIT_INTERRUPTED, RESULTS_DIR, complete, exit_code, extra_words, now
from nanochat.lab.ledger import bank, experiments
from nanochat.lab.ledger.banked import banked_runs
from nanochat.lab.ledger.rerun import home_of
from nanochat.lab.protocol.build import build_protocol, check_arms, choose_workload, make_data
from nanochat.lab.protocol.protocol import Protocol, run
from nanochat.lab.protocol.runner import stop_on_signals
from nanochat.lab.report.index import index_for
from nanochat.lab.report.sections import workload_words
from nanochat.lab.runs import RunSummary
from nanochat.lab.simulation.real_runs import describe_rates
from nanochat.record import read_metrics, read_record, record_dir


class NoiseProtocol(Protocol):
    """The control alone."""

    def command(self, seeds=None) -> str:
        words = ["python", "-m", "scripts.noise", "--run", f"--seeds={len(seeds or self.seeds)}"]
        common = self.workload.common_flags
        words += [f"--data={self.profile.data}"] if self.profile.data else []
        words += [f"--profile={self.profile.name}", *([f"--flags={shlex.join(common)}"] if common else [])]
        return shlex.join(words)


def build_parser():
    parser = Parser(prog="python -m scripts.noise", allow_abbrev=False,
                    description="Train the control alone on several seeds, and say which gains a "
                                "protocol can see above that noise.")
    parser.add_argument("--run", action="store_true", help="first train the runs that the bank lacks")
    parser.add_argument("--seeds", type=int, default=8, metavar="N",
                        help="number of runs in the bank (default: %(default)s)")
    parser.add_argument("--profile", choices=list(profiles.PROFILES),
                        help="the workload to bank (default: as scripts.protocol)")
    parser.add_argument("--data", metavar="NAME", help="bank on a corpus of your own (as scripts.protocol)")
    parser.add_argument("--flags", default="", metavar="FLAGS",
                        help="more training flags, as in --flags='--num-iterations=30'")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help=f"runs side by side (default: on a CPU {profiles.NOISE_SIDE_BY_SIDE}, else 1)")
    parser.add_argument("--fresh", action="store_true", default=os.environ.get("FRESH", "") not in ("", "0"),
                        help="reuse no run (also FRESH=1)")
    parser.add_argument("--profile-hash", default="", metavar="HASH",
                        help="show this profile (its first letters; default: the newest)")
    parser.add_argument("--aa-rate", action="store_true",
                        help="also draw A/A protocols from the banked runs and show how many promote")
    parser.add_argument("--label", help="show the profile of this label's newest row")
    parser.add_argument("--ledger", type=Path, default=experiments.LEDGER, metavar="PATH", help="default: %(default)s")
    return parser


# -----------------------------------------------------------------------------
# Banking

def make_protocol(args) -> NoiseProtocol:
    seeds = bank.noise_seeds(args.seeds)
    workload = choose_workload(args.profile, "protocol-16gb", split_flags("--flags", args.flags), args.data)
    arms = make_arms([], workload.flags)
    side_by_side = profiles.side_by_side(arms * min(profiles.NOISE_SIDE_BY_SIDE, len(seeds)))
    return build_protocol(experiments.NOISE, workload, arms, seeds, kind=NoiseProtocol, fresh=args.fresh,
                          times=args.ledger, jobs=side_by_side if args.jobs is None else args.jobs,
                          extra=extra_words(args, experiments.LEDGER))


def bank_runs(protocol: Protocol, ledger) -> int:
    """Append a row for every ended run of the protocol that the ledger lacks. Returns the number of new rows."""
    ours = {(cell.tag, cell.config_hash) for cell in protocol.cells}
    runs = [run for run in protocol.results.read_runs() if (run.run_tag, run.config_hash) in ours]
    rows = [noise_row(protocol, run) for run in runs]
    return sum(experiments.append_missing(ledger, row) for row in rows)


def noise_row(protocol: Protocol, run: RunSummary) -> dict:
    """The ledger's row of a run of the result file, from its record; a run that was killed may have left none."""
    record, metrics = read_record(protocol.home, run.run_tag) or {}, []
    if record.get("config_hash") == run.config_hash:
        metrics = read_metrics(record_dir(protocol.home, run.run_tag) / "metrics.jsonl")
    else:
        record = {}
    told = ("run_tag", "seed", "config_hash", "run_status", "started_at", "timestamp", "declared_at", "overloaded")
    return experiments.row_of_record(record, metrics, label=experiments.NOISE, arm=CONTROL,
                                     recipe=protocol.profile.name, **{name: getattr(run, name) for name in told})


def run_noise(args) -> tuple[int, str]:
    """(exit code, profile hash). Every run that has ended is banked, even if the user stops the command."""
    protocol = make_protocol(args)
    experiments.check(args.ledger)
    make_data(protocol, dataset, tokenizer)
    from nanochat.cost import resolve  # needs torch, which takes seconds
    check_arms(protocol, resolve, tokenizer)
    try:
        code = run(protocol)
    finally:
        print(f"banked {bank_runs(protocol, args.ledger)} new rows in {args.ledger}")
    hashes = [(read_record(protocol.home, cell.tag) or {}).get("profile_hash") for cell in protocol.cells]
    return code, next(filter(None, hashes), "")


# -----------------------------------------------------------------------------
# Showing

def choose_profile(rows, args) -> str:
    """The profile that is asked for, or the newest banked one."""
    if args.profile_hash:
        found = {row["profile_hash"] for row in rows if (row["profile_hash"] or "").startswith(args.profile_hash)}
        if len(found) != 1:
            present = ", ".join(row["profile_hash"][:8] for row in bank.profiles_present(rows))
            raise ValueError(f"--profile-hash={args.profile_hash}: {len(found)} profiles in the ledger begin so, "
                             f"expected one; there are {present or 'none'}")
        return found.pop()
    wanted = [row for row in rows if row["profile_hash"] and row["label"] == (args.label or experiments.NOISE)]
    if not wanted and args.label:
        raise ValueError(f"--label={args.label}: no row of the ledger has this label; `make ledger` lists them")
    if not wanted:
        raise ValueError(f"no noise banked in {args.ledger}: run `make noise SEEDS=8`")
    return wanted[-1]["profile_hash"]


def show(rows, profile_hash, say=print):
    newest = [row for row in rows if row["profile_hash"] == profile_hash][-1]
    say(f"profile {profile_hash[:8]} {newest['profile'] or '-'}, {newest['device']}: {newest['command']}\n")
    try:
        threshold = bank.banked_target(rows, profile_hash)
        rows = bank.with_target(rows, stored_curves(rows, profile_hash), "val_bpb", threshold)
        say(f"target val_bpb {threshold:.6g}: the worst final of the banked runs + 1 sigma\n")
    except ValueError as e:
        say(f"no target from the bank: {e}\n")
    say(bank.describe(bank.measure(rows, profile_hash)))
    own = [row for row in rows if row["profile_hash"] == profile_hash or not experiments.from_reference(row)]
    if others := bank.other_profiles(own, profile_hash):  # those that came with the project are in the leaderboard
        say("\n" + others)


def write_page(rows, profile_hash):
    """results/<profile>_<hash>_bank.json, and its page: the spread of this bank, for the index of the results."""
    newest = [row for row in rows if row["profile_hash"] == profile_hash][-1]
    path = RESULTS_DIR / f"{newest['profile'] or 'profile'}_{profile_hash[:8]}_bank.json"
    write_json(path, {"timestamp": now(), "workload": workload_words(newest), "command": newest["command"],
                      "noise": bank.measure(rows, profile_hash)})
    print(f"written: {', '.join(map(str, filter(None, [path, index_for(path)])))}")


def stored_curves(rows, profile_hash) -> dict:
    """{run id: metrics} of the banked runs whose records are still in their base dir, and still those of the row."""
    curves = {}
    for row in banked_runs(rows, profile_hash)[0]:
        home = home_of(row, get_base_dir())
        if experiments.is_of(read_record(home, row["run_id"]), row):
            curves[row["run_id"]] = read_metrics(record_dir(home, row["run_id"]) / "metrics.jsonl")
    return curves


def bank_and_show(args) -> int:
    """Every error and every line names the options of the bank in its advice."""
    given = [f"--{name}={value}" for name in ("profile", "data", "flags") if (value := getattr(args, name))]
    given += extra_words(args, experiments.LEDGER)
    try:
        return _bank_and_show(args, lambda text: print(complete(text, given)))
    except ValueError as e:
        raise ValueError(complete(str(e), given)) from e


def _bank_and_show(args, say) -> int:
    code, profile_hash = run_noise(args) if args.run else (0, "")
    if code != EXIT_INTERRUPTED:
        rows = experiments.read_all(args.ledger)
        profile_hash = profile_hash or choose_profile(rows, args)
        show(rows, profile_hash, say)
        if args.run:
            write_page(rows, profile_hash)
        if args.aa_rate:
            say("\n" + describe_rates(rows, profile_hash))
    return code


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    return exit_code(lambda: bank_and_show(args))


if __name__ == "__main__":
    stop_on_signals()
    sys.exit(main())
