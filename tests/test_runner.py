"""
Cells that fail, hang or are stopped: their status, their row, and how they go on.

python -m pytest tests/test_runner.py -v
"""

import functools
import os
import signal
import subprocess
import sys
import time

import pytest

from nanochat.common import REPO_ROOT, read_json
from nanochat.lab.csv_file import read_rows
from nanochat.lab.protocol import executor, protocol
from nanochat.lab.protocol.protocol import run
from nanochat.machine import usable_cores
from nanochat.record import read_record
from tests.lab_case import HISTORY, behave, enter, make, ran


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)


@pytest.mark.parametrize("how, status, verdict", [
    ("crash", "crash", None), ("oom", "oom", None), ("silent", "crash", None), ("liar", "crash", None),
    ("diverged", "diverged", "reject")])
def test_failed_cell_gets_its_status_and_a_row_and_the_rest_go_on(monkeypatch, capsys, how, status, verdict):
    behave(monkeypatch, gate_s1337=how)
    assert run(make()) == 1
    rows = read_rows(HISTORY)
    assert [row["run_status"] for row in rows] == ["ok", status, "ok", "ok"]
    assert (rows[1]["val_bpb"], rows[1]["avg_tok_per_sec"]) == ("", "")  # not measured is empty
    facts = read_json("results/t_latest.json")
    assert facts["verdicts"][0]["verdict"] == verdict
    assert facts["deltas"][0]["candidate_minus_control_bpb"] is None and status in facts["deltas"][0]["note"]
    in_its_log = "RuntimeError: made up" if how == "crash" else f"training nc_t_d4_gate_s1337: {how}"
    assert in_its_log in capsys.readouterr().out


def test_failed_cell_is_resumed_next_time_and_a_divergence_is_final(monkeypatch):
    behave(monkeypatch, control_s1="crash", gate_s1="diverged")  # a crash leaves what kill -9 and a reboot leave
    assert run(make(seeds=[1])) == 1
    behave(monkeypatch)
    assert run(make(seeds=[1])) == 1
    assert ran() == ["control_s1", "gate_s1", "control_s1"]
    assert "--resume" in make().results.logs.joinpath("nc_t_d4_control_s1.log").read_text()
    assert [row["run_status"] for row in read_json("results/t_latest.json")["runs"]] == ["ok", "diverged"]


def test_failed_cell_of_other_options_is_not_resumed(monkeypatch):
    behave(monkeypatch, gate_s1="crash")
    run(make(seeds=[1]))
    behave(monkeypatch)
    run(make(["gate: --symplectic-gate --symplectic-gate-mix=0.3"], seeds=[1]))
    assert "--resume" not in make().results.logs.joinpath("nc_t_d4_gate_s1.log").read_text()


def test_timeout_stops_a_cell_that_saves_and_goes_on_later(monkeypatch):
    behave(monkeypatch, control_s1="wait")
    assert run(make(seeds=[1], timeout_sec=5)) == 1  # long enough for the other cell on a loaded machine
    assert [row["run_status"] for row in read_rows(HISTORY)] == ["timeout", "ok"]
    behave(monkeypatch)
    assert run(make(seeds=[1])) == 0
    assert read_rows(HISTORY)[-1]["resumed_from_step"] == "10"


def test_child_that_does_not_listen_is_killed_after_the_grace(monkeypatch):
    behave(monkeypatch, control_s1="deaf")
    monkeypatch.setattr(executor, "ask_to_stop", functools.partial(executor.ask_to_stop, grace_sec=0.3))
    start = time.monotonic()
    assert run(make(seeds=[1], timeout_sec=0.5)) == 1
    assert time.monotonic() - start < 10 and read_rows(HISTORY)[0]["run_status"] == "timeout"


def test_code_that_changed_stops_the_protocol_before_its_next_cell(monkeypatch):
    made = make(seeds=[1])
    monkeypatch.setenv("FAKE_TREE", "edited")
    with pytest.raises(ValueError, match="changed since this protocol began"):
        run(made)
    assert ran() == []


def test_cell_that_ran_on_other_code_is_no_result(monkeypatch):
    made = make(seeds=[1])
    monkeypatch.setenv("FAKE_TREE", "edited")
    monkeypatch.setattr(protocol, "tree_hash", lambda: made.inputs.tree_hash)  # the edit came just after the check
    assert run(made) == 1
    assert "changed while the protocol ran" in read_json("results/t_latest.json")["runs"][0]["error"]


