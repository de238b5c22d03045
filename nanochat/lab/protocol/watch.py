"""
Which running cell makes no steps any more: a deadlock, a stopped process, a disk that does not answer.

    watch.tick()                              # once in each round of the protocol's loop
    sec = watch.hangs("control s1", step=40, total=600)  # seconds without a new step, once; None while it is well

How long is too long follows from the cell's own steps. Example: its steps take 0.5 s, and once 12 s passed between two
of them, for a validation. After 20 x 0.5 + 12 s, and after two minutes at least, it is named. Before the first step,
which may compile, and after the last, when a long validation may come, it is named after half an hour.

Time counts only while the protocol itself is awake. A closed laptop, or a protocol that is stopped with Ctrl-Z, says
nothing about its cells.
"""

import os
import statistics
import time
from dataclasses import dataclass, field

from nanochat.lab.table import format_time

TIMES, FLOOR_SEC = 20, 120
OUTSIDE_STEPS_SEC = 1800
MOST_SEC = 5  # of one round of the loop, which takes half a second: a longer one was no time awake
KEPT = 101  # step times of a cell


@dataclass
class Seen:
    step: int | None
    since: float  # awake seconds, when this step was first seen
    step_sec: list[float] = field(default_factory=list)
    longest_sec: float = 0.0  # between two new steps, with validation and saving
    told: bool = False

    def move(self, step: int, awake: float):
        if self.step is not None and step > self.step:
            sec = awake - self.since
            self.step_sec = [*self.step_sec, sec / (step - self.step)][-KEPT:]
            self.longest_sec = max(self.longest_sec, sec)
        self.step, self.since, self.told = step, awake, False

    def limit_sec(self, total: int | None) -> float:
        if not self.step_sec or (total and self.step >= total - 1):
            return OUTSIDE_STEPS_SEC
        return max(FLOOR_SEC, TIMES * statistics.median(self.step_sec) + self.longest_sec)


class Watch:
    def __init__(self, clock=time.monotonic):
        self.clock, self.last, self.awake = clock, clock(), 0.0
        self.cells: dict[str, Seen] = {}

    def tick(self):
        now = self.clock()
        self.awake += min(now - self.last, MOST_SEC)
        self.last = now

    def hangs(self, name: str, step: int | None, total: int | None) -> float | None:
        """Seconds without a new step, where they are too many; said once for each step at which a cell stands."""
        cell = self.cells.setdefault(name, Seen(step, self.awake))
        if step is not None and step != cell.step:
            cell.move(step, self.awake)
        still = self.awake - cell.since
        if cell.told or still <= cell.limit_sec(total):
            return None
        cell.told = True
        return still

    def forget(self, name: str):
        self.cells.pop(name, None)


def in_process(pid: int | None) -> str:
    return "" if pid is None else f" in process {pid}"


def hang_line(title: str, step: int | None, sec: float, pid: int | None, log) -> str:
    """The sentence on a cell that hangs, and what the user can do about it."""
    what = "not begun to step" if step is None else f"stood at step {step}"
    line = f"{title} has {what} for {format_time(sec)}{in_process(pid)}, and may hang; log: {log}."
    if pid is None or os.name == "nt":
        return f"{line} If it does, end it: the same command goes on from its last checkpoint"
    return (f"{line} `ps -o stat= -p {pid}` shows T for a stopped process: kill -CONT {pid} lets it go on. To give it "
            f"up: kill -INT {pid} (it saves), or kill -KILL {pid}; the same command goes on from its last checkpoint")
