"""
The ledger of experiments: a row for each run, also for a failed run. Rows are appended and never changed.

The columns are those of ideas/experiment_schema.csv: first the 23 of the plan, then the columns that make a row
reproducible and comparable. A value says how the run was really done (its record's "resolved"), not how it was asked
for. An empty cell was not measured. A row is one line. So a torn line loses only one row, and two branches that both
added rows can be merged.

Two files hold rows. dev/ledger/reference.csv comes with the project, and no command writes to it.
dev/ledger/experiments.csv is the user's own: git does not track it, and it begins with the first run. So a pull never
meets a local change, and a checkout never takes a bank away. NANOCHAT_LEDGER names another file for the user's rows.
The project's rows are not read beside such a file, because it is a history of its own.

    rows = read_all(LEDGER, label="noise", arm="control")
"""

import math
import os
from pathlib import Path

from nanochat.common import REPO_ROOT
from nanochat.config import FIELDS
from nanochat.lab.csv_file import append_missing as append_missing_row
from nanochat.lab.csv_file import append_row, check_appendable, read_schema
from nanochat.lab.csv_search import read_typed
from nanochat.lab.metrics import METRICS
from nanochat.lab.runs import RunSummary
from nanochat.lab.trees.marks import versions_of_tree
from nanochat.lab.verdict.time_to_target import crossing, extrapolate

OWN = REPO_ROOT / "dev" / "ledger" / "experiments.csv"
LEDGER = Path(os.path.expanduser(os.environ.get("NANOCHAT_LEDGER") or OWN))
REFERENCE = OWN.with_name("reference.csv")  # the rows that come with the project
OF_REFERENCE = "r"  # its row 12 is r12, and 12 is the twelfth row of the user's own
NOISE = "noise"  # label of the banked runs: the control alone, on seeds that protocols do not use
BOOLS = ("dirty", "overloaded")
INTEGERS = ("seed", "depth", "max_seq_len", "device_batch_size", "total_batch_size", "threads", "num_iterations",
            "effective_total_batch_size", "trained_tokens")
FLOATS = ("target_param_data_ratio", "warmdown_ratio", "target_metric_threshold", "time_to_target_sec_measured",
          "time_to_target_sec_extrapolated", "tok_per_sec_median", "dt_median_ms", "wall_time_sec", "final_train_loss",
          "min_val_bpb", "peak_mem_mib", "load", "effective_ratio", "tau", "compile_sec", "eval_sec", "val_bpb",
          "training_sec")
# Columns that are fields of RunSummary by the same name.
OF_RUN = ("git_commit", "profile_hash", "dirty", "threads", "dataset_id", "tokenizer_id", "command",
          "tok_per_sec_median", "dt_median_ms", "final_train_loss", "min_val_bpb", "peak_mem_mib", "trained_tokens",
          "training_sec", "val_bpb", "load", "overloaded", "arm", "label", "declared_at")
CURVES = {"val_bpb": "val/bpb", "train_loss": "train/smooth_loss"}  # target metric -> key in metrics.jsonl


def schema() -> list[str]:
    return read_schema("experiment")


# -----------------------------------------------------------------------------
# Writing

def row_of_record(record: dict, metrics_rows, target=None, **told) -> dict:
    """row_of_run of a record alone. told: fields of RunSummary that a record does not have, such as arm and label."""
    return row_of_run(RunSummary.of_record(record, **told), record, metrics_rows, target)


def row_of_run(run: RunSummary, record: dict, metrics_rows, target=None) -> dict:
    """The row of a run, in schema order: the columns that `run` has, then the columns that only its record has.

    record: the run.json that `run` was made of, or {}; metrics_rows: its metrics.jsonl.
    target: {"metric", "threshold"}. Raises ValueError for a metric that has no curve, and for a record with a value of
    another type.
    """
    try:
        return _cells(_row(run, record, metrics_rows, target))
    except (TypeError, AttributeError) as e:
        raise ValueError(f"the record of {run.run_tag or record.get('run_id')} has a value of another type ({e}); move "
                         "its folder away and train it again") from e


