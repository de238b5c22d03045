"""
run.json and metrics.jsonl: their content, their state after a kill, the rows cut off at a resume, and the sinks.

python -m pytest tests/test_record.py -q
"""

import json
import os
import stat

import pytest

from nanochat.record import SCHEMA_VERSION, STATUSES, RunRecord, last_metrics_row, read_metrics, read_record, record_dir


@pytest.fixture
def record(tmp_path):
    return RunRecord(tmp_path, "tag", {"seed": 1})


class Sink:
    def __init__(self):
        self.rows, self.finished = [], 0

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished += 1


def fill(record, steps):
    for step in steps:
        if step % 10 == 0:
            record.log({"step": step, "val/bpb": 3 - step / 100})
        record.log({"step": step, "train/loss": 1 / (step + 1)})


def test_record_lies_where_readers_look_and_runs_until_finished(record, tmp_path):
    assert read_record(tmp_path, "tag") is None
    record.update(config={"depth": 4})
    assert record_dir(tmp_path, "tag") == tmp_path / "records" / "tag"
    facts = {"schema_version": SCHEMA_VERSION, "run_id": "tag", "seed": 1, "config": {"depth": 4}}
    assert read_record(tmp_path, "tag") == {**facts, "status": "running"}
    record.finish("ok", results={"val_bpb": 1.5})
    assert read_record(tmp_path, "tag") == {**facts, "status": "ok", "results": {"val_bpb": 1.5}}


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_can_end_a_run(record, tmp_path, status):
    record.finish(status)
    assert read_record(tmp_path, "tag")["status"] == status


def test_unknown_status_is_a_bug(record):
    for status in ("running", "done"):
        with pytest.raises(AssertionError):
            record.finish(status)


@pytest.mark.parametrize("content", [b"", b'{"run_id": "t', b"\xff\xfe\x00", b"[]", b'{"results": 3}',
                                     b'{"config": [1]}', b'{"status": 1}', b'{"error": {}}', b"\0" * 4096])
def test_damaged_record_is_named_and_is_not_a_missing_one(tmp_path, content):
    (tmp_path / "records" / "tag").mkdir(parents=True)
    (tmp_path / "records" / "tag" / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged") as caught:
        read_record(tmp_path, "tag")
    assert str(tmp_path / "records" / "tag" / "run.json") in str(caught.value) and "\n" not in str(caught.value)


def test_record_that_is_not_there_is_none(tmp_path):
    assert read_record(tmp_path, "tag") is None
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "file").write_text("not a folder")
    assert read_record(tmp_path, "file") is None


def test_what_was_not_measured_is_never_written_as_nan(record, tmp_path):
    record.update(results={"val_bpb": None})
    with pytest.raises(ValueError):
        record.update(results={"val_bpb": float("nan")})
    with pytest.raises(ValueError):
        record.log({"step": 0, "train/loss": float("inf")})
    assert read_record(tmp_path, "tag")["results"] == {"val_bpb": None} and read_metrics(record.metrics_path) == []


def test_metrics_come_back_row_by_row(record):
    fill(record, range(25))
    rows = read_metrics(record.metrics_path)
    assert len(rows) == 28 and rows[0] == {"step": 0, "val/bpb": 3.0} and rows[-1] == {"step": 24, "train/loss": 1 / 25}
    assert last_metrics_row(record.metrics_path) == rows[-1]


def test_rows_with_odd_characters_stay_one_row(record):
    rows = [{"step": i, "note": note} for i, note in enumerate(("a\nb", "\u2028", "\x1c\x85", "é"))]
    for row in rows:
        record.log(row)
    assert read_metrics(record.metrics_path) == rows and last_metrics_row(record.metrics_path) == rows[-1]


def test_torn_last_line_is_left_out(record):
    fill(record, range(3))
    whole = record.metrics_path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last)):
        record.metrics_path.write_bytes(whole[:-cut])
        assert [row["step"] for row in read_metrics(record.metrics_path)] == [0, 0, 1]
        assert last_metrics_row(record.metrics_path) == {"step": 1, "train/loss": 0.5}


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\0\0\n\0\0\n", b'{"step": 3, "tr\0\0\0', b'{"step": 3}\0', b"\n"])
def test_what_a_power_failure_leaves_at_the_end_is_left_out(record, tail):
    fill(record, range(3))
    rows = read_metrics(record.metrics_path)
    with open(record.metrics_path, "ab") as f:
        f.write(tail)
    assert read_metrics(record.metrics_path) == rows and last_metrics_row(record.metrics_path, window=64) == rows[-1]
    record.cut_back(2)
    assert [row["step"] for row in read_metrics(record.metrics_path)] == [0, 0, 1]


