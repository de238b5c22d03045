"""
Where cells are trained. A protocol hands a cell in, asks now and then how it is, and may ask it to stop.

    attempt = executor.submit(cell)
    while (outcome := executor.poll(attempt, sec=0.5)) is None:
        steps, total = executor.position(attempt)

LocalExecutor starts a subprocess on this machine. An executor for a cluster would submit a job instead. The command of
a cell, and the judgement of its end, stay with the Runner (lab/protocol/runner.py).
"""

import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod

from nanochat.common import REPO_ROOT
from nanochat.lab.arms import Cell
from nanochat.lab.protocol.runner import Attempt, Outcome, Runner

SAVE_GRACE_SEC = 180  # a run asked to stop saves first; a slow disk and a large optimizer take a while


class Executor(ABC):
    """A place where cells run. The record of a cell goes to Runner.home, its output to Runner.log_path(cell)."""

    @abstractmethod
    def submit(self, cell: Cell) -> Attempt:
        """Begin to train `cell`, from its latest checkpoint where it has one under the same hash. Does not wait."""

    @abstractmethod
    def poll(self, attempt: Attempt, sec: float) -> Outcome | None:
        """The outcome of `attempt` if it has ended or its time is up; None if it still runs after `sec` seconds."""

    @abstractmethod
    def stop(self, attempts: list[Attempt], by: str = "SIGINT") -> list[Outcome]:
        """Let all of them save and end, and wait for it. by: name of the signal with which the user asked."""

    @abstractmethod
    def position(self, attempt: Attempt) -> tuple[int | None, int | None]:
        """(optimizer steps done, steps in all); None for a number that is not known yet."""


class LocalExecutor(Executor):
    """A subprocess for each cell; Attempt.job is its Popen."""

    def __init__(self, runner: Runner):
        self.runner = runner

    def submit(self, cell: Cell) -> Attempt:
        command, resume = self.runner.command(cell)
        attempt = self.runner.attempt(cell)
        with self.runner.open_log(cell, command, resume) as log:
            attempt.job = subprocess.Popen(
                command, cwd=REPO_ROOT, env=self.runner.environment(), stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=os.name != "nt")
        return attempt

    def poll(self, attempt: Attempt, sec: float) -> Outcome | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            attempt.job.wait(sec)
            return self._judge(attempt)
        if self.runner.timeout_sec and attempt.elapsed_sec() > self.runner.timeout_sec:
            ask_to_stop([attempt.job])
            return self._judge(attempt, timed_out=True)
        return None

    def stop(self, attempts: list[Attempt], by: str = "SIGINT") -> list[Outcome]:
        ask_to_stop([attempt.job for attempt in attempts])
        return [self._judge(attempt, stopped_by=by) for attempt in attempts]

    def position(self, attempt: Attempt) -> tuple[int | None, int | None]:
        return self.runner.position(attempt)

    def _judge(self, attempt, **how) -> Outcome:
        return self.runner.judge(attempt, attempt.job.returncode, **how)


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
    """Kill a child and the processes that it started: a trainer of another tree is a child of the child."""
    if os.name == "nt":
        child.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
