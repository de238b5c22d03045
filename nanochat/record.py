"""
The record of a run: records/<run_id>/run.json and metrics.jsonl. Programs read these two files, never log text.

run.json is replaced whole at start, at each checkpoint and at the end. Its `status` is "running" until the end of the
run sets it to a word of STATUSES. metrics.jsonl gets a line for each training step and a line for each validation:

    {"step": 7, "train/loss": 6.1, "train/lrm": 1.0, "train/dt": 0.31, "train/tok_per_sec": 6600, ...}
    {"step": 10, "val/bpb": 2.91, "total_training_time": 0.0, "total_training_flops": 2.9e11}

Keys are upstream's wandb keys. The validation line of step s measures the weights before step s is taken.
"""

import contextlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType

from nanochat.common import atomic_write, open_regular, paste_command, read_json, read_regular, write_json

SCHEMA_VERSION = 1
STATUSES = ("ok", "diverged", "oom", "crash", "timeout", "interrupted")
EXIT_CODES = {"ok": 0, "crash": 1, "diverged": 3, "oom": 4, "interrupted": 130}  # of the trainer; 2 is bad input
# Smoothing of the loss that is shown and recorded as final_train_loss; the factor is upstream's. The average starts at
# 0, and that weight is divided out before the loss is shown. Upstream's meta files hold it undivided.
EMA_BETA = 0.9
PARTS = ("config", "resolved", "clocks", "results", "device", "versions")  # objects in a record
WORDS = ("run_id", "status", "config_hash", "profile_hash", "dataset_id", "tokenizer_id", "tree_hash", "command",
         "started_at", "error")
LARGEST = 1e300  # no measured value comes near; nan and infinity compare as false
MOST_METRICS = 2 ** 29  # bytes of a metrics.jsonl: more than a million steps
CLOCKS = ("total_training_time", "total_training_flops")  # measured values of a metrics line whose key has no "/"
PACKAGES = ("torch", "numpy", "tiktoken", "pyarrow")  # a record states their versions


def record_dir(base_dir, run_id) -> Path:
    return Path(base_dir) / "records" / run_id


def read_record(base_dir, run_id) -> dict | None:
    """run.json as a dict; None where there is none. Raises ValueError, which names the file, where it is damaged."""
    try:
        return read_record_file(record_dir(base_dir, run_id) / "run.json")
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_record_file(path) -> dict:
    """The record in a run.json. Raises FileNotFoundError, and ValueError for a file that is no record."""
    record = read_json(path)
    for kind, names, expected in ((dict, PARTS, "an object"), (str, WORDS, "text")):
        for name in names:
            if not isinstance(record.get(name), (kind, NoneType)):
                raise ValueError(f"{path} is damaged: {name} is {str(record[name])[:40]!r}, expected {expected} or "
                                 "null")
    return record


