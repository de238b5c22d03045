"""
Append-only files: what was acknowledged stays, and columns never move.

python -m pytest tests/test_csv_file.py -v
"""

import multiprocessing

import pytest

from nanochat.lab import csv_file
from nanochat.lab.csv_file import append_row, check_header, read_rows, read_schema

SCHEMA = ["seed", "val_bpb", "status"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "x_history.csv"


def row(seed, **values):
    return {"seed": seed, "val_bpb": None, "status": "ok", **values}


def test_rows_are_appended_under_one_header_and_none_is_an_empty_cell(path):
    append_row(path, SCHEMA, row(1, val_bpb=2.5))
    append_row(path, SCHEMA, row(2, status='a "quoted", cell', extra="left out"))
    assert path.read_text() == 'seed,val_bpb,status\n1,2.5,ok\n2,,"a ""quoted"", cell"\n'
    assert [r["val_bpb"] for r in read_rows(path)] == ["2.5", ""]


def test_foreign_header_is_refused_and_nothing_is_written(path):
    path.parent.mkdir()
    path.write_text("seed,status,val_bpb\n1,ok,2.5\n")
    with pytest.raises(ValueError, match="other columns: seed,status,val_bpb"):
        append_row(path, SCHEMA, row(2))
    assert path.read_text() == "seed,status,val_bpb\n1,ok,2.5\n"


def test_missing_column_is_refused(path):
    with pytest.raises(ValueError, match="lacks val_bpb"):
        append_row(path, SCHEMA, {"seed": 1, "status": "ok"})
    assert not path.exists()


@pytest.mark.parametrize("torn", ["3,2.4", "3"])
def test_torn_last_line_is_dropped_on_the_next_append(path, torn):
    append_row(path, SCHEMA, row(1))
    with open(path, "a") as f:
        f.write(torn)
    assert len(read_rows(path)) == 1
    append_row(path, SCHEMA, row(2))
    assert [r["seed"] for r in read_rows(path)] == ["1", "2"]


def test_torn_header_is_written_again(path):
    path.parent.mkdir()
    path.write_text(",".join(SCHEMA))  # the newline never reached the disk
    append_row(path, SCHEMA, row(1))
    assert path.read_text() == "seed,val_bpb,status\n1,,ok\n"


def test_processes_that_append_at_once_lose_no_row(path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(append_row, [(path, SCHEMA, row(i)) for i in range(40)])
    assert sorted(int(r["seed"]) for r in read_rows(path)) == list(range(40))


def test_schema_must_be_there_and_hold_a_header_only(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_file, "SCHEMA_DIR", tmp_path)
    with pytest.raises(ValueError, match="missing: it fixes the column order"):
        read_schema("history")
    (tmp_path / "history_schema.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="one line, the header"):
        read_schema("history")
    (tmp_path / "history_schema.csv").write_bytes(b"a,b\r\n")  # a checkout that converts line ends
    assert read_schema("history") == ["a", "b"]


def test_history_schema_is_the_published_order():
    assert ",".join(read_schema("history")) == (
        "timestamp,run_tag,recipe,seed,duration_sec,trained_tokens,avg_tok_per_sec,val_bpb,min_val_bpb,num_iterations,"
        "window_pattern,resumed_from_step,run_status,arm,candidate,label,config_hash")


def test_no_file_and_an_empty_file_have_no_foreign_header(path):
    check_header(path, SCHEMA)
    path.parent.mkdir()
    path.touch()
    check_header(path, SCHEMA)
