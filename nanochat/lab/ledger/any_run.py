"""
Any run that exists, as far as it is known: from its record, from a row of the ledger, or from an upstream checkpoint.

    a = find("nc_mix005_d4_gate_s1337", base_dir)    # a tag, or the path of its record or checkpoint
    b = find("row 12", base_dir)    # a row of the ledger, which has no curve where its record is gone

Nothing is trained or loaded. What the files do not say is None, and what is made of it says so.
"""

import math
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nanochat.config import FIELDS, TrainConfig, config_of_record
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.imports import folder_of, read_run
from nanochat.lab.ledger.workload import options_of
from nanochat.options import said_once, tagged, with_role
from nanochat.record import record_dir
from nanochat.stage import BASE

ROW = re.compile(r"row\s*(r?\d{1,9})")
# What the options of a model's size, and those of rate and decay with the laws of scaling, come to
SHAPE = ("n_embd", "n_head", "n_kv_head", "vocab_size")
SCALED = ("matrix_lr", "weight_decay")
CHOSEN_BY_THE_RUN = (-1, "auto")  # values that stand for another one, which the record says
NAMED = tagged(FIELDS, "name", "cell")


@dataclass(frozen=True)
class AnyRun:
    name: str
    source: str  # where its facts are from, for a reader
    row: dict  # as the ledger has it, or would have it; "row" is its number there, or None
    options: dict  # {name: value} as it was run, `matrix_lr_scaled` too; a name that is missing is not known
    asked: dict  # {name: value} as its command or checkpoint has it: -1 stays -1
    curve: list[tuple] = field(default_factory=list)  # (step, tokens or None, training seconds or None, val_bpb)
    version: str | None = None  # hash of its code, or None
    steps: int | None = None  # optimizer steps done

    @property
    def has_record(self) -> bool:
        """Whether its trainer left a record of ours. A checkpoint alone does not say its device, data or code."""
        return self.source != "checkpoint"


def find(what: str, base_dir, ledger=experiments.LEDGER) -> AnyRun:
    """The run of a tag, a path, or "row N" of the ledger. Raises ValueError where there is none, or more than one."""
    if match := ROW.fullmatch(what.strip()):
        return _of_row(match[1], base_dir, ledger)
    folder = folder_of(what, base_dir)
    recorded = record_dir(folder.parent.parent, folder.name)
    if folder.parent.name == BASE.checkpoint_root and (recorded / "run.json").exists():
        folder = recorded  # it says more than the checkpoint beside it
    record, metrics, profile = read_run(folder)
    rows = experiments.read_all(ledger)
    known = next((row for row in reversed(rows) if experiments.is_of(record, row)), None)
    row = known or {**experiments.row_of_record(record, metrics, recipe=profile), "row": None}
    if record.get("status") == "running":
        row["status"] = "running"
    if not (folder / "run.json").exists():
        row["timestamp"] = _written(folder)
    return _make(folder.name, "record" if (folder / "run.json").exists() else "checkpoint", row, record, metrics)


def _of_row(number: str, base_dir, ledger) -> AnyRun:
    """number: "12", or "r12" for a row that came with the project."""
    row = experiments.row_of_number(ledger, number, f"row {number}")
    try:
        record, metrics, _ = read_run(folder_of(row["run_id"] or "", base_dir))
    except ValueError:
        record, metrics = {}, []
    if experiments.is_of(record, row):
        return _make(row["run_id"], "record", row, record, metrics)
    asked = _settled(said_once(TrainConfig, options_of(row)))
    return AnyRun(f"row {number}", "row", row, asked | _resolved_of_row(row), asked, version=row["tree_hash"])


def _make(name: str, source: str, row: dict, record: dict, metrics: list[dict]) -> AnyRun:
    resolved, results = record.get("resolved") or {}, record.get("results") or {}
    batch = row["effective_total_batch_size"]
    curve = [(step, step * batch if batch else None, sec, bpb)
             for step, sec, bpb in experiments.metric_curve(metrics) if math.isfinite(bpb)]
    steps = results.get("steps") or (max((point[0] for point in curve), default=None) if source != "row" else None)
    asked = _asked(record)
    return AnyRun(name, source, row, _as_run(asked, resolved), asked, curve, row["tree_hash"], steps)


def _asked(record: dict) -> dict:
    stored = record.get("config") or {}
    later = {name for name, o in FIELDS.items() if o.before is not None}  # a run from before has the value `before`
    ours = said_once(TrainConfig, asdict(config_of_record(stored)))
    asked = {name: ours[name] for name in FIELDS if name in stored or name in later}
    return _settled(asked | {name: value for name, value in stored.items() if name not in FIELDS})


def _as_run(asked: dict, resolved: dict) -> dict:
    """-1 is replaced by what it resolved to, where the record says that."""
    done = {name: value for name, value in ((resolved.get("model_config") or {}) | resolved).items()
            if value is not None}
    chosen = {name: done[name] for name, value in asked.items()
              if name in done and (value in CHOSEN_BY_THE_RUN or name == "compile")}
    scaled = {f"{name}_scaled": done[name] for name in SCALED if name in done}
    return asked | chosen | {name: done[name] for name in SHAPE if name in done} | scaled


def _resolved_of_row(row: dict) -> dict:
    found = {"num_iterations": row["num_iterations"], "total_batch_size": row["effective_total_batch_size"]}
    return {name: value for name, value in found.items() if value is not None}


def _settled(options: dict) -> dict:
    """Without names and what only watches a run. An option that does nothing without another one is None there."""
    left_out = {*with_role(FIELDS, "run"), *NAMED, "device_type"} - {"seed"}
    idle = {name for name, o in FIELDS.items()
            if any(options.get(other) == FIELDS[other].default for other in o.needs)}
    return {name: None if name in idle else value for name, value in options.items() if name not in left_out}


def _written(folder: Path) -> str:
    newest = max(path.stat().st_mtime for path in folder.glob("meta_*.json"))
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(newest))


def differences(a: AnyRun, b: AnyRun) -> tuple[list[tuple], list[str]]:
    """([(option, value of a, value of b)] that are known of both and differ, [options known of one alone])."""
    names = dict.fromkeys([*FIELDS, *SHAPE, *a.options, *b.options])
    shared = [name for name in names if name in a.options and name in b.options]
    alone = [name for name in names if (name in a.options) != (name in b.options)]
    pairs = [(name, a.options[name], b.options[name]) for name in shared if a.options[name] != b.options[name]]
    return [pair for pair in pairs if not _is_default_of_what_is_off(*pair)], alone


def _is_default_of_what_is_off(name: str, x, y) -> bool:
    return None in (x, y) and name in FIELDS and FIELDS[name].default in (x, y)