def record_stamp(base_dir, run_id) -> tuple[int, int] | None:
    """(inode, mtime in ns) of run.json, or None. Every write replaces the file, so two writes have two stamps."""
    try:
        stat = (record_dir(base_dir, run_id) / "run.json").stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def versions() -> dict:
    """{"python": "3.12.1", "torch": "2.13.0", ...}; None for a package that is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def read_metrics(path) -> list[dict]:
    """Lines of a metrics.jsonl.

    What a kill or a power failure leaves at the end of the file is left out: a torn line, NUL bytes. Raises ValueError,
    which names the file and the line, for any other line that no run writes.
    """
    try:
        lines = read_regular(path, MOST_METRICS).split(b"\n")
    except FileNotFoundError:
        return []
    rows = [_metrics_row(line) for line in lines[:-1]]  # after the last newline there is nothing, or a torn line
    while rows and rows[-1] is None and not lines[len(rows) - 1].strip(b"\0 \r"):
        rows.pop()
    if None in rows:
        number = rows.index(None) + 1
        raise ValueError(f"{path}, line {number} is damaged: {lines[number - 1][:40]!r}, expected a JSON object with a "
                         "step; take that line out, or move the run's folder away and train it again")
    return rows


def last_metrics_row(path, window=4096) -> dict | None:
    """The last line that is whole, read from the end: cheap however long the run is."""
    try:
        with open_regular(path) as f:
            size = f.seek(0, os.SEEK_END)
            while True:
                f.seek(max(0, size - window))
                lines = f.read().split(b"\n")
                lines = lines[:-1] if window >= size else lines[1:-1]  # the first one may have begun before the window
                if found := next(filter(None, map(_metrics_row, reversed(lines))), None):
                    return found
                if window >= size:
                    return None
                window *= 2
    except FileNotFoundError:
        return None


def _metrics_row(line: bytes) -> dict | None:
    """The row of a line; None for a line that no run writes."""
    try:
        row = json.loads(line)  # a number of thousands of digits raises here
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    measured = [value for name, value in row.items() if "/" in name or name in CLOCKS]
    good = all(value is None or type(value) in (int, float) and -LARGEST < value < LARGEST for value in measured)
    return row if good else None


class RunRecord:
    """Writer of one run's record; also feeds the sinks (wandb, TensorBoard), which are off unless asked for.

    held: nothing is written, and lines of metrics wait, until release() is called.
    """

    def __init__(self, base_dir, run_id: str, facts: dict, sinks=(), held=False):
        self.dir = record_dir(base_dir, run_id)
        self.metrics_path = self.dir / "metrics.jsonl"
        self.sinks = list(sinks)
        self.facts = {"schema_version": SCHEMA_VERSION, "run_id": run_id, "status": "running", **facts}
        self.held, self.waiting = held, b""  # lines of metrics that are not written yet
        if not held:
            self._make_folder()

    def release(self, step: int):
        """Begin to write. The lines from `step` on are dropped, because a run resumed there writes them again."""
        self.held = False
        self._make_folder()
        self.cut_back(step)
        self.update()

    def _make_folder(self):
        """The folder of the record, without what a killed write left. The caller holds the lock of the tag."""
        self.dir.mkdir(parents=True, exist_ok=True)
        for left in self.dir.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def cut_back(self, step: int):
        """Drop metrics from `step` on: a run resumed there writes them again."""
        kept = [row for row in read_metrics(self.metrics_path) if row["step"] < step]
        atomic_write(self.metrics_path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept))

    def log(self, row: dict):
        """Append a line of metrics. Where the disk is full it waits for a later call, and for update(), which raises
        the OSError. A sink that fails is told once and left out from then on."""
        self.waiting += (json.dumps(row, allow_nan=False) + "\n").encode("utf-8")
        with contextlib.suppress(OSError):
            self._write_waiting()
        for sink in list(self.sinks):
            try:
                sink.log(row)
            except Exception as e:
                self.sinks.remove(sink)
                print(f"Warning: {type(sink).__name__} failed and is left out from here on: {type(e).__name__}: {e}")

    def _write_waiting(self):
        if self.held or not self.waiting:
            return
        with open(self.metrics_path, "ab", buffering=0) as f:
            end, left = f.tell(), self.waiting
            try:
                while left:
                    left = left[f.write(left):]
                self.waiting = b""
            finally:
                if left:  # never half a line in the middle of the file
                    f.truncate(end)

    def update(self, **facts):
        """Write run.json anew. Raises OSError where it, or a line of metrics, cannot be written."""
        self.facts.update(facts)
        if self.held:
            return
        self._write_waiting()
        if self.metrics_path.exists():  # a resumed run needs these lines: they are on disk before a checkpoint is
            with open(self.metrics_path, "ab") as f:
                os.fsync(f.fileno())
        write_json(self.dir / "run.json", self.facts)

    def finish(self, status: str, **facts):
        """The last update. On a full disk run.json is overwritten in its place, so that it never says "running" for
        ever; then OSError is raised."""
        assert status in STATUSES, status
        try:
            self.update(status=status, **facts)
        except OSError:
            with contextlib.suppress(OSError):
                self._overwrite(status, facts.get("error"))
            raise
        finally:
            self._finish_sinks()

    def _overwrite(self, status: str, error: str | None):
        """Put the status into the run.json that is there. The file keeps its blocks: a full disk has no new ones."""
        with open(self.dir / "run.json", "r+b", buffering=0) as f:
            old = f.read()
            told = json.loads(old) | {"status": "crash" if status == "ok" else status, "error": (error or "")[:200]}
            new = json.dumps(told, allow_nan=False).encode("utf-8")  # shorter than the old text, which is indented
            f.seek(0)
            f.write(new.ljust(len(old)))

    def _finish_sinks(self):
        for sink in self.sinks:
            try:
                sink.finish()
            except (Exception, KeyboardInterrupt) as e:  # an upload that hangs is stopped by Ctrl-C
                print(f"Warning: {type(sink).__name__} did not finish: {type(e).__name__}: {e}")


class WandbSink:
    def __init__(self, name: str, config: dict):
        """Raises ValueError where wandb is missing, nobody is logged in, or the run cannot be made."""
        try:
            import wandb  # costs a second and writes to disk: only when a run name asks for it
        except ImportError:
            raise _missing("wandb", "--run") from None
        local = os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun")
        try:
            if known := local or wandb.login(prompt=False):
                self.run = wandb.init(project="nanochat", name=name, config=config)
        except Exception as e:  # wandb's own kinds: a wrong key, no network
            reason = (str(e) or repr(e)).splitlines()[0]
            raise ValueError(f"--run={name}: wandb cannot begin a run ({reason}); set WANDB_MODE=offline, or leave the "
                             "option out") from None
        if not known:
            raise ValueError(f"--run={name}: nobody is logged in to wandb; run `wandb login`, set WANDB_MODE=offline, "
                             "or leave the option out")

    def log(self, row):
        self.run.log(row)

    def finish(self):
        self.run.finish()


class TensorBoardSink:
    def __init__(self, folder):
        """Raises ValueError where tensorboard is missing. The folder is made with the first line."""
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise _missing("tensorboard", "--tensorboard") from None
        self.folder, self.writer = folder, None

    def log(self, row):
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter
            self.writer = SummaryWriter(str(self.folder))
        for key, value in row.items():
            if key != "step" and isinstance(value, (int, float)):
                self.writer.add_scalar(key, value, row["step"])

    def finish(self):
        if self.writer is not None:
            self.writer.close()


def _missing(package: str, flag: str) -> ValueError:
    return ValueError(f"{flag} needs the package {package}: install it with "
                      + paste_command(["python", "-m", "pip", "install", package]) + ", or leave the option out")
