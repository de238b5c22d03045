"""
Protocols whose driver was killed, or that run twice: cells are waited for, every run has its rows once.

python -m pytest tests/test_killed_driver.py -q
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from nanochat.common import REPO_ROOT, read_json, write_json
from nanochat.lab.csv_file import read_rows
from nanochat.lab.ledger import experiments
from nanochat.lab.protocol.protocol import run
from nanochat.record import read_record, record_dir
from tests.lab_case import HISTORY, behave, enter, make, ran

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")
LEDGER = Path("ledger.csv")
DRIVER = """
import sys
from nanochat.lab.protocol.runner import stop_on_signals
from tests import lab_case as t
from pathlib import Path
stop_on_signals()
t.protocol.tree_hash = lambda: t.TREE
t.protocol.draw_protocol = lambda *args: False
sys.exit(t.protocol.run(t.make(jobs=int(sys.argv[1]), seeds=[1], ledger=Path(sys.argv[2]).resolve(),
                               results_dir=sys.argv[3])))
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    monkeypatch.setenv("FAKE_GO_ON", str(tmp_path / "go_on"))
    yield
    Path("go_on").touch()  # a test that fails leaves no process behind


def start(jobs=2, results="results"):
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(jobs), str(LEDGER), results], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": str(REPO_ROOT)})


def wait_until(condition, driver=None, sec=30):
    deadline = time.monotonic() + sec
    while not condition():
        assert time.monotonic() < deadline and (driver is None or driver.poll() is None)
        time.sleep(0.02)


def read_until(driver, *texts) -> str:
    """What the driver has printed until all of these texts were seen."""
    out = ""
    while not all(text in out for text in texts):
        line = driver.stdout.readline()
        assert line, out
        out += line
    return out


def steps(cell, n=10) -> bool:
    path = record_dir(make().home, f"nc_t_d4_{cell}_s1") / "metrics.jsonl"
    return path.exists() and f'"step": {n}' in path.read_text()


def rows() -> list[tuple]:
    return sorted((row["arm"], row["status"]) for row in experiments.read(LEDGER))


def end(driver) -> str:
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, out
    return out


def kill_the_driver_of_two_cells(monkeypatch):
    """Both cells have begun, and wait for the file go_on."""
    behave(monkeypatch, control_s1="slow", gate_s1="slow")
    driver = start()
    wait_until(lambda: steps("control") and steps("gate"), driver)
    driver.kill()
    driver.wait()


BOTH = [("control", "ok"), ("gate", "ok")]


def test_cells_of_a_killed_driver_are_waited_for_and_get_their_rows(monkeypatch):
    kill_the_driver_of_two_cells(monkeypatch)
    second = start()
    out = read_until(second, "control s1 is still running", "gate s1 is still running")
    Path("go_on").touch()
    out += end(second)
    pid = read_record(make().home, "nc_t_d4_gate_s1")["pid"]
    assert out.count(f"gate s1 is still running in process {pid}, ") == 1 and "crash" not in out
    assert "gate s1: ok, val_bpb" in out and "trained by another process" in out
    assert rows() == BOTH and sorted(ran()) == ["control_s1", "gate_s1"]
    assert end(start()) and rows() == BOTH and len(ran()) == 2


def test_a_cell_that_had_not_taken_its_lock_when_its_driver_was_killed_is_trained_once(monkeypatch):
    """For some seconds a trainer imports torch: nobody can see it. The second one is turned away, and that is no crash.
    """
    behave(monkeypatch, control_s1="late", gate_s1="slow")
    driver = start(jobs=1)
    log = Path("results/t/nc_t_d4_control_s1.log")
    wait_until(lambda: log.exists() and "training" in log.read_text(), driver)
    driver.kill()
    driver.wait()
    behave(monkeypatch)
    out = end(start(jobs=1))
    assert "crash" not in out and rows() == BOTH
    assert Counter(ran()) == {"control_s1": 1, "gate_s1": 1}


