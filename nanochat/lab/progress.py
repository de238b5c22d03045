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
    """ETA = steps left x seconds a step so far, start-up and validation included, over the cells of this session.

    Several cells may be running; `name` tells them apart.
    """

    def __init__(self, n_cells: int, n_to_run: int, out=None, clock=time.monotonic):
        self.out = sys.stdout if out is None else out
        self.live = self.out.isatty()
        self.n_cells, self.n_to_run, self.clock = n_cells, n_to_run, clock
        self.start, self.last_printed = clock(), -float("inf")
        self.done_cells, self.done_steps, self.total = 0, 0, None
        self.running: dict[str, list] = {}  # name -> [first step seen, last step seen]; None = not started to step

    def begin(self, name: str):
        self.running[name] = [None, None]
        self.show()

    def update(self, name: str, step, total):
        """step: optimizer steps of this cell that are done (None: not known yet), of `total`."""
        first = self.running[name][0]
        self.running[name] = [step if first is None else first, step]
        self.total = total or self.total

    def end(self, name: str):
        first, step = self.running.pop(name)
        if self.total and step is not None:
            self.done_steps += self.total - first
        self.done_cells += 1
        if self.live:
            self.out.write("\r\x1b[2K")
            self.out.flush()

    def show(self):
        """The moving line: in place in a terminal, now and then in a log."""
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

    def line(self) -> str:
        eta = self.eta_sec()
        where = [name + (" starting" if step is None else f" step {step}/{self.total or '?'}")
                 for name, (_, step) in self.running.items()]
        left = "" if eta is None else f", about {format_time(eta)} left"
        done = self.n_cells - self.n_to_run + self.done_cells
        return f"[{done}/{self.n_cells} done] {'; '.join(where)}; {format_time(self.clock() - self.start)} so far{left}"

    def eta_sec(self) -> float | None:
        """Seconds left for all cells, from the pace so far; None before there is one.

        A resumed cell counts from the step at which it was first seen.
        """
        seen = [(first, step) for first, step in self.running.values() if step is not None]
        done = self.done_steps + sum(step - first for first, step in seen)
        if not done or not self.total:
            return None
        left = (self.n_to_run - self.done_cells) * self.total - sum(step for _, step in seen)
        return left * (self.clock() - self.start) / done