def _row(run: RunSummary, record: dict, metrics_rows, target) -> dict:
    config, done, clocks = (record.get(key) or {} for key in ("config", "resolved", "clocks"))
    row = dict.fromkeys(schema())
    row |= {name: config.get(name) for name in row if name in FIELDS}  # resolved values replace some of them below
    row |= {name: getattr(run, name) for name in OF_RUN}
    row |= {name: record.get(name) for name in ("run_id", "config_hash", "tree_hash", "patch_hash")}
    row |= {name: clocks.get(name) for name in ("wall_time_sec", "compile_sec", "eval_sec")}
    row |= {name: done.get(name) for name in ("effective_ratio", "num_iterations", "total_batch_size", "tau")}
    row |= _target_cells(metrics_rows, target)
    row |= {
        "timestamp": record.get("started_at"), "experiment_name": run.label or record.get("run_id"),
        "profile": run.recipe, "status": run.run_status, "effective_total_batch_size": done.get("total_batch_size"),
        "target_param_data_ratio": config.get("target_param_data_ratio") if _by_ratio(done) else None,
        "device": _device(record.get("device") or {}),
        "versions": _versions({**(record.get("versions") or {}), **versions_of_tree(record)}),
        "bound": record.get("bound") or run.bound or (done.get("horizon") if run.run_status == "ok" else None),
    }
    # A value that is missing in the record is taken from the cell. Where both have it, the record is right: in an A/A
    # protocol a candidate trains with another seed than its pair has, and edited code gives another hash.
    of_cell = {"run_id": run.run_tag, "seed": run.seed, "config_hash": run.config_hash,
               "timestamp": run.started_at or run.timestamp}
    row |= {name: value for name, value in of_cell.items() if row[name] is None}
    if run.fault or run.evaluator == "own":  # only the tree itself has measured these: they rank nowhere
        row |= dict.fromkeys(("val_bpb", "time_to_target_sec_measured", "time_to_target_sec_extrapolated"))
    return row


def _by_ratio(resolved: dict) -> bool:
    return resolved.get("horizon") == "target_param_data_ratio"


def _device(device: dict) -> str | None:
    return ": ".join(filter(None, (device.get("kind"), device.get("name")))) or None


def _versions(versions: dict) -> str | None:
    return " ".join(f"{name}={version}" for name, version in versions.items()) or None


def _target_cells(metrics_rows, target) -> dict:
    if not target:
        return {}
    if target["metric"] not in CURVES:
        raise ValueError(f"target metric {target['metric']!r}: expected one of {', '.join(CURVES)}")
    curve = metric_curve(metrics_rows, target["metric"])
    measured = crossing(curve, target["threshold"])
    guessed, method, _ = (None, None, None) if measured is not None else extrapolate(curve, target["threshold"])
    return {"target_metric_name": target["metric"], "target_metric_threshold": target["threshold"],
            "time_to_target_sec_measured": measured, "time_to_target_sec_extrapolated": guessed,
            "extrapolation_method": None if guessed is None else method}


def metric_curve(metrics_rows, metric="val_bpb") -> list[tuple]:
    """(step, training seconds, value) of each line of metrics.jsonl that has the metric."""
    key = CURVES[metric]
    return [(row["step"], row.get("total_training_time"), row[key]) for row in metrics_rows if row.get(key) is not None]


def _cells(row: dict) -> dict:
    """The row with its values as cells hold them. Raises ValueError for one that could not be read again."""
    row = {name: _measured(value) for name, value in row.items()}
    for name, value in row.items():
        if isinstance(value, (dict, list)):
            raise ValueError(f"{name} of {row.get('run_id')} is {str(value)[:40]}, expected text or a number")
        parse_cell(name, "" if value is None else str(value))
    return row