def test_cells_that_end_while_nobody_watches_get_their_rows_on_reuse(monkeypatch):
    kill_the_driver_of_two_cells(monkeypatch)
    Path("go_on").touch()
    tags = ["nc_t_d4_control_s1", "nc_t_d4_gate_s1"]
    wait_until(lambda: [read_record(make().home, tag)["status"] for tag in tags] == ["ok", "ok"])
    for _ in range(2):
        assert "reused 2 of 2 cells" in end(start())
        assert rows() == BOTH and sorted(ran()) == ["control_s1", "gate_s1"]
    facts = read_json("results/t_latest.json")
    declared = facts["declaration"]["declared_at"]
    assert [r["declared_at"] for r in facts["runs"]] == [declared] * 2, "it was run under the declaration of the first"
    assert all(r["timestamp"] for r in facts["runs"]) and facts["mean_candidate_speed_ratio"] == 0.9


def test_two_drivers_of_one_label_train_each_cell_once(monkeypatch):
    behave(monkeypatch, control_s1="slow", gate_s1="stopped")  # a run takes longer than the start of another
    first = start(jobs=1, results="results1")
    wait_until(lambda: steps("control"), first)
    second = start(jobs=1, results="results2")
    out = read_until(second, "control s1 is still running")
    Path("go_on").touch()
    assert "crash" not in end(first) and "crash" not in out + end(second)
    assert rows() == BOTH, "one row a run, whoever wrote it"
    runs = [read_json(f"results{i}/t_latest.json")["runs"] for i in (1, 2)]
    assert [[(r["run_id"], r["started_at"], r["val_bpb"]) for r in each] for each in runs][0] == \
        [(r["run_id"], r["started_at"], r["val_bpb"]) for r in runs[1]]


def test_a_driver_that_is_stopped_leaves_a_cell_that_it_only_waits_for(monkeypatch):
    kill_the_driver_of_two_cells(monkeypatch)
    second = start()
    read_until(second, "control s1 is still running", "gate s1 is still running")
    second.send_signal(signal.SIGINT)
    out, _ = second.communicate(timeout=20)
    assert second.returncode == 130 and not LEDGER.exists(), out
    Path("go_on").touch()
    assert end(start()) and rows() == BOTH


# -----------------------------------------------------------------------------
# Rows

def test_a_failed_run_that_nobody_recorded_gets_its_row_before_it_is_resumed(monkeypatch):
    behave(monkeypatch, gate_s1="oom")
    assert run(make(seeds=[1], ledger=LEDGER)) == 1
    before = [LEDGER.read_text(), Path(HISTORY).read_text()]
    LEDGER.unlink()
    Path(HISTORY).unlink()
    behave(monkeypatch)
    assert run(make(seeds=[1], ledger=LEDGER)) == 0
    assert rows() == [("control", "ok"), ("gate", "ok"), ("gate", "oom")]
    assert [row["run_status"] for row in read_rows(HISTORY)] == ["ok", "oom", "ok"]
    assert LEDGER.read_text().startswith(before[0]) and Path(HISTORY).read_text().split("\n")[0] == \
        before[1].split("\n")[0]


def test_a_run_that_is_killed_after_its_record_says_ok_is_ok_in_every_book(monkeypatch):
    behave(monkeypatch, gate_s1="torn down")
    for _ in range(2):
        assert run(make(seeds=[1], ledger=LEDGER)) == 0
        assert rows() == BOTH and [row["run_status"] for row in read_rows(HISTORY)] == ["ok", "ok"]


@pytest.mark.parametrize("lost", ["ledger", "history", "both"])
def test_a_missing_row_is_the_row_that_would_have_been_written(lost):
    assert run(make(seeds=[1], ledger=LEDGER)) == 0
    files = [LEDGER] * (lost != "history") + [Path(HISTORY)] * (lost != "ledger")
    before = {path: read_rows(path) for path in files}
    for path in files:
        path.unlink()
    assert run(make(seeds=[1], ledger=LEDGER)) == 0
    for path in files:
        assert read_rows(path) == before[path]


def test_a_cell_that_was_timed_out_has_one_row(monkeypatch):
    behave(monkeypatch, control_s1="wait")
    assert run(make(["gate: --symplectic-gate"], seeds=[1], ledger=LEDGER, timeout_sec=3)) == 1
    assert ("control", "timeout") in rows()
    behave(monkeypatch)
    assert run(make(seeds=[1], ledger=LEDGER)) == 0
    assert Counter(rows()) == {("control", "timeout"): 1, ("control", "ok"): 1, ("gate", "ok"): 1}


