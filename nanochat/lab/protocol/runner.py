"""
The command of a cell, and the judgement of its end.

Example: the cell nc_mix005_d4_gate_s1337 is the public command, python -m scripts.base_train with the arm's flags. The
record that the run leaves says how the run ended. The executor (lab/protocol/executor.py) decides where it runs.

A cell may be asked for again:
- Its record is complete under the same config hash: the cell is not run again, even if another protocol ran it.
- Its record is not complete, under the same hash: the run is resumed.
- Its record has another hash: the run starts anew, and the trainer moves the old artifacts aside.
- A process still trains it, for example because the protocol that started it was killed: its end is waited for, and
  its record is read then.
- Its record is damaged: it is moved aside, and the run starts anew.

"Complete" means ok or diverged. A divergence is a result. To repeat it until it looks better would be to choose
among results.
"""

import contextlib
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from nanochat.common import child_environment, paste_command
from nanochat.lab.arms import Cell
from nanochat.lab.commands import EXIT_BAD_INPUT
from nanochat.lab.runs import RunSummary
from nanochat.lab.trees.orders import order_lock
from nanochat.record import EXIT_CODES, STATUSES, last_metrics_row, read_record, record_dir, record_stamp
from nanochat.stage import BASE

TRAINER = (sys.executable, "-m", BASE.command)
COMPLETE = ("ok", "diverged")
# Status by exit code, for a run that left no record. Code 0 has no entry, because a run that ended well left a record.
EXIT_STATUS = {code: status for status, code in EXIT_CODES.items() if status != "ok"} \
    | {-signal.SIGINT: "interrupted", -signal.SIGTERM: "interrupted"}


@dataclass
class Outcome:
    status: str  # one of record.STATUSES
    record: dict  # run.json; {} where the run left none
    elapsed_sec: float | None = None  # of the subprocess; None for a reused cell
    error: str | None = None
    reused: bool = False