def _measured(value):
    """The value as a cell holds it. A number that is not finite counts as not measured, so its cell is empty.

    Line breaks become spaces, because a line break would split the row into two.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return " ".join(value.splitlines()) if isinstance(value, str) else value


def check(path):
    """Raise ValueError or OSError, in one line, where no row could be appended: asked before the first run."""
    check_appendable(path, schema())


def append(path, row: dict):
    """Append one row; when this returns, the row is on disk."""
    append_row(path, schema(), _cells(row))


def append_missing(path, row: dict, key=None) -> bool:
    """Append the row unless the file has one with the same key(row) by then; key: identity, or start_of.

    True if it was appended. Two processes that offer the row of one run at once append one row.
    """
    row, key = _cells(row), key or identity
    return append_missing_row(path, schema(), row, lambda: key(row) in map(key, read_all(path, run_id=row["run_id"])))


def start_of(row: dict) -> tuple:
    """The key of a start of a run, however it ended: a run that is resumed has another one."""
    return row["run_id"], row["config_hash"], row["timestamp"]


def identity(row: dict) -> tuple:
    """The key of the run that made the row. The run id is not enough: it may be used again, and runs are resumed."""
    return *start_of(row), row["status"]


def is_of(record: dict | None, row: dict) -> bool:
    """True if a stored record still is the record of the run that made `row`."""
    key = row["config_hash"], row["timestamp"]
    return bool(record) and (record.get("config_hash"), record.get("started_at")) == key


# -----------------------------------------------------------------------------
# Reading

def parse_cell(name: str, text: str):
    """The value of a cell, or None for an empty cell. Raises ValueError for a text that is no value of that column."""
    if not text:
        return None
    if name in BOOLS:
        if text not in ("True", "False"):
            raise ValueError(f"{name}={text}: expected True or False")
        return text == "True"
    try:
        value = int(text) if name in INTEGERS else float(text) if name in FLOATS else text
    except ValueError:
        raise ValueError(f"{name}={text}: expected a {'whole ' * (name in INTEGERS)}number") from None
    if name in FLOATS and not math.isfinite(value):  # such a value is written as an empty cell
        raise ValueError(f"{name}={text}: expected a finite number, or an empty cell for what was not measured")
    return value


def read(path, where=(), last: int | None = None, **filters) -> list[dict]:
    """Rows with typed values and their number in the file ("row", from 1), oldest first; a torn last line is left out.

    filters: column=value, None for an empty cell; where: more conditions, (column, "=" | "<" | ">", value); last: only
    the newest of them. Raises ValueError for another header or a cell that is no value of its column.
    """
    conditions = [*((name, "=", value) for name, value in filters.items()), *where]
    return read_typed(path, schema(), parse_cell, conditions, last)


def reference_of(path) -> Path | None:
    """The file of the project's rows that are read with a ledger: REFERENCE with OWN, none with any other ledger."""
    return REFERENCE if os.path.realpath(path) == os.path.realpath(OWN) else None  # resolve() raises at a loop of links


def read_all(path, where=(), last: int | None = None, **filters) -> list[dict]:
    """read, with the rows that came with the project before those of the user's own ledger.

    The number of such a row ("row") is a text, "r12", so that each number names one row. A run that is in both files
    counts once, as the project's: an earlier version kept both histories in one file.
    """
    if not reference_of(path):
        return read(path, where, last, **filters)
    shipped = [row | {"row": f"{OF_REFERENCE}{row['row']}"} for row in read(reference_of(path), where, **filters)]
    known = {identity(row) for row in shipped}
    rows = shipped + [row for row in read(path, where, **filters) if identity(row) not in known]
    return rows[-last:] if last else rows


def row_of_number(path, number: str, asked: str) -> dict:
    """The row of a number as it is shown: "12", or "r12". asked: as the user typed it. ValueError: there is none."""
    rows = {str(row["row"]): row for row in read_all(path)}
    if number not in rows:
        own = [row for row in rows.values() if not from_reference(row)]
        shipped = len(rows) - len(own)
        also = f", or from r1 to r{shipped} of {REFERENCE}" if shipped else ""
        raise ValueError(f"{asked}: expected a row from 1 to {own[-1]['row'] if own else 0} of {path}{also}; "
                         "`make ledger` shows the newest")
    return rows[number]


def from_reference(row: dict) -> bool:
    """True for a row of read_all that came with the project."""
    return str(row.get("row", "")).startswith(OF_REFERENCE)


def value_of(row: dict, metric: str) -> float | None:
    """The metric as it is compared, or None where it was not measured."""
    value = row[METRICS[metric].column]
    if value is None or not math.isfinite(value) or (METRICS[metric].log and value <= 0):
        return None
    return math.log(value) if METRICS[metric].log else value