def test_arms_side_by_side_share_the_cores_and_give_the_same_results(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")  # which would be the most that a cell may have
    assert run(make()) == 0
    alone = read_json("results/t_latest.json")
    assert run(make(jobs=2, fresh=True)) == 0
    together = read_json("results/t_latest.json")
    values = [[(r["arm"], r["seed"], r["val_bpb"]) for r in facts["runs"]] for facts in (together, alone)]
    assert values[0] == values[1]
    assert len(ran()) == 8
    threads = [read_record(make().home, run["run_tag"])["threads"] for run in together["runs"]]
    assert threads == [max(1, usable_cores() // 2)] * 4


def test_two_arms_run_at_the_same_time(monkeypatch):
    behave(monkeypatch, control_s1="meet", gate_s1="meet")  # each waits for the other's record
    assert run(make(seeds=[1], jobs=2)) == 0


def test_jobs_are_refused_where_cells_would_share_a_card():
    with pytest.raises(ValueError, match="--jobs=2: cells share cores, not a cuda"):
        make(flags=["--device-type=cuda"], jobs=2)
    with pytest.raises(ValueError, match="--jobs=0"):
        make(jobs=0)


DRIVER = """
import sys
from nanochat.lab.protocol.runner import stop_on_signals
from tests import lab_case as t
stop_on_signals()
t.protocol.tree_hash = lambda: t.TREE
t.protocol.draw_protocol = lambda *args: False
sys.exit(t.protocol.run(t.make(jobs=int(sys.argv[1]))))
"""


def stop_when_both_wait(jobs, cells, by=signal.SIGINT):
    """Start the protocol in a process of its own, stop it when `cells` are at step 10; (exit code, output)."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(jobs)], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": str(REPO_ROOT)})
    for cell in cells:
        metrics = make().home / "records" / f"nc_t_d4_{cell}" / "metrics.jsonl"
        while not (metrics.exists() and '"step": 10' in metrics.read_text()):
            assert driver.poll() is None
            time.sleep(0.02)
    driver.send_signal(by)
    out, _ = driver.communicate(timeout=20)
    return driver.returncode, out


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_saves_exits_130_and_the_same_command_goes_on(monkeypatch):
    behave(monkeypatch, gate_s1337="wait")
    code, out = stop_when_both_wait(1, ["gate_s1337"])
    assert code == 130 and "Go on with the same command" in out
    assert read_record(make().home, "nc_t_d4_gate_s1337")["status"] == "interrupted"
    assert [row["run_status"] for row in read_rows(HISTORY)] == ["ok", "interrupted"]
    behave(monkeypatch)
    assert run(make()) == 0
    assert ran() == ["control_s1337", "gate_s1337", "gate_s1337", "gate_s2026", "control_s2026"]
    assert read_rows(HISTORY)[2]["resumed_from_step"] == "10"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_saves_every_cell_that_runs_side_by_side(monkeypatch):
    behave(monkeypatch, control_s1337="wait", gate_s1337="wait")
    code, _ = stop_when_both_wait(2, ["control_s1337", "gate_s1337"])
    assert code == 130 and [row["run_status"] for row in read_rows(HISTORY)] == ["interrupted"] * 2
    behave(monkeypatch)
    assert run(make(jobs=2)) == 0
    assert [row["resumed_from_step"] for row in read_rows(HISTORY)[2:]].count("10") == 2


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_stopped_cell_is_one_line_that_names_the_signal_that_came(monkeypatch, name):
    behave(monkeypatch, control_s1337="wait")
    code, out = stop_when_both_wait(1, ["control_s1337"], getattr(signal, name))
    lines = out[out.index("[1/4] control s1337: interrupted"):].splitlines()
    assert code == 130 and lines[1].startswith(f"  stopped by {name} at step 10; the same command goes on; log: ")
    assert lines[2].startswith("stopped; what was trained is saved.") and (name == "SIGINT" or "SIGINT" not in out)
    error = read_json("results/t_latest.json")["runs"][0]["error"]
    assert error == f"stopped by {name} at step 10; the same command goes on"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_sigterm_and_a_closed_terminal_stop_as_ctrl_c_does():
    code = "import os, signal\nfrom nanochat.lab.protocol.runner import stop_on_signals\n{}stop_on_signals()\n" \
           "try:\n    os.kill(os.getpid(), signal.{})\n    print('alive')\n" \
           "except KeyboardInterrupt:\n    print('stopped')"
    for name, before, said in (("SIGTERM", "", "stopped"), ("SIGHUP", "", "stopped"),
                               ("SIGHUP", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n", "alive")):  # under nohup
        result = subprocess.run([sys.executable, "-c", code.format(before, name)], cwd=REPO_ROOT, capture_output=True,
                                text=True)
        assert result.stdout.strip() == said, result.stderr
