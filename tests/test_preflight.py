"""
What a protocol says before it begins: cells, time, disk, and whether the text is enough.

python -m pytest tests/test_preflight.py -q
"""

import shutil
from types import SimpleNamespace

import pytest

from nanochat.lab import own_data
from nanochat.lab.ledger import experiments
from nanochat.lab.protocol import preflight
from nanochat.lab.protocol.preflight import lines
from nanochat.lab.protocol.protocol import run
from nanochat.lab.protocol.session import Session
from nanochat.stage import BASE
from tests.lab_case import enter, make

DEVICE = "cpu: this one"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)


def cost(config):
    """Stands in for cost.resolve: FLOPs in proportion to the depth."""
    tokens = config.num_iterations * config.total_batch_size
    return SimpleNamespace(flops_per_token=1000.0 * config.depth, total_tokens=tokens, num_params=2_000_000)


def session(tmp_path, seeds=(1, 2, 3), cost=cost, **options):
    protocol = make(seeds=list(seeds), ledger=tmp_path / "ledger.csv", machine="this one", **options)
    protocol.cost = cost
    made = Session(protocol)
    made.declare()
    return made


def ran(tmp_path, made, sec, device=DEVICE, depth=4, steps=60, status="ok", same=True):
    """A row of a run on a machine that took `sec` seconds."""
    control = made.protocol.arms[0].config
    command = f"python -m scripts.base_train --depth={depth} --num-iterations={steps} " \
        f"--total-batch-size={control.total_batch_size} --device-batch-size=8 --max-seq-len=256"
    row = dict.fromkeys(experiments.schema()) | {
        "profile_hash": made.protocol.profile_hash if same else "another", "device": device, "status": status,
        "wall_time_sec": sec, "command": command, "profile": "smoke-cpu", "label": "noise", "arm": "control", "seed": 1,
        "run_id": f"r{sec}", "config_hash": f"h{sec}"}
    experiments.append(tmp_path / "ledger.csv", row)


def test_nothing_is_promised_where_this_machine_has_run_nothing(tmp_path):
    made = session(tmp_path, jobs=2)
    ran(tmp_path, made, 5.0, device="cpu: another one")
    ran(tmp_path, made, 6.0, status="crash")
    cells, time, *_ = lines(made)
    assert cells == "6 cells, 0 of them reused; 2 side by side"
    assert time == "time: unknown until the first cell has run"


@pytest.mark.parametrize("jobs, sec", [(1, "6:00"), (2, "3:00"), (4, "2:00")])
def test_time_is_of_this_workload_on_this_machine(tmp_path, jobs, sec):
    """Six cells of a minute each: with four side by side they take two turns."""
    made = session(tmp_path, jobs=jobs)
    for seconds in (50.0, 60.0, 700.0):
        ran(tmp_path, made, seconds)
    said = lines(made)[1]
    assert said.startswith(f"time: about {sec}, computed from 3 runs of this workload on this machine (1:00 a run")


def test_time_of_another_workload_is_scaled_by_flops_and_said(tmp_path):
    made = session(tmp_path, jobs=1)
    ran(tmp_path, made, 10.0, depth=2, steps=30, same=False)  # a quarter of the FLOPs
    said = lines(made)[1]
    assert said.startswith("time: about 4:00, computed from a run of smoke-cpu on this machine (0:10, row 1), scaled")
    assert "(0:40 a run" in said


def test_times_of_the_projects_rows_are_not_said_to_be_of_this_machine(tmp_path, monkeypatch):
    """A device of the same name may be another machine; one run of the user's own says more than all of these."""
    monkeypatch.setattr(experiments, "OWN", tmp_path / "ledger.csv")
    monkeypatch.setattr(experiments, "REFERENCE", tmp_path / "project" / "ledger.csv")
    made = session(tmp_path, jobs=1)
    (tmp_path / "project").mkdir()
    for seconds in (50.0, 60.0, 70.0):
        ran(tmp_path / "project", made, seconds)
    assert "from 3 runs of this workload that came with the project, on a device of this name" in lines(made)[1]
    ran(tmp_path, made, 120.0)
    assert lines(made)[1].startswith("time: about 12:00, computed from 1 run of this workload on this machine (2:00")


def test_longer_arm_takes_longer(tmp_path):
    made = session(tmp_path, seeds=(1,), candidates=["long: --num-iterations=180"], jobs=1)
    ran(tmp_path, made, 60.0)
    assert lines(made)[1].startswith("time: about 4:00")


def test_finished_cells_are_counted_as_reused_and_tell_the_size_of_a_checkpoint(tmp_path):
    first = session(tmp_path, seeds=(1,))
    assert run(first.protocol) == 0
    folder = BASE.folder(first.protocol.home, first.protocol.cells[0].tag)
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"x" * 3_000_000)
    made = session(tmp_path, seeds=(1, 2))
    cells, _, disk, *_ = lines(made)
    assert cells.startswith("4 cells, 2 of them reused") and disk.startswith("disk: 6 MB for the checkpoints of 2")
    assert run(made.protocol) == 0
    assert lines(session(tmp_path, seeds=(1, 2))) == []


def test_disk_that_is_clearly_too_small_is_refused_before_the_first_run(tmp_path, monkeypatch):
    made = session(tmp_path)
    assert "disk: 144 MB" in "".join(lines(made))  # 6 cells, 2 M parameters, 12 bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000_000))
    with pytest.raises(ValueError, match="6 cells leave about 144 MB of checkpoints in .*, and 50 MB are free there"):
        run(made.protocol)
    assert not (tmp_path / "results" / "t_history.csv").exists()


def test_cells_of_later_looks_are_no_promise(tmp_path):
    made = session(tmp_path, seeds=range(1, 13), until_decided=True, noise="own")
    cells = lines(made)[0]
    first = made.declaration.looks[0] * 2
    assert cells.startswith(f"24 cells at most (it may end after {first})") and first < 24


def test_text_that_repeats_is_said_with_the_way_out(tmp_path, monkeypatch):
    made = session(tmp_path)
    monkeypatch.setattr(own_data, "train_tokens", lambda home: 61_440)
    said = lines(made)[-1]
    assert said.startswith("text: a run reads 122,880 tokens, and the corpus has about 61,440, so they repeat 2.0 ")
    assert "NUM_ITERATIONS=30" in said
    monkeypatch.setattr(own_data, "train_tokens", lambda home: 200_000)
    assert not any(line.startswith("text") for line in preflight.lines(made))
