"""
The line of a protocol's progress: the facts in it, and that its time left is true.

python -m pytest tests/test_progress.py -v
"""

import pytest

from nanochat.lab.protocol.progress import Progress
from nanochat.schedule import TIMED_FROM_STEP


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(list):
    def write(self, text):
        self.append(text)

    def flush(self):
        pass

    def isatty(self):
        return True


STEPS, START_SEC, FIRST_STEP_SEC, STEP_SEC, END_SEC = 60, 20, 90, 1.5, 6  # the first step compiles


def position(sec):
    """The position in metrics.jsonl of this cell `sec` after it began; None before its first validation, at step 0."""
    return None if sec < START_SEC else min(STEPS, max(0, int((sec - START_SEC - FIRST_STEP_SEC) / STEP_SEC) + 1))


@pytest.mark.parametrize("side_by_side", [1, 2])
def test_time_left_is_true_and_is_not_said_before_steps_were_timed(side_by_side):
    clock, cell_sec = Clock(), START_SEC + FIRST_STEP_SEC + (STEPS - 1) * STEP_SEC + END_SEC
    progress, said = Progress(n_cells=6, n_to_run=6, out=Terminal(), clock=clock), []
    whole = 6 / side_by_side * cell_sec
    for turn in range(6 // side_by_side):
        names = [f"{turn} {i}" for i in range(side_by_side)]
        for name in names:
            progress.begin(name)
        while clock.now < (turn + 1) * cell_sec:
            for name in names:
                progress.update(name, position(clock.now - turn * cell_sec), STEPS)
            if progress.eta_sec() is not None:
                said.append((clock.now, progress.eta_sec()))
            clock.now += 0.5
        for name in names:
            progress.end(name)
    first = START_SEC + FIRST_STEP_SEC + TIMED_FROM_STEP * STEP_SEC
    assert first - 10 * STEP_SEC < said[0][0] <= first + STEP_SEC and said[-1][0] > whole - 1, "then it is always said"
    assert all(abs(eta - (whole - now)) < 0.08 * whole for now, eta in said)


def test_no_time_is_said_of_the_first_steps_which_are_slow():
    clock = Clock()
    progress = Progress(n_cells=1, n_to_run=1, out=Terminal(), clock=clock)
    progress.begin("control s1")
    for step, now in ((None, 5.0), (0, 10.0), (1, 100.0), (2, 100.5), (5, 102.0)):
        clock.now = now
        progress.update("control s1", step, 1000)
        assert "left" not in progress.line() and "time to go unknown yet" in progress.line()


def test_cells_side_by_side_are_named_with_their_steps():
    progress = Progress(n_cells=4, n_to_run=4, out=Terminal(), clock=Clock())
    for name, step in (("control s1", 22), ("gate s1", 18)):
        progress.begin(name)
        progress.update(name, step, 60)
    assert "control s1 step 22/60; gate s1 step 18/60" in progress.line()


def test_line_between_two_cells_has_no_empty_place():
    assert Progress(n_cells=2, n_to_run=1, out=Terminal(), clock=Clock()).line().startswith("[1/2 done] 0:00 so far, ")


def test_arms_of_different_length_have_their_own_totals():
    clock = Clock()
    progress = Progress(n_cells=2, n_to_run=2, out=Terminal(), clock=clock)
    for name in ("control s1", "half s1"):
        progress.begin(name)
    for step, now in ((0, 1.0), (1, 2.0), (41, 42.0)):
        clock.now = now
        for name, total in (("control s1", 256), ("half s1", 128)):
            progress.update(name, step, total)
    assert "control s1 step 41/256; half s1 step 41/128" in progress.line()
    assert progress.eta_sec() == pytest.approx(256 - 41), "both are running: the longer one ends last"


def test_cell_that_waits_takes_the_place_of_the_first_that_ends():
    """Three cells, two side by side, end after two turns, not after one and a half."""
    clock = Clock()
    progress = Progress(n_cells=3, n_to_run=3, out=Terminal(), clock=clock)
    for name in ("control s1", "gate s1"):
        progress.begin(name)
    for step, clock.now in ((0, 0.0), (1, 1.0), (50, 50.0)):
        for name in ("control s1", "gate s1"):
            progress.update(name, step, 100)
    assert progress.eta_sec() == pytest.approx(50 + 100)


def test_cells_of_an_earlier_look_tell_the_time_of_the_next():
    clock = Clock()
    earlier = Progress(n_cells=1, n_to_run=1, out=Terminal(), clock=clock)
    train(earlier, clock, 100, (0, 10.0), (1, 11.0), (100, 110.0))
    earlier.end("control s1")
    progress = Progress(n_cells=2, n_to_run=1, out=Terminal(), clock=clock, before=earlier)
    progress.begin("gate s1")
    assert progress.eta_sec() == pytest.approx(110) and "about 1:50 left" in progress.line()


def train(progress, clock, total, *seen):
    """control s1 begins, and is at each (step, time) of `seen`."""
    progress.begin("control s1")
    for step, clock.now in seen:
        progress.update("control s1", step, total)


def test_resumed_cell_counts_from_where_it_goes_on():
    clock = Clock()
    progress = Progress(n_cells=1, n_to_run=1, out=Terminal(), clock=clock)
    train(progress, clock, 60, (40, 0.0), (41, 5.0), (52, 16.0))
    assert progress.eta_sec() == pytest.approx(8.0)


def test_cell_that_failed_early_counts_no_steps_that_it_did_not_take():
    clock = Clock()
    progress = Progress(n_cells=2, n_to_run=2, out=Terminal(), clock=clock)
    train(progress, clock, 1001, (0, 10.0), (1, 20.0), (21, 40.0))
    progress.end("control s1")
    progress.begin("gate s1")
    assert progress.eta_sec() == pytest.approx(20 + 1000)


def test_line_is_rewritten_in_a_terminal_and_rare_in_a_log(capsys):
    clock, terminal = Clock(), Terminal()
    live, logged = (Progress(n_cells=1, n_to_run=1, out=out, clock=clock) for out in (terminal, None))
    for progress in (live, logged):
        clock.now = 0.0
        progress.begin("control s1")
        for second in range(100):
            clock.now = float(second)
            progress.update("control s1", second, 100)
            progress.show()
    assert (len(terminal) == 101
            and all(text.startswith("\r\x1b[2K[0/1 done] control s1 ") and "\n" not in text for text in terminal))
    assert "step 99/100; 1:39 so far, about 0:01 left" in terminal[-1]
    assert len(capsys.readouterr().out.splitlines()) == 4  # at 0, 30, 60 and 90 seconds
