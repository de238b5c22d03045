"""Made-up rows of a leaderboard, and its tables read back."""

import re
import zlib

from nanochat.lab.ledger.experiments import schema
from nanochat.lab.report.leaderboard import HEADER, markdown

TIME, GUESSED = "time_to_target_sec", "extrapolated_sec"
TARGET = {"target_metric_name": "val_bpb", "target_metric_threshold": 1.12}
NO_TARGET = dict.fromkeys(TARGET)


def flags_of(arm: str) -> str:
    """An arm has options of its own, because rows with equal options are one entry."""
    return "" if arm == "control" else f"--lr-multiplier={1 + zlib.crc32(arm.encode()) / 2 ** 34:.6f}"


def make_row(arm="control", seed=1, time=None, bpb=1.1, status="ok", flags=None, **cells) -> dict:
    flags = flags_of(arm) if flags is None else flags
    row = dict.fromkeys(schema()) | TARGET | {
        "timestamp": f"2026-03-04T05:06:{seed:02d}+00:00", "git_commit": "0123456789abcdef",
        "experiment_name": "mix", "seed": seed,
        "depth": 4, "time_to_target_sec_measured": time, "tok_per_sec_median": 2048.0,
        "status": status, "arm": arm, "label": "mix",
        "profile": "smoke-cpu", "profile_hash": "9f8e7d6c5b4a3210", "config_hash": f"hash-{arm}-{seed}", "dirty": False,
        "device": "cpu", "tree_hash": "aa11",
        "val_bpb": bpb if status == "ok" else None, "training_sec": time or 60.0,
        "command": f"python -m scripts.base_train --depth=4 {flags} --seed={seed} --model-tag=nc_mix_d4_{arm}_s{seed}"}
    return row | cells


def noise_rows(**arms) -> list[dict]:
    return [make_row(arm, seed, bpb=bpb, **NO_TARGET) for arm, values in arms.items()
            for seed, bpb in enumerate(values, start=1)]


def split(line) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(text) -> list[dict]:
    """Rows of the tables, {column: cell}; a column that is not shown is empty. The arm is the first word of its name.
    """
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    header, found = [], []
    for line, after in zip(lines, [*lines[1:], ""]):
        if after.startswith("| ---"):
            header = split(line)
        elif not line.startswith("| ---"):
            cells = dict.fromkeys(HEADER, "") | dict(zip(header, split(line)))
            found.append(cells | {"name": cells["arm"], "arm": cells["arm"].partition(":")[0]})
    return found


def by_arm(rows) -> dict:
    return {row["arm"]: row for row in table(markdown(rows))}


def order(rows) -> list[str]:
    return [row["arm"] for row in table(markdown(rows))]


def titles(text) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)