@pytest.mark.parametrize("line", ["[1, 2]", "3", "null", '{"step": 1, "train', '{"val/bpb": 2.0}', '{"step": "1"}',
                                  '{"step": true}', '{"step": 1, "val/bpb": "low"}', '{"step": 1, "val/bpb": NaN}',
                                  '{"step": 1, "total_training_time": [1]}', "\0\0", "[" * 5000, "9" * 5000])
def test_line_of_another_shape_in_the_middle_is_named(record, line):
    fill(record, range(1))
    with open(record.metrics_path, "a") as f:
        f.write(line + "\n")
    fill(record, range(1, 3))
    with pytest.raises(ValueError, match="metrics.jsonl, line 3 is damaged: ") as caught:
        read_metrics(record.metrics_path)
    assert "\n" not in str(caught.value) and "take that line out" in str(caught.value)
    assert last_metrics_row(record.metrics_path)["step"] == 2


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == [] and last_metrics_row(tmp_path / "none.jsonl") is None
    (tmp_path / "empty.jsonl").touch()
    assert read_metrics(tmp_path / "empty.jsonl") == [] and last_metrics_row(tmp_path / "empty.jsonl") is None
    (tmp_path / "torn.jsonl").write_text('{"step": 0')
    assert read_metrics(tmp_path / "torn.jsonl") == [] and last_metrics_row(tmp_path / "torn.jsonl") is None


def test_last_row_is_found_when_rows_are_longer_than_the_window(record):
    for step in range(5):
        record.log({"step": step, "note": "x" * 300})
    assert last_metrics_row(record.metrics_path, window=350)["step"] == 4
    assert last_metrics_row(record.metrics_path, window=100)["step"] == 4


def test_cut_back_drops_what_a_resumed_run_writes_again(record):
    fill(record, range(25))
    whole = read_metrics(record.metrics_path)
    with open(record.metrics_path, "a") as f:
        f.write('{"step": 25, "tr')  # killed in the middle of a line
    record.cut_back(20)
    assert read_metrics(record.metrics_path) == [row for row in whole if row["step"] < 20]
    fill(record, range(20, 25))
    assert read_metrics(record.metrics_path) == whole, "as if it had never stopped"


def test_cut_back_to_the_start_and_of_nothing(record):
    record.cut_back(0)
    fill(record, range(3))
    record.cut_back(0)
    assert read_metrics(record.metrics_path) == []
    assert sorted(p.name for p in record.dir.iterdir()) == ["metrics.jsonl"], "no temporary file stays"


@pytest.mark.skipif(os.name == "nt", reason="a directory cannot be fsynced there")
def test_cut_back_is_durable(record, monkeypatch):
    """File, rename, folder: the order of common.py's durable files."""
    fill(record, range(3))
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (
        events.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    record.cut_back(2)
    assert events == ["file", "rename", "folder"]


def test_record_that_is_saved_has_its_metrics_on_disk(record, monkeypatch):
    """update() goes with a checkpoint: rows logged before it must survive a power cut as the checkpoint does."""
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), fsync(fd))[1])
    fill(record, range(3))
    record.update()
    assert os.stat(record.metrics_path).st_ino in synced


def test_sinks_get_every_row_and_the_end(tmp_path):
    sink = Sink()
    record = RunRecord(tmp_path, "tag", {}, sinks=[sink])
    fill(record, range(3))
    assert sink.rows == read_metrics(record.metrics_path) and sink.finished == 0
    record.finish("ok")
    assert sink.finished == 1


def test_row_is_one_line_of_json(record):
    record.log({"step": 1, "train/loss": 0.1})
    text = record.metrics_path.read_text()
    assert text.count("\n") == 1 and json.loads(text) == {"step": 1, "train/loss": 0.1}


@pytest.mark.parametrize("held", [False, True])
def test_what_a_killed_write_left_goes_when_the_run_begins_again(record, tmp_path, held):
    record.update()
    for name in (".run.json.9.tmp", ".metrics.jsonl.9.tmp"):
        (record.dir / name).write_text("{")
    RunRecord(tmp_path, "tag", {}, held=held).release(0)
    assert sorted(path.name for path in record.dir.iterdir()) == ["metrics.jsonl", "run.json"]
