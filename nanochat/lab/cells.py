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
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.common import REPO_ROOT
from nanochat.config import to_argv
from nanochat.lab.arms import Cell
from nanochat.record import STATUSES, last_metrics_row, read_record, record_dir

TRAINER = (sys.executable, "-m", "scripts.base_train")
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
    stop: bool = False  # the user asked to stop: no further cell may start


@dataclass
class Runner:
    home: Path
    log_dir: Path
    trainer: tuple = TRAINER
    timeout_sec: float | None = None
    fresh: bool = False
    poll_sec: float = 0.5

    def reusable(self, cell: Cell) -> Outcome | None:
        record = read_record(self.home, cell.tag) or {}
        if self.fresh or record.get("config_hash") != cell.config_hash or record.get("status") not in COMPLETE:
            return None
        return Outcome(record["status"], record, error=record.get("error"), reused=True)

    def run(self, cell: Cell, progress) -> Outcome:
        """Train `cell` to its end, timeout or Ctrl-C. progress(step, total) is called every poll_sec."""
        before = read_record(self.home, cell.tag)
        resume = not self.fresh and before is not None and before.get("config_hash") == cell.config_hash
        command = [*self.trainer, *to_argv(replace(cell.config, resume=resume))]
        stamp, start, wall_start = self._stamp(cell), time.monotonic(), time.time()
        with self._open_log(cell, command, resume) as log:
            child = subprocess.Popen(command, cwd=REPO_ROOT, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=subprocess.STDOUT, start_new_session=os.name != "nt")
            ended = self._wait(child, start, lambda: progress(*self._position(cell, wall_start)))
        outcome = self._judge(cell, self._stamp(cell) != stamp, child.returncode, ended)
        outcome.elapsed_sec, outcome.stop = time.monotonic() - start, ended == "stop"
        return outcome

    def log_path(self, cell: Cell) -> Path:
        return Path(self.log_dir) / f"{cell.tag}.log"

    def _open_log(self, cell, command, resume):
        self.log_path(cell).parent.mkdir(parents=True, exist_ok=True)
        log = open(self.log_path(cell), "ab" if resume else "wb")
        log.write(f"$ NANOCHAT_BASE_DIR={self.home} {' '.join(map(str, command))}\n".encode())
        log.flush()
        return log

    def _environment(self):
        return {**os.environ, "NANOCHAT_BASE_DIR": str(self.home), "PYTHONUNBUFFERED": "1"}

    def _position(self, cell, wall_start) -> tuple[int | None, int | None]:
        """(optimizer steps done, of how many). None while the child has not written: the file may be an older run's."""
        path = record_dir(self.home, cell.tag) / "metrics.jsonl"
        total = cell.config.num_iterations if cell.config.num_iterations > 0 else None
        try:
            if path.stat().st_mtime < wall_start - 1:  # file systems round
                return None, total
        except OSError:
            return None, total
        if total is None:
            total = ((read_record(self.home, cell.tag) or {}).get("resolved") or {}).get("num_iterations")
        row = last_metrics_row(path)
        return (row["step"] if row else None), total

    def _wait(self, child, start, tick) -> str:
        """exit | timeout | stop: why the child is gone when this returns."""
        ended = "exit"
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(self.poll_sec)
                    return ended
                tick()
                if self.timeout_sec and time.monotonic() - start > self.timeout_sec:
                    ended = "timeout"
                    return ended
        except KeyboardInterrupt:
            ended = "stop"
            return ended
        finally:
            if child.poll() is None:
                ask_to_stop(child)

    def _stamp(self, cell):
        """Which run.json this is: every write replaces the file, so an earlier attempt's is told from a new one."""
        try:
            stat = (record_dir(self.home, cell.tag) / "run.json").stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def _judge(self, cell, written: bool, code, ended) -> Outcome:
        """Status from the record where this run has written one, from the exit code where it could not."""
        record = read_record(self.home, cell.tag)
        own = written and record is not None
        status = EXIT_STATUS.get(code, "crash")
        error = None if code == 0 else _describe(code)
        if own and record.get("status") in STATUSES and (code == 0 or record["status"] != "ok"):
            status, error = record["status"], record.get("error") or error
        elif code == 0:
            error = "exit code 0, and no record that says how it ended"
        if own and status in COMPLETE and record.get("config_hash") != cell.config_hash:
            status, error = "crash", "code, data or tokenizer changed while the protocol ran; run it again"
        if status != "ok" and ended == "timeout":
            status, error = "timeout", f"stopped after {self.timeout_sec:.0f} s; run the same command again to go on"
        return Outcome(status, record if own else {}, error=error)


def stop_on_signals():
    """SIGTERM (a job scheduler) and SIGHUP (a closed terminal) stop a protocol as Ctrl-C does: the cell saves first."""
    for name in ("SIGTERM", "SIGHUP"):
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) == signal.SIG_DFL:  # nohup ignores SIGHUP: leave it so
            signal.signal(signum, signal.default_int_handler)


def _describe(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"killed by {name}" + ("; the system may have run out of memory" if name == "SIGKILL" else "")
    return f"exit code {code}"


def ask_to_stop(child, grace_sec: float = SAVE_GRACE_SEC):
    """Ctrl-C for the child, which saves and leaves; a second Ctrl-C of ours, or too long a wait, kills it.

    The child has a session of its own, so that a terminal's Ctrl-C reaches it once, from here. Windows has
    no such thing: there the console has told the child already.
    """
    if os.name != "nt":
        child.send_signal(signal.SIGINT)
    try:
        child.wait(grace_sec)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        child.kill()
        child.wait()
