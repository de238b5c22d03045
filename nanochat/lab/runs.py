"""
A run as the lab compares it, with a name and a type for each value.

    run = RunSummary.of_record(record, arm="gate", label="mix005")  # from its run.json
    run = RunSummary.from_json(entry, "results/mix005_latest.json")  # from an entry of runs[] in a result file
    run.val_bpb  # bits per byte, or None where it was not measured

The first 17 fields are the columns of ideas/history_schema.csv, in its order; the others have no column there. The row
of the ledger is made from a run too (lab/ledger/experiments.py). None means that a value was not measured or is not
known.
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import get_args, get_type_hints

OF_RECORD = ("resumed_from_step", "error", "config_hash", "profile_hash", "command", "started_at", "run_id",
             "git_commit", "dirty", "threads", "dataset_id", "tokenizer_id")
OF_RESULTS = ("trained_tokens", "min_val_bpb", "steps", "bound", "final_train_loss", "tok_per_sec_median",
              "dt_median_ms", "peak_mem_mib", "grad_spikes")


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

    def to_json(self) -> dict:
        """The entry of runs[]: every field, in order."""
        return {name: getattr(self, name) for name in _types()}

    @classmethod
    def of_record(cls, record: dict, **told) -> "RunSummary":
        """The run of a run.json, which is {} where the run left none.

        told: fields that the caller knows. They stand in for what the record says, because a run that was killed still
        says "running", and the hash of a cell is that of what was asked for.
        """
        parts = (record.get(key) or {} for key in ("config", "resolved", "clocks", "results", "device"))
        config, resolved, clocks, results, device = parts
        status = told.get("run_status") or {"running": "crash"}.get(record.get("status"), record.get("status"))
        load = max((x for x in (record.get("load_start"), record.get("load_end")) if x is not None), default=None)
        said = {name: record.get(name) for name in OF_RECORD} | {name: results.get(name) for name in OF_RESULTS} | {
            "seed": config.get("seed"), "window_pattern": config.get("window_pattern"),
            "num_iterations": resolved.get("num_iterations"), "run_status": status,
            "val_bpb": results.get("val_bpb") if status == "ok" else None,  # that of a run's end
            "duration_sec": rounded(clocks.get("wall_time_sec"), 3), "training_sec": clocks.get("total_training_time"),
            "avg_tok_per_sec": rounded(results.get("avg_tok_per_sec"), 1), "device": device.get("name"), "load": load}
        return cls(**{**said, **told})

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
            if not _is_of(value, kind := _types()[name]):
                raise ValueError(f"{source}: {name} of a run is {value!r}, expected {kind.__name__} or null; "
                                 "move the file away and run its protocol again")
        return cls(**known)


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


@cache
def _types() -> dict[str, type]:
    """{field: type of a value that is not None}, in order."""
    hints = get_type_hints(RunSummary)
    return {f.name: get_args(hints[f.name])[0] for f in fields(RunSummary)}


def _is_of(value, kind: type) -> bool:
    """True if a JSON value fits the type. A whole number fits float, and a bool fits only bool, though it is an int."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
