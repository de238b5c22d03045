"""
A run as the lab compares it, with a name and a type for each value.

    run = RunSummary.of_record(record, arm="gate", label="mix005")  # from its run.json
    run = RunSummary.from_json(entry, "results/mix005_latest.json")  # from an entry of runs[] in a result file
    run.val_bpb  # bits per byte, or None where it was not measured

The first 17 fields are the columns of ideas/history_schema.csv, in its order; the others have no column there. The row
of the ledger is made from a run too (lab/ledger/experiments.py). None means that a value was not measured or is not
known.
"""

import math
from dataclasses import dataclass, fields
from functools import cache
from typing import get_args, get_type_hints

from nanochat.lab.typed import fits

OF_RECORD = ("resumed_from_step", "error", "config_hash", "profile_hash", "command", "started_at", "run_id",
             "git_commit", "dirty", "threads", "dataset_id", "tokenizer_id")
OF_RESULTS = ("trained_tokens", "min_val_bpb", "steps", "bound", "final_train_loss", "tok_per_sec_median",
              "dt_median_ms", "peak_mem_mib", "grad_spikes", "evaluator", "fault")
# Fields that came after 0.1.0. They are written only where there is a value, so that a file of before stays as it was.
LATER = ("grad_spikes", "evaluator", "tree_val_bpb", "fault")
ROUNDING = 1e-6  # relative: two evaluators that agree to it found the same


@dataclass(frozen=True)
class RunSummary:
    timestamp: str | None = None  # UTC, when the run ended
    run_tag: str | None = None  # of its cell: name of its record and of its checkpoints
    recipe: str | None = None  # name of the profile
    seed: int | None = None  # of the pair
    duration_sec: float | None = None  # wall clock, with start-up and validation
    trained_tokens: int | None = None
    avg_tok_per_sec: float | None = None  # over training steps only
    val_bpb: float | None = None  # at the end of the run; None for a run that did not end well
    min_val_bpb: float | None = None
    num_iterations: int | None = None  # planned
    window_pattern: str | None = None
    resumed_from_step: int | None = None
    run_status: str | None = None  # one of record.STATUSES
    arm: str | None = None
    candidate: str | None = None  # flags of the arm
    label: str | None = None
    config_hash: str | None = None
    profile_hash: str | None = None
    reused: bool | None = None  # taken over from an earlier protocol
    error: str | None = None
    command: str | None = None
    started_at: str | None = None  # UTC
    declared_at: str | None = None  # UTC, of the declaration under which it was run
    run_id: str | None = None  # as its record says; None where it left no record
    git_commit: str | None = None
    dirty: bool | None = None
    device: str | None = None  # name of the device
    threads: int | None = None
    dataset_id: str | None = None
    tokenizer_id: str | None = None
    steps: int | None = None  # optimizer steps done
    bound: str | None = None  # which limit ended it: iterations, flops, ratio or wall
    training_sec: float | None = None  # clock of the training steps
    final_train_loss: float | None = None  # nats, smoothed
    tok_per_sec_median: float | None = None
    dt_median_ms: float | None = None
    peak_mem_mib: float | None = None
    grad_spikes: int | None = None  # steps whose gradient norm was ten times the running median and more
    load: float | None = None  # the larger load average of its start and its end
    overloaded: bool | None = None
    time_to_target_sec: float | None = None  # training seconds; None also where no target was declared
    steps_to_target: float | None = None  # between two validations it is interpolated
    evaluator: str | None = None  # of a run on another tree: control, or own where it could not be scored
    tree_val_bpb: float | None = None  # as that tree reports it; val_bpb is the control's evaluator's
    fault: str | None = None  # why the run of another tree can show nothing: lab/trees/score.py

    def to_json(self) -> dict:
        """The entry of runs[]: every field, in order, without the later ones that have no value."""
        return {name: value for name in _types() if (value := getattr(self, name)) is not None or name not in LATER}

    @classmethod
    def of_record(cls, record: dict, **told) -> "RunSummary":
        """The run of a run.json, which is {} where the run left none.

        told: fields that the caller knows. They stand in for what the record says, because a run that was killed still
        says "running", and the hash of a cell is that of what was asked for. Raises ValueError for a value of another
        type.
        """
        try:
            return cls(**_checked({**cls._said(record, told), **told}))
        except (TypeError, AttributeError) as e:  # text among numbers
            raise ValueError(f"its record has a value of another type ({e})") from e

    @staticmethod
    def _said(record: dict, told: dict) -> dict:
        parts = (record.get(key) or {} for key in ("config", "resolved", "clocks", "results", "device"))
        config, resolved, clocks, results, device = parts
        status = told.get("run_status") or {"running": "crash"}.get(record.get("status"), record.get("status"))
        load = max((x for x in (record.get("load_start"), record.get("load_end")) if x is not None), default=None)
        return {name: record.get(name) for name in OF_RECORD} | {name: results.get(name) for name in OF_RESULTS} | {
            "seed": config.get("seed"), "window_pattern": config.get("window_pattern"),
            "num_iterations": resolved.get("num_iterations"), "run_status": status,
            "val_bpb": judged_bpb(results) if status == "ok" else None,  # that of a run's end
            "tree_val_bpb": results.get("val_bpb") if results.get("evaluator") else None,
            "duration_sec": rounded(clocks.get("wall_time_sec"), 3), "training_sec": clocks.get("total_training_time"),
            "avg_tok_per_sec": rounded(results.get("avg_tok_per_sec"), 1), "device": device.get("name"), "load": load}

    @classmethod
    def from_json(cls, entry: dict, source="runs[]") -> "RunSummary":
        """The run of an entry. Keys that are unknown are left out, and a missing key is None.

        source: the file, for the message. Raises ValueError for an entry that is no object, or a value of another type.
        """
        if not isinstance(entry, dict):
            raise ValueError(f"{source}: a run is {entry!r}, expected an object; move the file away and "
                             "run its protocol again")
        known = {name: entry[name] for name in _types() if entry.get(name) is not None}
        for name, value in known.items():
            kind = _types()[name]
            if not fits(value, kind) and not (kind is float and isinstance(value, float)):  # a diverged loss may be nan
                raise ValueError(f"{source}: {name} of a run is {value!r}, expected {kind.__name__} or null; "
                                 "move the file away and run its protocol again")
        return cls(**known)


def judged_bpb(results: dict) -> float | None:
    """val_bpb as it is compared: the score of the control's evaluator, where there is one. None for a run with a fault.

    Where both agree to rounding, the run's own digits stay. Otherwise a candidate that does nothing would be better or
    worse than the control by the rounding of the other evaluator, with the same sign on every seed.
    """
    own, scored = results.get("val_bpb"), results.get("scored_val_bpb")
    if results.get("fault"):
        return None
    if results.get("evaluator") != "control" or (own and scored and math.isclose(own, scored, rel_tol=ROUNDING)):
        return own
    return scored


def rounded(value: float | None, digits: int) -> float | None:
    return round(value, digits) if isinstance(value, float) else value


def _checked(values: dict) -> dict:
    for name, value in values.items():
        kind = _types()[name]
        if value is not None and not fits(value, kind) and not (kind is float and isinstance(value, float)):
            raise ValueError(f"its record has {name} {str(value)[:40]!r}, expected {kind.__name__} or null")
    return values


@cache
def _types() -> dict[str, type]:
    """{field: type of a value that is not None}, in order."""
    hints = get_type_hints(RunSummary)
    return {f.name: get_args(hints[f.name])[0] for f in fields(RunSummary)}