def spoiled_by(how):
    if how == "lock":
        LEDGER.with_name(f".{LEDGER}.lock").mkdir()
    if how == "header":
        LEDGER.write_text("a,b\n1,2\n")
    if how == "folder":
        return Path("/proc/none/ledger.csv")
    if how == "history":
        Path("results").mkdir()
        Path("results/.t_history.csv.lock").mkdir()
    if how == "declarations":
        Path("declarations.csv").write_text("a,b\n1,2\n")
    return LEDGER


@pytest.mark.parametrize("how", ["lock", "header", "folder", "history", "declarations"])
def test_books_that_cannot_be_written_stop_a_protocol_before_its_first_run(how):
    ledger = spoiled_by(how)
    with pytest.raises((ValueError, OSError)) as caught:
        run(make(seeds=[1], ledger=ledger))
    assert "\n" not in str(caught.value) and ".csv" in str(caught.value)
    assert not (make().home / "records").exists(), "nothing was trained"


@pytest.mark.parametrize("spoil", [lambda: Path("results").write_text(""), lambda: Path("results").symlink_to("none"),
                                   lambda: Path("results/.t.lock").mkdir(parents=True)])
def test_results_that_cannot_be_written_are_named_with_the_next_step(spoil):
    spoil()
    with pytest.raises(OSError, match="results cannot be written: .*; results go there: make it writable, or start "):
        run(make(seeds=[1], ledger=LEDGER))
    assert not (make().home / "records").exists(), "nothing was trained"


# -----------------------------------------------------------------------------
# Damage

def damage(path, how):
    if how == "shape":
        write_json(path, {**read_json(path), "results": 3})
    elif how == "type":
        write_json(path, {**read_json(path), "results": {"val_bpb": "low"}})
    else:
        path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("how", ["torn", "shape", "type"])
def test_a_damaged_record_is_named_kept_and_the_cell_trained_anew(capsys, how):
    assert run(make(seeds=[1], ledger=LEDGER)) == 0
    path = record_dir(make().home, "nc_t_d4_gate_s1") / "run.json"
    damage(path, how)
    damaged = path.read_bytes()
    capsys.readouterr()
    assert run(make(seeds=[1], ledger=LEDGER)) == 0
    out = capsys.readouterr().out
    note, = [line for line in out.splitlines() if line.startswith("note: gate s1: ")]
    assert "run.json" in note and "trained anew" in note and "to run: 1 cells, gate s1" in out
    assert path.with_name("run.json.damaged.1").read_bytes() == damaged
    assert ran() == ["control_s1", "gate_s1", "gate_s1"]
    assert read_record(make().home, "nc_t_d4_gate_s1")["status"] == "ok"
    assert "--resume" not in make().results.logs.joinpath("nc_t_d4_gate_s1.log").read_text()


LATEST = Path("results/t_latest.json")


@pytest.mark.parametrize("content", ["", '{"runs": ', "[]", "null", '{"runs": 3}', '{"declaration": [1]}',
                                     '{"runs": [null]}', '{"settings": "x"}', "[" * 5000])
def test_a_damaged_result_file_forgets_no_declaration(capsys, content):
    assert run(make(seeds=[1], ledger=LEDGER)) == 0
    declared = read_json(LATEST)["declaration"]
    LATEST.write_text(content)
    assert run(make(seeds=[1], ledger=LEDGER)) == 0
    note = capsys.readouterr().out.split("note: ")[1].splitlines()[0]
    assert note.startswith("results/t_latest.json") and "declarations.csv" in note
    assert read_json(LATEST)["declaration"] == declared and len(ran()) == 2
    assert Path("results/t_latest.json.damaged.1").read_text() == content


def test_a_damaged_result_file_of_a_label_that_no_ledger_knows_is_refused_and_left():
    assert run(make(seeds=[1])) == 0
    LATEST.write_text('{"runs": 3}')
    with pytest.raises(ValueError, match="t_latest.json.*may hold the declaration of label t"):
        run(make(seeds=[1]))
    assert LATEST.read_text() == '{"runs": 3}'
    LATEST.unlink()
    assert run(make(seeds=[1])) == 0 and len(ran()) == 2
