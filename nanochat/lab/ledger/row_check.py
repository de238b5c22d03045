"""
Rows of the ledger that no run writes: an edited one is left out of what is judged, and named.

A cell that is empty, because the version that wrote the row did not have it, is no edit.
"""

from nanochat.lab.runs import RunSummary
from nanochat.record import STATUSES

POSITIVE = ("val_bpb", "min_val_bpb", "final_train_loss", "tok_per_sec_median", "dt_median_ms")
NOT_NEGATIVE = ("time_to_target_sec_measured", "time_to_target_sec_extrapolated", "wall_time_sec", "training_sec",
                "compile_sec", "eval_sec", "peak_mem_mib", "load", "trained_tokens", "seed")


def row_faults(row: dict) -> list[str]:
    """Sentences on a row as experiments.read gives it; [] where a run may have written it."""
    found = []
    if row["status"] is not None and row["status"] not in STATUSES:
        found.append(f"its status is {row['status']!r}, which is not how a run ends ({', '.join(STATUSES)})")
    found += [f"its {name} is {row[name]}, expected a number above 0" for name in POSITIVE
              if row[name] is not None and row[name] <= 0]
    found += [f"its {name} is {row[name]}, expected 0 or more" for name in NOT_NEGATIVE
              if row[name] is not None and row[name] < 0]
    if row["status"] not in ("ok", None) and row["val_bpb"] is not None:
        found.append(f"it ended as {row['status']} and has a val_bpb")
    if row["declared_at"] and row["timestamp"] and row["timestamp"] < row["declared_at"]:
        found.append(f"it began at {row['timestamp']}, before its declaration of {row['declared_at']}")
    return found


def kept_rows(rows: list[dict], runs: list[RunSummary]) -> tuple[list[dict], list[str]]:
    """(rows that may be judged, a line for each row that is left out). runs: of the result files that are at hand.

    A row and a run of the same id, options and start are one run, so they have one val_bpb.
    """
    known = {(run.run_id, run.config_hash, run.started_at): run.val_bpb for run in runs if run.started_at}
    kept, lines = [], []
    for row in rows:
        found, key = row_faults(row), (row["run_id"], row["config_hash"], row["timestamp"])
        other = known.get(key)
        if other is not None and row["val_bpb"] is not None and other != row["val_bpb"]:
            found.append(f"its val_bpb is {row['val_bpb']}, and {other} in the result file of its label")
        if found:
            lines.append(f"row {row['row']} left out: {'; '.join(found)}")
        else:
            kept.append(row)
    return kept, lines
