"""
The progress line of a protocol: rewritten in place in a terminal, printed now and then in a log.
"""

import heapq
import shutil
import sys
import time
from dataclasses import dataclass

from nanochat.lab.table import format_time
from nanochat.schedule import TIMED_FROM_STEP

LOG_EVERY_SEC = 30


@dataclass
class Running:
    """A cell that is being trained, as far as its steps were seen."""
    begun: float
    first: int | None = None  # step where it was first seen: 0, or where it was resumed; None = not started to step
    step: int | None = None
    total: int | None = None
    warm: tuple[int, float] | None = None  # (step, time) when a step past the first was first seen

    def see(self, step: int, now: float):
        self.first = step if self.first is None else self.first
        self.step = step
        if self.warm is None and step > self.first:
            self.warm = step, now

    def pace(self, now: float) -> tuple[int, float]:
        """(steps, seconds) since it is warm."""
        return (self.step - self.warm[0], now - self.warm[1]) if self.warm else (0, 0.0)

    def start(self) -> tuple[int, float]:
        """(steps, seconds) until it was warm: imports, building, the first validation, the first step, which may
        compile."""
        return self.warm[0] - self.first, self.warm[1] - self.begun


class Progress:
    """The progress line, with an ETA.

    Each cell that is left takes the usual time to start, and then its steps at the usual pace. Cells that wait take
    the place of the running cell that ends first, and ETA is when the last of them ends. Both times are means over the
    cells of this session, and the pace includes validation. `name` tells apart the cells that are running.

    before: the progress of the cells up to an earlier look, whose times count too.
    """

    def __init__(self, n_cells: int, n_to_run: int, out=None, clock=time.monotonic, before: "Progress | None" = None):
        self.out = sys.stdout if out is None else out
        self.live = self.out.isatty()
        self.n_cells, self.n_to_run, self.clock = n_cells, n_to_run, clock
        self.begun, self.last_printed = clock(), -float("inf")
        self.done_cells = 0
        self.running: dict[str, Running] = {}
        self.totals: dict[str, int] = dict(before.totals) if before else {}  # steps of the cells: arms may differ
        self.paces: list[tuple[int, float]] = [*before.paces] if before else []  # Running.pace of cells that ended
        self.starts: list[tuple[int, float]] = [*before.starts] if before else []  # and Running.start

    def begin(self, name: str):
        self.running[name] = Running(self.clock())
        self.show()

    def update(self, name: str, step, total):
        """step: optimizer steps of this cell that are done (None: not known yet), of `total`."""
        cell = self.running[name]
        if step is not None:
            cell.see(step, self.clock())
        if total:
            cell.total = self.totals[name] = total

    def end(self, name: str):
        cell = self.running.pop(name)
        if cell.warm:
            self.paces.append(cell.pace(self.clock()))
            self.starts.append(cell.start())
        self.done_cells += 1
        if self.live:
            self.out.write("\r\x1b[2K")
            self.out.flush()

    def leave(self, name: str):
        """A cell that is handed back: it is begun again, or another process has trained it."""
        self.running.pop(name)

    def show(self):
        """The moving line: in place in a terminal, now and then in a log."""
        if self.live:
            self.out.write("\r\x1b[2K" + self.line()[:shutil.get_terminal_size().columns - 1])
            self.out.flush()
        elif self.clock() - self.last_printed >= LOG_EVERY_SEC:
            self.last_printed = self.clock()
            print(self.line(), file=self.out, flush=True)

    def say(self, text: str):
        """Print a line that stays, above the moving line."""
        if self.live:
            self.out.write("\r\x1b[2K")
        print(text, file=self.out, flush=True)

    def line(self) -> str:
        eta = self.eta_sec()
        where = [name + (" starting" if cell.step is None else f" step {cell.step}/{cell.total or '?'}")
                 for name, cell in self.running.items()]
        left = ", time to go unknown yet" if eta is None else f", about {format_time(eta)} left" if eta >= 1 else \
            ", validating" if self.running else ""
        done = self.n_cells - self.n_to_run + self.done_cells
        told = [*where, f"{format_time(self.clock() - self.begun)} so far{left}"]
        return f"[{done}/{self.n_cells} done] {'; '.join(told)}"

    def eta_sec(self) -> float | None:
        """Seconds left for all cells; None before enough steps were timed to say so."""
        now, cells = self.clock(), list(self.running.values())
        steps, sec = _sums([*self.paces, *(cell.pace(now) for cell in cells)])
        usual = sum(self.totals.values()) / max(1, len(self.totals))  # of the cells that wait
        if not usual or not steps or steps < min(TIMED_FROM_STEP, usual / 2):
            return None
        pace, starts = sec / steps, [*self.starts, *(cell.start() for cell in cells if cell.warm)]
        start_steps, start_sec = (total / len(starts) for total in _sums(starts))
        fresh = start_sec + (usual - start_steps) * pace
        ends = []
        for cell in cells:
            started = (cell.first or 0) * pace + now - cell.begun
            ends.append(((cell.total or usual) - cell.step) * pace if cell.warm else max(fresh - started, 0.0))
        return last_end(ends, self.n_to_run - self.done_cells - len(cells), fresh)


def last_end(ends: list[float], waiting: int, sec: float) -> float:
    """Seconds until all cells have ended, if each that waits takes `sec` and the place of the cell that ends first.

    ends: seconds that are left of each cell that is running.

    >>> last_end([10.0, 4.0], waiting=1, sec=10.0), last_end([0.0] * 2, waiting=5, sec=60.0)
    (14.0, 180.0)
    """
    ends = list(ends) or [0.0]
    heapq.heapify(ends)
    for _ in range(waiting):
        heapq.heapreplace(ends, ends[0] + sec)
    return max(ends)


def _sums(pairs) -> tuple[int, float]:
    return sum(steps for steps, _ in pairs), sum(sec for _, sec in pairs)
