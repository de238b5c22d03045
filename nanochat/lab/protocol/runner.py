"""
What is run for a cell, the public training command, and how its end is judged: by the record that it leaves.

Where it runs is the executor's part (lab/protocol/executor.py).
Idempotent: a cell whose record is complete under the same config hash is not run again, whoever ran it.
"Complete" is ok or diverged: a divergence is a result, and repeating it until it looks better would be
choosing. Anything else under the same hash is resumed; under another hash it starts anew, and the trainer
moves the old artifacts aside.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.lab.arms import Cell
from nanochat.record import EXIT_CODES, STATUSES, last_metrics_row, read_record, record_dir, record_stamp
from nanochat.stage import BASE

TRAINER = (sys.executable, "-m", BASE.command)
COMPLETE = ("ok", "diverged")
# What an exit code says where there is no record that does. Code 0 says nothing: a run that ended well has left one.
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

    def reusable(self, cell: Cell) -> Outcome | None:
        record = read_record(self.home, cell.tag) or {}
        if self.fresh or record.get("config_hash") != cell.config_hash or record.get("status") not in COMPLETE:
            return None
        return Outcome(record["status"], record, error=record.get("error"), reused=True)

    def command(self, cell: Cell) -> tuple[list[str], bool]:
        """(what to run, whether it goes on from the latest checkpoint of the same hash)."""
        before = read_record(self.home, cell.tag)
        resume = not self.fresh and before is not None and before.get("config_hash") == cell.config_hash
        return cell.arm.command(cell, self, resume), resume

    def attempt(self, cell: Cell) -> "Attempt":
        """To be made before the cell is started: its record from then on is told from an earlier one."""
        return Attempt(cell, record_stamp(self.home, cell.tag))

    def log_path(self, cell: Cell) -> Path:
        return Path(self.log_dir) / f"{cell.tag}.log"

    def open_log(self, cell, command, resume):
        self.log_path(cell).parent.mkdir(parents=True, exist_ok=True)
        log = open(self.log_path(cell), "ab" if resume else "wb")
        log.write(f"$ NANOCHAT_BASE_DIR={self.home} {' '.join(map(str, command))}\n".encode())
        log.flush()
        return log

    def environment(self) -> dict:
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return {**os.environ, **threads, "NANOCHAT_BASE_DIR": str(self.home), "PYTHONUNBUFFERED": "1"}

    def position(self, attempt: "Attempt") -> tuple[int | None, int | None]:
        """(optimizer steps done, of how many). None while the run has not written: the file may be an older run's."""
        cell = attempt.cell
        path = record_dir(self.home, cell.tag) / "metrics.jsonl"
        # Otherwise the trainer decides how many.
        given = cell.config.num_iterations > 0 and cell.config.batch_multiplier == 1
        total = cell.config.num_iterations if given else None
        try:
            if path.stat().st_mtime < attempt.wall_start - 1:  # file systems round
                return None, total
        except OSError:
            return None, total
        if total is None:
            total = ((read_record(self.home, cell.tag) or {}).get("resolved") or {}).get("num_iterations")
        row = last_metrics_row(path)
        return (row["step"] if row else None), total

    def judge(self, attempt: "Attempt", code: int, timed_out=False, stopped_by=None) -> Outcome:
        """Status from the record where this run has written one, from the exit code where it could not."""
        cell = attempt.cell
        record = read_record(self.home, cell.tag)
        own = record is not None and record_stamp(self.home, cell.tag) != attempt.stamp
        status = EXIT_STATUS.get(code, "crash")
        error = None if code == 0 else _describe(code)
        if own and record.get("status") in STATUSES and (code == 0 or record["status"] != "ok"):
            status, error = record["status"], record.get("error") or error
        elif code == 0:
            error = "exit code 0, and no record that says how it ended"
        if own and status in COMPLETE and record.get("config_hash") != cell.config_hash:
            status, error = "crash", "code, data or tokenizer changed while the protocol ran; run it again"
        if status != "ok" and timed_out:
            status, error = "timeout", f"stopped after {self.timeout_sec:.0f} s; run the same command again to go on"
        # What the child was sent by us, and its own flags to go on, are no news.
        if status == "interrupted" and stopped_by:
            step = (record.get("results") or {}).get("steps") if own else None
            error = f"stopped by {stopped_by}{'' if step is None else f' at step {step}'}; the same command goes on"
        return Outcome(status, record if own else {}, elapsed_sec=attempt.elapsed_sec(), error=error)


@dataclass
class Attempt:
    """A cell that is being trained."""
    cell: Cell
    stamp: tuple | None  # of the run.json that was there before
    job: object = None  # what its executor knows it by: a process here, the id of a job elsewhere
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


def _describe(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {code}"
