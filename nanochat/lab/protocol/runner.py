"""
Run one cell: a subprocess of the public training command, judged by the record it leaves.

Idempotent: a cell whose record is complete under the same config hash is not run again, whoever ran it.
"Complete" is ok or diverged: a divergence is a result, and repeating it until it looks better would be
choosing. Anything else under the same hash is resumed; under another hash it starts anew, and the trainer
moves the old artifacts aside.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.common import REPO_ROOT
from nanochat.lab.arms import Cell
from nanochat.record import STATUSES, last_metrics_row, read_record, record_dir
from nanochat.stage import BASE

TRAINER = (sys.executable, "-m", BASE.command)
COMPLETE = ("ok", "diverged")
EXIT_STATUS = {3: "diverged", 4: "oom", 130: "interrupted", -signal.SIGINT: "interrupted", -signal.SIGTERM: "interrupted"}
SAVE_GRACE_SEC = 180  # a run asked to stop saves first; a slow disk and a large optimizer take a while


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

    def start(self, cell: Cell) -> "Attempt":
        """Begin to train `cell`, from its latest checkpoint where it has one under the same hash."""
        before = read_record(self.home, cell.tag)
        resume = not self.fresh and before is not None and before.get("config_hash") == cell.config_hash
        command = cell.arm.command(cell, self, resume)
        stamp = self._stamp(cell)
        with self._open_log(cell, command, resume) as log:
            child = subprocess.Popen(command, cwd=REPO_ROOT, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=subprocess.STDOUT, start_new_session=os.name != "nt")
        return Attempt(cell, child, stamp)

    def wait(self, attempt: "Attempt", sec: float) -> Outcome | None:
        """What became of `attempt` when it has ended, or its time is up; None when it still runs after `sec`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            attempt.child.wait(sec)
            return self._judge(attempt)
        if self.timeout_sec and attempt.elapsed_sec() > self.timeout_sec:
            ask_to_stop([attempt.child])
            return self._judge(attempt, timed_out=True)
        return None

    def stop(self, attempts: list["Attempt"], by: str = "SIGINT") -> list[Outcome]:
        """All of them save and end, at the user's wish, which came as the signal `by`."""
        ask_to_stop([attempt.child for attempt in attempts])
        return [self._judge(attempt, stopped_by=by) for attempt in attempts]

    def log_path(self, cell: Cell) -> Path:
        return Path(self.log_dir) / f"{cell.tag}.log"

    def _open_log(self, cell, command, resume):
        self.log_path(cell).parent.mkdir(parents=True, exist_ok=True)
        log = open(self.log_path(cell), "ab" if resume else "wb")
        log.write(f"$ NANOCHAT_BASE_DIR={self.home} {' '.join(map(str, command))}\n".encode())
        log.flush()
        return log

    def _environment(self):
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return {**os.environ, **threads, "NANOCHAT_BASE_DIR": str(self.home), "PYTHONUNBUFFERED": "1"}

    def position(self, attempt: "Attempt") -> tuple[int | None, int | None]:
        """(optimizer steps done, of how many). None while the child has not written: the file may be an older run's."""
        cell = attempt.cell
        path = record_dir(self.home, cell.tag) / "metrics.jsonl"
        given = cell.config.num_iterations > 0 and cell.config.batch_multiplier == 1  # else the trainer decides how many
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

    def _stamp(self, cell):
        """Which run.json this is: every write replaces the file, so an earlier attempt's is told from a new one."""
        try:
            stat = (record_dir(self.home, cell.tag) / "run.json").stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def _judge(self, attempt: "Attempt", timed_out=False, stopped_by=None) -> Outcome:
        """Status from the record where this run has written one, from the exit code where it could not."""
        cell, code = attempt.cell, attempt.child.returncode
        record = read_record(self.home, cell.tag)
        own = record is not None and self._stamp(cell) != attempt.stamp
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
        if status == "interrupted" and stopped_by:  # what the child was sent by us, and its own flags to go on, are no news
            step = (record.get("results") or {}).get("steps") if own else None
            error = f"stopped by {stopped_by}{'' if step is None else f' at step {step}'}; the same command goes on"
        return Outcome(status, record if own else {}, elapsed_sec=attempt.elapsed_sec(), error=error)


@dataclass
class Attempt:
    """A cell that is being trained."""
    cell: Cell
    child: subprocess.Popen
    stamp: tuple | None  # of the run.json that was there before
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
        return f"killed by {name}" + ("; the system may have run out of memory" if name == "SIGKILL" else "")
    return f"exit code {code}"


def ask_to_stop(children, grace_sec: float = SAVE_GRACE_SEC):
    """Ctrl-C for the children, which save and leave; a second Ctrl-C of ours, or too long a wait, kills them.

    A child has a session of its own, so that a terminal's Ctrl-C reaches it once, from here. Windows has
    no such thing: there the console has told the child already.
    """
    deadline = time.monotonic() + grace_sec
    if os.name != "nt":
        for child in children:
            child.send_signal(signal.SIGINT)
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            deadline = 0.0
            _kill(child)
            child.wait()


def _kill(child):
    """With the processes that it started: a trainer of another tree is a child of its child."""
    if os.name == "nt":
        child.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
