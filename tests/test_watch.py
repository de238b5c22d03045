"""
Which cell hangs: by its own steps, and only while the protocol is awake.

python -m pytest tests/test_watch.py -q
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from nanochat.common import REPO_ROOT
from nanochat.lab.protocol import watch
from nanochat.lab.protocol.watch import FLOOR_SEC, OUTSIDE_STEPS_SEC, Watch, hang_line
from tests.lab_case import behave, enter, make


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def named(steps, total=1000, round_sec=0.5):
    """Run a watch over a made-up cell, one step number for each round: [(round, seconds), ...] where it was named."""
    clock, found = Clock(), []
    seen = Watch(clock)
    for i, step in enumerate(steps):
        clock.now += round_sec if not callable(round_sec) else round_sec(i)
        seen.tick()
        if sec := seen.hangs("a", step, total):
            found.append((i, sec))
    return found


def test_a_cell_of_quick_steps_is_named_after_the_floor_and_once():
    steps = [*range(1, 101), *[100] * 1000]
    (i, sec), = named(steps)
    assert sec == pytest.approx(FLOOR_SEC, abs=1) and i == pytest.approx(99 + 2 * FLOOR_SEC, abs=3)


def test_slow_steps_and_long_validations_are_given_their_time():
    slow = [step for step in range(1, 21) for _ in range(60)]  # 30 s a step
    (_, sec), = named([*slow, *[20] * 3000])
    assert sec == pytest.approx(20 * 30 + 30, rel=0.01)
    quick = [*range(1, 50), *[50] * 500, *range(51, 80)]  # a validation of 250 s between steps of half a second
    assert named(quick)[0][1] == pytest.approx(FLOOR_SEC, abs=1), "the first one surprises"
    (_, first), (_, second) = named([*quick, *[80] * 1000])
    assert second == pytest.approx(20 * 0.5 + 250, abs=3), "a second one does not"


@pytest.mark.parametrize("steps", [[None] * 4000, [0] * 4000, [*range(1000), *[1000] * 4000]])
def test_compiling_and_the_last_validation_are_given_half_an_hour(steps):
    (_, sec), = named(steps)
    assert sec == pytest.approx(OUTSIDE_STEPS_SEC, abs=1)


def test_a_cell_that_hangs_again_is_named_again():
    assert len(named([*range(1, 50), *[50] * 400, *range(51, 60), *[60] * 800])) == 2


def test_a_protocol_that_slept_names_no_cell():
    """Stopped for ten hours in one round, for example by Ctrl-Z or a closed laptop, while its cells slept too."""
    assert named([*range(1, 50), *[50] * 100, *range(51, 60)],
                 round_sec=lambda i: 36000 if i in (60, 90) else 0.5) == []


def test_the_line_says_what_can_be_done():
    line = hang_line("gate s1", 40, 130.0, 1234, "t/x.log")
    assert line.startswith("gate s1 has stood at step 40 for 2:10 in process 1234, and may hang; log: t/x.log")
    if os.name != "nt":
        assert "kill -CONT 1234" in line and "kill -INT 1234" in line
    assert "not begun to step" in hang_line("gate s1", None, 1800.0, None, "x.log")


DRIVER = """
import sys
from nanochat.lab.protocol import watch
from nanochat.lab.protocol.runner import stop_on_signals
from tests import lab_case as t
watch.FLOOR_SEC = 1.5
watch.TIMES = 2
stop_on_signals()
t.protocol.tree_hash = lambda: t.TREE
t.protocol.draw_protocol = lambda *args: False
sys.exit(t.protocol.run(t.make(seeds=[1])))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_cell_that_stands_still_is_named_with_its_process_and_not_killed(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    monkeypatch.setenv("FAKE_GO_ON", str(tmp_path / "go_on"))
    behave(monkeypatch, control_s1="stopped")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, env={**os.environ, "PYTHONPATH": str(REPO_ROOT)})
    out = ""
    while "may hang" not in out:
        line = driver.stdout.readline()
        assert line, out
        out += line
    pid = int(out.split("in process ")[1].split(",")[0])
    os.kill(pid, signal.SIGSTOP)  # it can be stopped and continued
    time.sleep(0.2)
    os.kill(pid, signal.SIGCONT)
    (tmp_path / "go_on").touch()
    rest, _ = driver.communicate(timeout=30)
    assert driver.returncode == 0 and "control s1: ok" in rest and "may hang" not in rest
    assert watch.FLOOR_SEC == FLOOR_SEC and make(seeds=[1]).cells
