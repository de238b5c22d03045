"""
Does the same training give the same numbers on another machine?

    python -m scripts.machines                   (= make machines)
    python -m scripts.machines --dtype=bfloat16

Trains the control of the profile smoke-cpu on one seed with one thread, appends its validation curve to
dev/machines.csv (your own rows, which git does not track), and prints how far it is from the rows of other machines.
Those that came with the project are in dev/machines_reference.csv. In float32 two kinds of processor end within
1e-4 bits per byte of each other. Exit code: 0 the run ended, 2 it failed or bad input.
"""

import platform
import subprocess
import sys
from pathlib import Path

from nanochat import dataset, tokenizer
from nanochat.command_line import Parser
from nanochat.common import REPO_ROOT, child_environment, get_base_dir
from nanochat.lab.commands import EXIT_OK, RESULTS_DIR, exit_code, module_command, now
from nanochat.lab.csv_file import append_row, check_appendable, read_rows
from nanochat.lab.profiles import PROFILES, prepare
from nanochat.lab.table import table
from nanochat.machine import cpu_name
from nanochat.record import read_metrics, read_record, record_dir

LEDGER = Path("dev/machines.csv")
REFERENCE = Path("dev/machines_reference.csv")  # comes with the project; never written
PROFILE, SEED = PROFILES["smoke-cpu"], 1337
STEPS = tuple(range(0, 61, 10))  # of the profile's validations
OF_MACHINE = ("measured_at", "cpu", "instructions", "native_bf16", "os", "torch", "dtype")
OF_INPUT = ("profile_hash", "tree_hash")
COLUMNS = [*OF_MACHINE, *OF_INPUT, *(f"val_bpb_{step}" for step in STEPS)]
AGREE = 1e-4  # bits per byte, between machines in float32


def native_bf16() -> bool | None:
    """Whether the processor multiplies bfloat16 itself; None where the system does not say."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def train(home: Path, dtype: str) -> tuple[dict, list[dict]]:
    """(record, metrics) of the control. Raises ValueError where the run fails."""
    tag = f"machine_{dtype}"
    command = module_command("scripts.base_train", *PROFILE.flags, f"--dtype={dtype}", f"--seed={SEED}",
                             f"--model-tag={tag}")
    environment = child_environment(NANOCHAT_BASE_DIR=home, OMP_NUM_THREADS="1")
    if subprocess.run(command, cwd=REPO_ROOT, env=environment, stdout=subprocess.DEVNULL).returncode:
        raise ValueError(f"the run failed; see {record_dir(home, tag)}")
    return read_record(home, tag), read_metrics(record_dir(home, tag) / "metrics.jsonl")


def row_of(record: dict, metrics: list[dict], instructions: str) -> dict:
    bpb = {line["step"]: line["val/bpb"] for line in metrics if "val/bpb" in line}
    return dict(measured_at=now(), cpu=cpu_name(), instructions=instructions, native_bf16=native_bf16(),
                os=platform.system(), torch=record["versions"]["torch"], dtype=record["resolved"]["dtype"],
                profile_hash=record["profile_hash"][:12], tree_hash=record["tree_hash"][:12],
                **{f"val_bpb_{step}": f"{bpb[step]:.7f}" for step in STEPS})


def comparison(rows: list[dict], mine: dict) -> str:
    """A table of the rows of this workload and dtype, each with its difference from `mine`."""
    same = [row for row in rows if (row["dtype"], row["profile_hash"]) == (mine["dtype"], mine["profile_hash"])]
    lines = [[row["cpu"], row["instructions"], row["torch"], row["tree_hash"], row[f"val_bpb_{STEPS[-1]}"],
              row["from"], f"{distance(row, mine):.1e}"] for row in same]
    return table(["processor", "instructions", "torch", "code", "val_bpb", "row from", "largest difference"], lines,
                 left=4)


def distance(row: dict, other: dict) -> float:
    """The largest difference of two validation curves, in bits per byte."""
    return max(abs(float(row[f"val_bpb_{step}"]) - float(other[f"val_bpb_{step}"])) for step in STEPS)


def known_rows(ledger) -> list[dict]:
    """The rows that came with the project, which "from" says, then those of the ledger that are not among them."""
    shipped = read_rows(REFERENCE) if ledger == LEDGER else []
    own = [row for row in read_rows(ledger) if row not in shipped]
    return [row | {"from": "the project"} for row in shipped] + [row | {"from": "you"} for row in own]


def is_repeat(old: dict, row: dict) -> bool:
    """Whether a row of the file says all that `row` says, but for the date. old: cells as text."""
    return all(old[name] == str("" if row[name] is None else row[name]) for name in COLUMNS if name != "measured_at")


def measure(args) -> int:
    import torch
    check_appendable(args.ledger, COLUMNS)
    home = PROFILE.home(get_base_dir())
    prepare(PROFILE, home, dataset, tokenizer, RESULTS_DIR / "machines")
    row = row_of(*train(home, args.dtype), torch.backends.cpu.get_cpu_capability())
    repeated = next((old for old in known_rows(args.ledger) if is_repeat(old, row)), None)
    if repeated is None:
        append_row(args.ledger, COLUMNS, row)
    print(comparison(known_rows(args.ledger), row))
    kept = f"the same as a row from {repeated['from']}, not kept again" if repeated else f"kept in {args.ledger}"
    print(f"{kept}; machines agree in float32 when no difference is above {AGREE:g} bits per byte")
    return EXIT_OK


def main(argv=None) -> int:
    parser = Parser(prog="python -m scripts.machines", allow_abbrev=False,
                    description="Train one run, and compare its curve with those of other machines.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="of the training (default: %(default)s)")
    parser.add_argument("--ledger", type=Path, default=LEDGER, metavar="PATH",
                        help="table that the run is added to and compared with (default: %(default)s)")
    args = parser.parse_args(argv)
    return exit_code(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
