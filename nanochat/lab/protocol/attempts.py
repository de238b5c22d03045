"""
One attempt at a cell, from its start to the line that tells its end.

A cell may be trained by a process that this protocol did not start: of a protocol that was killed, or of another one
that needs the same cell. Nothing is started twice then. The end of that process is waited for, and its record counts.
"""

import time

from nanochat.lab.arms import Cell
from nanochat.lab.protocol.runner import Attempt, Outcome
from nanochat.lab.protocol.watch import Watch, hang_line, in_process
from nanochat.lab.report.text import failure, run_line

ELSEWHERE = "elsewhere"


def begin(session, progress, cell: Cell) -> Attempt:
    """Start a cell, or wait for it where another process trains it."""
    progress.begin(cell.title)
    if not session.runner.is_running(cell):
        return session.executor.submit(cell)
    attempt = session.runner.waiting(cell)
    progress.say(f"{cell.title} is still running{in_process(session.runner.pid(attempt))}, started elsewhere or by a "
                 "protocol that was killed: its end is waited for, then its record counts")
    return attempt


def poll(session, attempt: Attempt, sec: float) -> Outcome | str | None:
    """The outcome of an attempt that has ended, or ELSEWHERE where another process trained the cell."""
    if attempt.foreign:
        if session.runner.is_running(attempt.cell):
            time.sleep(sec)
            return None
        return ELSEWHERE
    outcome = session.executor.poll(attempt, sec)
    return ELSEWHERE if outcome and session.runner.was_forestalled(attempt) else outcome


def see(session, progress, watch: Watch, attempt: Attempt):
    """Show how far the cell is, and name it if it hangs."""
    title, (step, total) = attempt.cell.title, session.executor.position(attempt)
    progress.update(title, step, total)
    if sec := watch.hangs(title, step, total):
        progress.say(hang_line(title, step, sec, session.runner.pid(attempt), session.runner.log_path(attempt.cell)))


def end(session, progress, attempt: Attempt, outcome: Outcome | str) -> list[Cell]:
    """Take the result of an attempt that has ended. Returns the cells that are to be begun again."""
    cell = attempt.cell
    if outcome != ELSEWHERE:
        tell(session, progress, cell, outcome)
        return []
    left = session.reuse([cell])
    if left:
        progress.leave(cell.title)
    else:
        session.write()
        progress.end(cell.title)
        run = session.runs[cell.arm.name, cell.seed]
        progress.say(f"{_count(progress)} {run_line(run, run.duration_sec or 0.0)}, trained by another process")
    while session.notes:
        progress.say(f"note: {session.notes.pop(0)}")
    return left


def tell(session, progress, cell: Cell, outcome: Outcome):
    row = session.finish(cell, outcome)
    progress.end(cell.title)
    progress.say(f"{_count(progress)} {run_line(row, outcome.elapsed_sec)}")
    if outcome.status != "ok":
        progress.say(failure(row, session.runner.log_path(cell)))


def _count(progress) -> str:
    return f"[{progress.n_cells - progress.n_to_run + progress.done_cells}/{progress.n_cells}]"
