"""
python -m pytest tests/test_twins.py -q
"""

import json
import math
import statistics

import pytest
from scipy.stats import chi2

from nanochat.lab.report.result_file import ResultFile, Settings, path_of
from nanochat.lab.runs import RunSummary
from scripts import machines, twins

BPB = {1: (2.64, 2.6401), 2: (2.66, 2.6598), 3: (2.65, 2.65)}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path_of("t").parent.mkdir()
    return write


def write(label, runs):
    runs = [RunSummary(arm=arm, seed=seed, val_bpb=bpb, run_status="ok", grad_spikes=spikes)
            for arm, seed, bpb, spikes in runs]
    path_of(label).write_text(json.dumps(ResultFile(settings=Settings(label=label), runs=runs).to_json()))


def test_a_line_holds_the_spread_of_seeds_and_that_of_twins(results, capsys):
    runs = [(arm, seed, bpb, 2 if (arm, seed) == ("control", 2) else 0) for seed, pair in BPB.items()
            for arm, bpb in zip(("control", "twin"), pair)]
    results("t", runs)
    assert twins.main(["t"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    sd = statistics.stdev([2.64, 2.66, 2.65])
    low, high = (sd * math.sqrt(2 / chi2.ppf(q, 2)) for q in (0.95, 0.05))
    rms = math.sqrt((1e-4 ** 2 + 2e-4 ** 2 + 0) / 3)
    for text in ("2.6500", f"{sd:.4f}", f"[{low:.4f}, {high:.4f}]", f"{rms:.1e}", "1 of 3"):
        assert text in line


def test_a_protocol_without_twins_is_refused_with_the_way_to_make_one(results, capsys):
    results("t", [("control", 1, 2.6, 0), ("gate", 1, 2.6, 0)])
    assert twins.main(["t"]) == 2
    assert "t: 0 pairs of control and twin ended" in capsys.readouterr().err
    assert twins.main(["missing"]) == 2


# -----------------------------------------------------------------------------
# scripts.machines

def curve(shift=0.0):
    return [{"step": step, "val/bpb": 3.5 - step / 100 + shift * step / 60} for step in machines.STEPS]


def record(dtype="float32"):
    return dict(versions={"torch": "2.9.1"}, resolved={"dtype": dtype}, profile_hash="f" * 64, tree_hash="a" * 64)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr(machines, "prepare", lambda *args: None)
    found = {}
    monkeypatch.setattr(machines, "train", lambda home, dtype: (record(dtype), curve(found.get("shift", 0.0))))
    return found


def test_a_second_machine_is_compared_with_the_first_over_the_whole_curve(trained, capsys, monkeypatch):
    monkeypatch.setattr(machines, "cpu_name", lambda: "First CPU")
    assert machines.main([]) == 0
    monkeypatch.setattr(machines, "cpu_name", lambda: "Second CPU")
    trained["shift"] = -3e-4
    assert machines.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = machines.read_rows(machines.LEDGER)
    assert [row["cpu"] for row in rows] == ["First CPU", "Second CPU"] and rows[1]["val_bpb_60"] == "2.8997000"
    first, second = (line for line in lines[-3:-1])
    assert first.split()[:2] == ["First", "CPU"] and first.endswith("3.0e-04") and second.endswith("0.0e+00")


def test_the_same_run_again_adds_no_row(trained):
    assert machines.main([]) == machines.main([]) == 0
    assert len(machines.read_rows(machines.LEDGER)) == 1
    trained["shift"] = 1e-7
    machines.main([])
    assert len(machines.read_rows(machines.LEDGER)) == 2


def test_only_rows_of_the_same_dtype_are_compared(trained, capsys):
    machines.main([])
    capsys.readouterr()
    machines.main(["--dtype=bfloat16"])
    assert len(capsys.readouterr().out.splitlines()) == 4 and len(machines.read_rows(machines.LEDGER)) == 2


def test_the_columns_are_those_of_the_ledger_in_the_repository():
    header = (machines.REPO_ROOT / machines.REFERENCE).read_text(encoding="utf-8").splitlines()[0]
    assert header.split(",") == machines.COLUMNS
