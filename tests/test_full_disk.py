"""
A disk that is full, as a limit on the size of files: of the record, its metrics, and the checkpoints of a run.

python -m pytest tests/test_full_disk.py -q
"""

import contextlib
import json

import pytest
import torch

from nanochat.checkpoint_manager import find_last_step, save_checkpoint
from nanochat.common import write_json
from nanochat.lab.csv_file import append_row
from nanochat.record import RunRecord, read_metrics, read_record
from tests.tiny import make_base
from tests.train_case import metrics, run

resource = pytest.importorskip("resource")  # POSIX


@contextlib.contextmanager
def files_of_at_most(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_metrics_wait_while_the_disk_is_full_and_no_line_is_torn(base_dir):
    record = RunRecord(base_dir, "r", {})
    record.log({"step": 0})
    size = record.metrics_path.stat().st_size
    with files_of_at_most(size + 5):  # room for half a line
        for step in (1, 2):
            record.log({"step": step})
        assert record.metrics_path.stat().st_size == size
        with pytest.raises(OSError):
            record.update()
    record.log({"step": 3})
    assert [row["step"] for row in read_metrics(record.metrics_path)] == [0, 1, 2, 3]


def test_a_record_that_cannot_be_written_anew_still_says_how_the_run_ended(base_dir):
    record = RunRecord(base_dir, "r", {"config": {f"option_{i}": i for i in range(60)}, "error": None})
    record.update()
    size = (record.dir / "run.json").stat().st_size
    results = {f"result_{i}": i for i in range(60)}
    for status, written in (("ok", "crash"), ("interrupted", "interrupted")):
        with files_of_at_most(size), pytest.raises(OSError):
            record.finish(status, error="x" * 1000, results=results)
        stored = read_record(base_dir, "r")
        assert stored["status"] == written and set(stored["error"]) == {"x"} and "results" not in stored
        assert stored["config"] == record.facts["config"]
    record.finish("ok", results=results)
    assert json.loads((record.dir / "run.json").read_text())["results"] == results


def test_a_checkpoint_that_does_not_fit_says_how_much_is_needed_and_the_run_can_go_on(base_dir, capsys):
    make_base(base_dir)
    run("--model-tag=whole")
    with files_of_at_most(200_000):
        facts = run("--model-tag=a", "--save-every=4")
    assert facts["status"] == "crash" == read_record(base_dir, "a")["status"]
    assert "File too large: step 4 was not saved, a checkpoint needs 1." in facts["error"]
    assert "no step is saved; free some, then train again with --resume" in facts["error"]
    assert not list((base_dir / "base_checkpoints" / "a").iterdir()), "no debris of the failed save"
    assert run("--model-tag=a", "--save-every=4", "--resume")["status"] == "ok"
    assert find_last_step(base_dir / "base_checkpoints" / "a") == 12 and metrics(base_dir, "a") == metrics(base_dir,
                                                                                                          "whole")


def test_a_file_that_does_not_fit_is_named(tmp_path):
    """The system's own message is "No space left on device", of whichever of five folders."""
    table, whole = tmp_path / "table.csv", tmp_path / "whole.json"
    append_row(table, ["a"], {"a": 1})
    before = table.read_bytes()
    with files_of_at_most(len(before) + 5):
        for write in (lambda: append_row(table, ["a"], {"a": "x" * 99}), lambda: write_json(whole, {"a": "x" * 99})):
            with pytest.raises(OSError, match="File too large") as caught:
                write()
            assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert table.read_bytes() == before and not whole.exists()


@pytest.mark.parametrize("reason", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_the_reason_why_a_checkpoint_was_cut_short_is_not_hidden_by_torch(tmp_path, monkeypatch, reason):
    class Stop:
        def __init__(self, f):
            self.f, self.written = f, 0

        def write(self, data):
            self.written += len(data)
            if self.written > 100_000:
                raise reason
            return self.f.write(data)

        def __getattr__(self, name):
            return getattr(self.f, name)
    real = torch.save
    monkeypatch.setattr(torch, "save", lambda obj, f: real(obj, Stop(f)))
    with pytest.raises(type(reason)):
        save_checkpoint(tmp_path, 1, {f"w{i}": torch.ones(20_000) for i in range(4)}, None, {"step": 1})
    assert not list(tmp_path.iterdir())