@dataclass
class Runner:
    home: Path
    log_dir: Path
    trainer: tuple = TRAINER
    timeout_sec: float | None = None
    fresh: bool = False
    threads: int | None = None  # of each cell; None = as many as torch takes

    def record(self, cell: Cell) -> dict | None:
        """The record under the cell's tag, None where there is none. A damaged one is set_damaged_aside before."""
        try:
            return read_record(self.home, cell.tag)
        except ValueError:
            return None

    def ended(self, cell: Cell) -> Outcome | None:
        """How the last run of the cell ended, as its record says; None where no run has ended under its hash."""
        record = self.record(cell) or {}
        if record.get("config_hash") != cell.config_hash or record.get("status") not in STATUSES:
            return None
        if record["status"] in COMPLETE and not cell.arm.is_complete(record, cell):
            return None
        return Outcome(record["status"], record, error=record.get("error"), reused=True)

    def reusable(self, cell: Cell) -> Outcome | None:
        found = None if self.fresh else self.ended(cell)
        return found if found and found.status in COMPLETE else None

    def set_damaged_aside(self, cell: Cell) -> str | None:
        """Rename a run.json that cannot be read. Returns the sentence that says so, or None where all is well."""
        path = record_dir(self.home, cell.tag) / "run.json"
        try:
            RunSummary.of_record(read_record(self.home, cell.tag) or {})
            return None
        except ValueError as e:
            aside = next(p for i in range(1, 10 ** 6) if not (p := path.with_name(f"run.json.damaged.{i}")).exists())
            path.rename(aside)
            why = str(e) if str(path) in str(e) else f"{path} is damaged: {e}"
            return f"{cell.title}: {why}; it is kept as {aside.name}, and the cell is trained anew"

    def is_running(self, cell: Cell) -> bool:
        """Whether a process trains the cell now: it holds the lock of the tag for as long as it lives."""
        return any(_is_locked(path) for path in (BASE.lock(self.home, cell.tag), order_lock(self.home, cell.tag)))

    def waiting(self, cell: Cell) -> "Attempt":
        """The attempt of another process, which is waited for."""
        return Attempt(cell, None, foreign=True, wall_start=0.0)

    def pid(self, attempt: "Attempt") -> int | None:
        """Of the process that trains; None where nobody knows it."""
        return (self.record(attempt.cell) or {}).get("pid") if attempt.foreign else getattr(attempt.job, "pid", None)

    def was_forestalled(self, attempt: "Attempt") -> bool:
        """Whether an attempt that has ended was turned away, because another process had begun to train the cell."""
        if getattr(attempt.job, "returncode", None) != EXIT_BAD_INPUT:
            return False
        other = (self.record(attempt.cell) or {}).get("pid") not in (None, attempt.job.pid)
        return self.is_running(attempt.cell) or (
            other and record_stamp(self.home, attempt.cell.tag) != attempt.stamp)

    def command(self, cell: Cell) -> tuple[list[str], bool]:
        """(command line, True if the run goes on from the latest checkpoint of the same hash)."""
        before = self.record(cell)
        resume = not self.fresh and before is not None and before.get("config_hash") == cell.config_hash
        return cell.arm.command(cell, self, resume), resume

    def attempt(self, cell: Cell) -> "Attempt":
        """The attempt, made before the cell is started: it notes an earlier record, to tell the new record from it."""
        return Attempt(cell, record_stamp(self.home, cell.tag))

    def log_path(self, cell: Cell) -> Path:
        return Path(self.log_dir) / f"{cell.tag}.log"

    def open_log(self, cell, command, resume):
        self.log_path(cell).parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            with contextlib.suppress(OSError):  # a process that still writes into it keeps the old file
                self.log_path(cell).unlink()
        log = open(self.log_path(cell), "ab" if resume else "wb")
        log.write(f"$ {paste_command(command, {'NANOCHAT_BASE_DIR': self.home})}\n".encode())
        log.flush()
        return log

    def environment(self) -> dict:
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": self.threads}
        return child_environment(**threads, NANOCHAT_BASE_DIR=self.home, PYTHONUNBUFFERED="1")

    def position(self, attempt: "Attempt") -> tuple[int | None, int | None]:
        """(optimizer steps done, steps in all).

        Steps done are None until this run has written its metrics: a file from before may be an older run's.
        """
        cell = attempt.cell
        path = record_dir(self.home, cell.tag) / "metrics.jsonl"
        # Without a given number of steps the trainer decides the number.
        given = cell.config.num_iterations > 0 and cell.config.batch_multiplier == 1
        total = cell.config.num_iterations if given else None
        try:
            if path.stat().st_mtime < attempt.wall_start - 1:  # file systems round
                return None, total
        except OSError:
            return None, total
        if total is None:
            total = ((self.record(cell) or {}).get("resolved") or {}).get("num_iterations")
        row = last_metrics_row(path)
        return (row["step"] if row else None), total

    def judge(self, attempt: "Attempt", code: int, timed_out=False, stopped_by=None) -> Outcome:
        """The status is the record's if this run wrote one. Otherwise it follows from the exit code.

        The record is written last, after weights and validation. A process that is killed after that, or whose driver
        of the card fails at exit, ends a run that is complete: the next protocol would reuse it.
        """
        cell = attempt.cell
        record = self.record(cell)
        own = record is not None and record_stamp(self.home, cell.tag) != attempt.stamp
        status = EXIT_STATUS.get(code, "crash")
        error = None if code == 0 else _describe(code)
        if own and record.get("status") in STATUSES:
            status = record["status"]
            error = record.get("error") or (None if status == "ok" else error)
        elif code == 0:
            error = "exit code 0, and no record that says how it ended"
        if own and status in COMPLETE and record.get("config_hash") != cell.config_hash:
            status, error = "crash", "code, data or tokenizer changed while the protocol ran; run it again"
        if status != "ok" and timed_out:
            status, error = "timeout", f"stopped after {self.timeout_sec:.0f} s; run the same command again to go on"
        # The record speaks of the signal that we sent, and of the trainer's flags to go on. The user needs neither.
        if status == "interrupted" and stopped_by:
            step = (record.get("results") or {}).get("steps") if own else None
            error = f"stopped by {stopped_by}{'' if step is None else f' at step {step}'}; the same command goes on"
        return Outcome(status, record if own else {}, elapsed_sec=attempt.elapsed_sec(), error=error)


@dataclass
class Attempt:
    """A cell that is being trained."""
    cell: Cell
    stamp: tuple | None  # of the run.json that was there before
    job: object = None  # the executor's handle: a process on this machine, the id of a job on a cluster
    foreign: bool = False  # another process started it: it is waited for, and never stopped
    start: float = field(default_factory=time.monotonic)
    wall_start: float = field(default_factory=time.time)

    def elapsed_sec(self) -> float:
        return time.monotonic() - self.start


def stop_on_signals():
    """SIGTERM (a job scheduler) and SIGHUP (a closed terminal) stop a protocol as Ctrl-C does: the cell saves first.

    The KeyboardInterrupt has the name of the signal."""
    def stop(signum, frame):
        raise KeyboardInterrupt(signal.Signals(signum).name)

    for name in ("SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) == signal.SIG_DFL:  # nohup ignores SIGHUP: leave it so
            signal.signal(signum, stop)


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _describe(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {code}"
