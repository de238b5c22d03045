"""
A protocol on an executor that starts no process: it needs nothing but the four functions of the interface.

python -m pytest tests/test_executor.py -q
"""

import pytest

from nanochat.common import read_json
from nanochat.lab.csv_file import read_rows
from nanochat.lab.protocol import executor
from nanochat.lab.protocol.executor import Executor, LocalExecutor
from nanochat.lab.protocol.protocol import run
from nanochat.lab.protocol.runner import Attempt, Outcome
from tests.lab_case import HISTORY, enter, make

GAIN = {"control": 0.0, "gate": 0.01}


class StandIn(Executor):
    """Each cell takes `POLLS` polls and ends as PLAN says, by its title; ok where it says nothing."""
    POLLS, PLAN = 2, {}

    def __init__(self, runner):
        self.runner, self.polled, self.most, self.running = runner, {}, 0, set()
        StandIn.last = self

    def submit(self, cell):
        self.runner.open_log(cell, ["a", "job"], resume=False).close()
        self.polled[cell.title] = 0
        self.running.add(cell.title)
        self.most = max(self.most, len(self.running))
        return Attempt(cell, None, job=f"job {len(self.polled)}")

    def poll(self, attempt, sec):
        self.polled[attempt.cell.title] += 1
        how = self.PLAN.get(attempt.cell.title, "ok")
        if isinstance(how, BaseException):
            raise how
        return self._end(attempt, how) if self.polled[attempt.cell.title] == self.POLLS else None

    def stop(self, attempts, by="SIGINT"):
        return [self._end(attempt, "interrupted", f"stopped by {by}") for attempt in list(attempts)]

    def position(self, attempt):
        return 10 * self.polled[attempt.cell.title], 60

    def _end(self, attempt, how, error=None):
        cell = attempt.cell
        self.running.discard(cell.title)
        bpb = 2.0 + 0.001 * cell.seed - GAIN[cell.arm.name]
        record = {"status": how, "config_hash": cell.config_hash, "results": {"val_bpb": bpb}}
        return Outcome(how, record, elapsed_sec=1.0, error=error)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr(executor, "subprocess", None)  # no cell may be started as a process
    monkeypatch.setattr(StandIn, "PLAN", {})


def stand_in(**options):
    made = make(seeds=[1, 2], executor=StandIn, **options)
    return run(made), read_json("results/t_latest.json")


def test_protocol_runs_on_the_interface_alone():
    code, facts = stand_in()
    assert code == 0 and StandIn.last.most == 1
    assert list(StandIn.last.polled) == ["control s1", "gate s1", "gate s2", "control s2"]
    assert [d["candidate_minus_control_bpb"] for d in facts["deltas"]] == pytest.approx([-0.01, -0.01])
    assert [row["run_status"] for row in read_rows(HISTORY)] == ["ok"] * 4


def test_as_many_cells_are_submitted_as_may_run_side_by_side():
    code, _ = stand_in(jobs=2)
    assert code == 0 and StandIn.last.most == 2


def test_failed_cell_is_told_and_the_rest_go_on(monkeypatch):
    monkeypatch.setattr(StandIn, "PLAN", {"gate s1": "oom"})
    code, facts = stand_in()
    assert code == 1 and [run["run_status"] for run in facts["runs"]] == ["ok", "oom", "ok", "ok"]


def test_user_who_stops_it_stops_what_runs(monkeypatch):
    monkeypatch.setattr(StandIn, "PLAN", {"gate s1": KeyboardInterrupt("SIGTERM")})
    code, facts = stand_in(jobs=2)
    assert code == 130 and not StandIn.last.running
    assert {run["error"] for run in facts["runs"]} == {"stopped by SIGTERM"}


def test_error_of_the_protocol_stops_what_runs(monkeypatch):
    monkeypatch.setattr(StandIn, "PLAN", {"gate s1": OSError("no space left")})
    with pytest.raises(OSError, match="no space left"):
        stand_in(jobs=2)
    assert not StandIn.last.running


def test_executor_that_lacks_a_function_cannot_be_made():
    with pytest.raises(TypeError, match="poll"):
        type("Half", (Executor,), {name: None for name in ("submit", "stop", "position")})()


def test_cells_run_on_this_machine_unless_told_otherwise():
    assert make().executor is LocalExecutor
