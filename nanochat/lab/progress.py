"""
One line that says where a protocol is: rewritten in place in a terminal, now and then in a log.
"""

import shutil
import sys
import time

LOG_EVERY_SEC = 30


def format_time(sec: float) -> str:
    """
    >>> format_time(75), format_time(3725)
    ('1:15', '1:02:05')
    """
    minutes, sec = divmod(round(sec), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{sec:02d}" if hours else f"{minutes}:{sec:02d}"


class Progress:
    """ETA = steps left x seconds a step so far, start-up and validation included, over the cells of this session."""

    def __init__(self, n_cells: int, n_to_run: int, out=None, clock=time.monotonic):
        self.out = sys.stdout if out is None else out
        self.live = self.out.isatty()
        self.n_cells, self.n_to_run, self.clock = n_cells, n_to_run, clock
        self.start = self.cell_start = clock()
        self.last_printed = -float("inf")
        self.done_cells, self.done_steps, self.total = 0, 0, None

    def begin(self, index: int, name: str):
        self.name, self.index, self.first_step = name, index, None
        self.cell_start = self.clock()
        self.update(None, self.total)  # the next cell is most likely as long as the last one

    def update(self, step, total):
        """step: optimizer steps of the current cell that are done (None: not known yet), of `total`."""
        if step is not None:
            self.first_step = step if self.first_step is None else self.first_step
        self.step, self.total = step, total
        if self.live:
            self.out.write("\r\x1b[2K" + self.line()[:shutil.get_terminal_size().columns - 1])
            self.out.flush()
        elif self.clock() - self.last_printed >= LOG_EVERY_SEC:
            self.last_printed = self.clock()
            print(self.line(), file=self.out, flush=True)

    def say(self, text: str):
        """A line that stays, above the one that moves."""
        if self.live:
            self.out.write("\r\x1b[2K")
        print(text, file=self.out, flush=True)

    def end(self):
        if self.total and self.step is not None:
            self.done_steps += self.total - (self.first_step or 0)
        self.done_cells += 1
        if self.live:
            self.out.write("\r\x1b[2K")
            self.out.flush()

    def line(self) -> str:
        eta = self.eta_sec()
        where = "starting" if self.step is None else f"step {self.step}/{self.total or '?'}"
        left = "" if eta is None else f", about {format_time(eta)} left"
        return (f"[{self.index}/{self.n_cells}] {self.name}: {where}, {format_time(self.clock() - self.cell_start)} in this cell, "
                f"{format_time(self.clock() - self.start)} in all{left}")

    def eta_sec(self) -> float | None:
        """Seconds left for all cells, from the pace so far; None before there is one.

        A resumed cell counts from the step at which it was first seen.
        """
        done = self.done_steps + (0 if self.step is None else self.step - self.first_step)
        if not done or not self.total:
            return None
        left = (self.n_to_run - self.done_cells) * self.total - (self.step or 0)
        return left * (self.clock() - self.start) / done
