"""
The files that a protocol leaves behind, besides the records of its runs:

    results/<name>_latest.json    declaration, runs, paired differences, verdicts; replaced whole
    results/<name>_history.csv    one row for each cell that was run, failed ones too; appended

duration_sec is the wall clock of a run, with start-up and validation: it tells how long a user has to wait.
avg_tok_per_sec is not made from duration_sec. It counts training steps only, so that speeds can be compared.
"""

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from nanochat.common import write_json
from nanochat.lab.arms import CONTROL
from nanochat.lab.commands import RESULTS_DIR
from nanochat.lab.csv_file import append_row, check_header, read_schema
from nanochat.lab.report.index import NAME as INDEX
from nanochat.lab.report.result_file import ResultFile, read_results
from nanochat.lab.runs import RunSummary, rounded
from nanochat.machine import usable_cores
from nanochat.record import read_metrics, record_dir

INDEX_SEC = 60  # a temporary file of the index is left over after this long
OVERLOAD = 1.5  # times the cores that we may use: above, times say more about the machine than about the arm


class Results:
    """The two files of one protocol, and its picture, under `folder` (relative to the working directory)."""

    def __init__(self, folder, name: str):
        self.latest = Path(folder) / f"{name}_latest.json"
        self.history = Path(folder) / f"{name}_history.csv"
        self.picture = Path(folder) / f"{name}.png"
        self.logs = Path(folder) / name
        self.schema = read_schema("history")
        check_header(self.history, self.schema)

    def read_latest(self) -> ResultFile | None:
        """The result file of the last protocol of this name. Raises ValueError, which names it, where it is damaged."""
        try:
            return read_results(self.latest)
        except FileNotFoundError:
            return None

    def read_runs(self) -> list[RunSummary]:
        """The runs of the last protocol of this name."""
        found = self.read_latest()
        return found.runs if found else []

    def set_aside(self) -> Path:
        """Rename the result file; returns its new path."""
        names = (self.latest.with_name(f"{self.latest.name}.damaged.{i}") for i in range(1, 10 ** 6))
        return self.latest.rename(next(path for path in names if not path.exists()))

    def sweep(self):
        """Delete what killed writes of these files left. Only for the holder of the label's lock.

        The index is of all labels: another protocol may be writing it now, which takes less than a second.
        """
        own = self.latest, self.picture, self.logs / "report.html"
        left = [path for file in own for path in file.parent.glob(f".{file.name}.*.tmp")]
        old = time.time() - INDEX_SEC
        with contextlib.suppress(OSError):  # a read-only folder is named by the check of the books
            left += [path for path in self.latest.parent.glob(f".{INDEX}.*.tmp") if path.stat().st_mtime < old]
            for path in left:
                path.unlink(missing_ok=True)

    def append(self, run: RunSummary):
        append_row(self.history, self.schema, run.to_json())

    def write(self, facts: dict):
        write_json(self.latest, facts)


def tags_of(label: str, folder=RESULTS_DIR) -> list[str]:
    """Run tags of a label's result file, in its order. Raises ValueError where there is none."""
    path = Path(folder) / f"{label}_latest.json"
    if not path.exists():
        raise ValueError(f"--label={label}: no {path}; run its protocol first, in this directory")
    try:
        tags = [run.run_tag for run in read_results(path).runs]
        if None in tags:
            raise ValueError("a run has no run_tag")
    except ValueError as e:
        raise ValueError(f"--label={label}: {path} is no result file ({e}); run its protocol again") from e
    return tags


# -----------------------------------------------------------------------------
# Runs

def summary_of(cell, outcome, **told) -> RunSummary:
    """The run of a cell that has ended. told: fields that neither cell nor record has, such as label and timestamp."""
    run = RunSummary.of_record(
        outcome.record, run_tag=cell.tag, seed=cell.seed, config_hash=cell.config_hash, arm=cell.arm.name,
        candidate=cell.arm.flags, window_pattern=cell.config.window_pattern, run_status=outcome.status,
        reused=outcome.reused, error=outcome.error, **told)
    total = run.num_iterations or cell.config.num_iterations
    return replace(run, num_iterations=total if total > 0 else None,
                   duration_sec=rounded(outcome.elapsed_sec, 3) if run.duration_sec is None else run.duration_sec,
                   overloaded=None if run.load is None else overloaded(run.load))


def overloaded(load: float, cores: int | None = None) -> bool:
    return load > OVERLOAD * (cores or usable_cores())


def curve(home, tag: str) -> list[tuple[int, float | None, float]]:
    """(step, training seconds, val_bpb) of each validation of a run."""
    rows = read_metrics(record_dir(home, tag) / "metrics.jsonl")
    return [(row["step"], row.get("total_training_time"), row["val/bpb"])
            for row in rows if row.get("val/bpb") is not None]


# -----------------------------------------------------------------------------
# Differences

def delta_rows(arms: list[str], seeds: list[int], runs: list[RunSummary]) -> list[dict]:
    """Candidate minus control for every pair that was tried. A value that cannot be computed is None, with a note."""
    by_cell = {(run.arm, run.seed): run for run in runs}
    rows = []
    for arm in arms:
        for seed in seeds:
            pair = by_cell.get((CONTROL, seed)), by_cell.get((arm, seed))
            if arm != CONTROL and None not in pair:
                rows.append(_delta(*pair))
    return rows


def _delta(control: RunSummary, candidate: RunSummary) -> dict:
    failed = [f"{run.arm} {run.run_status}" for run in (control, candidate) if run.run_status != "ok"]
    # Speed is a property of the machine's state as much as of the arm: only cells of one protocol took turns.
    apart = control.declared_at is None or control.declared_at != candidate.declared_at
    note = "speed not compared: the cells were run under different protocols; FRESH=1 runs both anew"
    notes = failed or ([note] if apart else [])

    def difference(key):
        old, new = getattr(control, key), getattr(candidate, key)
        return None if failed or old is None or new is None else new - old
    speeds = control.avg_tok_per_sec, candidate.avg_tok_per_sec
    return {
        "seed": candidate.seed, "candidate_minus_control_bpb": difference("val_bpb"),
        "candidate_minus_control_duration_sec": rounded(difference("duration_sec"), 3),
        "candidate_speed_ratio": None if failed or apart or not all(speeds) else speeds[1] / speeds[0],
        "candidate": candidate.arm, "note": "; ".join(notes) or None,
    }


def means(arms: list[str], deltas: list[dict]) -> dict:
    """The two means of the only candidate (None with several), and by_candidate with the number of pairs in each."""
    def mean(rows, key):
        values = [row[key] for row in rows if row[key] is not None]
        return (sum(values) / len(values) if values else None), len(values)
    by_candidate = {}
    for arm in arms:
        if arm != CONTROL:
            rows = [row for row in deltas if row["candidate"] == arm]
            bpb, pairs = mean(rows, "candidate_minus_control_bpb")
            speed, timed = mean(rows, "candidate_speed_ratio")
            by_candidate[arm] = {"mean_candidate_minus_control_bpb": bpb, "pairs": pairs,
                                 "mean_candidate_speed_ratio": speed, "timed_pairs": timed}
    only = next(iter(by_candidate.values())) if len(by_candidate) == 1 else {}
    return {"mean_candidate_minus_control_bpb": only.get("mean_candidate_minus_control_bpb"),
            "mean_candidate_speed_ratio": only.get("mean_candidate_speed_ratio"), "by_candidate": by_candidate}
