"""
The ledger of Lane B: a row for each run that an inference led to, and a row for its control, appended and never
changed.

The columns are ideas/lane_b_inference_schema.csv. What was predicted comes from the file of scripts.lane_b_infer_ratio,
what was measured from the run's record, and nothing is written where the two are not about the same thing. chosen_ratio
is the run's own; lane_b_decision is the inference's, the same in every row of it.

The user's rows are in dev/ledger/lane_b.csv, which git does not track. Those that come with the project are in
dev/ledger/lane_b_reference.csv, and no command writes there. A run that is in either has its row.
"""

import math
import os
from pathlib import Path
from types import NoneType

from nanochat.common import REPO_ROOT
from nanochat.lab.csv_file import append_rows, check_header, read_rows, read_schema
from nanochat.lab.ledger import experiments
from nanochat.lab.typed import fits

LEDGER = REPO_ROOT / "dev" / "ledger" / "lane_b.csv"
REFERENCE = LEDGER.with_name("lane_b_reference.csv")
INFERENCE_VERSION = 1
FROM_INFERENCE = {  # column: key of the file
    "n_scaling_params": "num_scaling_params", "inferred_data_scaling_exponent": "alpha_d",
    "inferred_target_tokens": "target_tokens", "lane_b_decision": "decision",
    **{name: name for name in ("target_metric_name", "target_metric_threshold", "confirmation_ratio",
                               "inferred_target_param_data_ratio")}}
FROM_RUN = ("git_commit", "run_id", "seed", "dataset_id", "time_to_target_sec_measured",
            "time_to_target_sec_extrapolated", "min_val_bpb", "tok_per_sec_median", "dt_median_ms", "status")


def schema() -> list[str]:
    return read_schema("lane_b_inference")


def check_inference(facts: dict):
    """Raise ValueError for a file that lacks a part of an inference, or whose target no record has a curve of."""
    missing = [name for name in ("arms", "ratio_ref", "direction", *FROM_INFERENCE.values()) if name not in facts]
    if facts.get("schema_version") != INFERENCE_VERSION or missing or not _well_typed(facts):
        lacks = f", {', '.join(missing)} missing" if missing else ""
        raise ValueError(f"not an inference of schema version {INFERENCE_VERSION}{lacks}; "
                         "run scripts.lane_b_infer_ratio again")
    if facts["target_metric_name"] not in experiments.CURVES or facts["direction"] != "lower":
        raise ValueError(f"the inference is about {facts['target_metric_name']} ({facts['direction']} is better): "
                         f"a record has curves of {', '.join(experiments.CURVES)} only, lower is better")


def _well_typed(facts: dict) -> bool:
    arms, error = facts["arms"], facts.get("error")
    plain = [facts[key] for key in ("ratio_ref", "direction", *FROM_INFERENCE.values())]
    if not all(fits(value, str | float | None) for value in plain):
        return False
    return isinstance(arms, dict) and isinstance(error, (dict, NoneType)) and all(
        isinstance(arm, dict) and fits(arm.get("target_param_data_ratio"), float) for arm in arms.values())


def row_of(record: dict, metrics_rows: list[dict], facts: dict, notes: str = "") -> dict:
    """The row of a run, failed runs too. Raises ValueError where record and inference contradict each other."""
    check_inference(facts)
    arm = _arm_of(record, facts)
    target = {"metric": facts["target_metric_name"], "threshold": facts["target_metric_threshold"]}
    run = experiments.row_of_record(record, metrics_rows, target, arm=arm)
    row = {name: facts[key] for name, key in FROM_INFERENCE.items()} | {name: run[name] for name in FROM_RUN}
    refused = (facts.get("error") or {}).get("code")
    words = [f"{arm} arm", *([f"inference: {refused}"] if refused else []), " ".join(notes.split())]
    return row | {"timestamp_utc": run["timestamp"], "chosen_ratio": record["config"]["target_param_data_ratio"],
                  "notes": "; ".join(filter(None, words))}


def _arm_of(record: dict, facts: dict) -> str:
    """The arm of the inference that the run is."""
    config, done = record.get("config") or {}, record.get("resolved") or {}
    said = [("num_scaling_params", done.get("num_scaling_params"), facts["num_scaling_params"]),
            ("ratio_ref", config.get("ratio_ref"), facts["ratio_ref"])]
    said += [(name, record.get(name), facts[name])
             for name in ("dataset_id", "tokenizer_id") if facts.get(name) is not None]
    if config.get("target_bpb", -1) > 0 and facts["target_metric_name"] == "val_bpb":
        said.append(("target_bpb", config["target_bpb"], facts["target_metric_threshold"]))
    for name, ours, theirs in said:
        if ours != theirs:
            raise ValueError(f"{record.get('run_id')}: {name} is {ours} in the record and {theirs} in the inference; "
                             "log it with the inference that it was run for")
    ratio = config.get("target_param_data_ratio") if done.get("horizon") == "target_param_data_ratio" else None
    ratios = {name: arm["target_param_data_ratio"] for name, arm in facts["arms"].items()}
    found = [name for name, wanted in ratios.items() if ratio is not None and math.isclose(ratio, wanted, rel_tol=1e-9)]
    if not found:
        raise ValueError(f"{record.get('run_id')}: its ratio is {ratio}, and the inference's are "
                         f"{', '.join(f'{wanted!r} ({name})' for name, wanted in ratios.items())}")
    return found[0]


def identity(row) -> tuple[str, str]:
    """(run id, start). A run id may be used again, by another clone or a fresh start: the start tells the runs
    apart."""
    return row["run_id"], row["timestamp_utc"]


def logged(path) -> list[tuple]:
    """Runs of the ledger, and those that came with the project. Raises ValueError for another header."""
    files = [*([REFERENCE] if os.path.realpath(path) == os.path.realpath(LEDGER) else []), path]
    for file in files:
        check_header(file, schema())
    return [identity(row) for file in files for row in read_rows(file)]


def append(path, rows: list[dict]):
    """Append all rows, or none where a run has been logged before or the file has another header."""
    def refuse(_):  # is called under the lock
        seen = {*logged(path)}
        for row in rows:
            if identity(row) in seen:
                raise ValueError(f"{row['run_id']} is in {Path(path)} already: a run has one row")
            seen.add(identity(row))
    append_rows(path, schema(), rows, refuse)
