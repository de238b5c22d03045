"""
Rows of a run: golden_runs.json has made-up records, and the entry and the CSV lines that each of them gave before runs
were typed: in the history, and in the ledger as a cell of a protocol, as a banked run and as an import.

python -m pytest tests/test_results.py -q
"""

import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat.common import write_json
from nanochat.lab.csv_file import append_row
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.imports import record_of_metas
from nanochat.lab.protocol import results
from nanochat.lab.protocol.results import Results, summary_of, tags_of
from nanochat.lab.protocol.runner import Outcome
from nanochat.lab.runs import RunSummary
from scripts.noise import noise_row

GOLDEN = json.loads(Path(__file__).with_name("golden_runs.json").read_text(encoding="utf-8"))
each_run = pytest.mark.parametrize("case", GOLDEN["runs"], ids=lambda case: case["name"])


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(results, "usable_cores", lambda: 2)


def run_of(case) -> RunSummary:
    cell, told = SimpleNamespace(**case["cell"]), case["protocol"]
    cell.arm = SimpleNamespace(name=cell.arm, flags=cell.flags)
    cell.config = SimpleNamespace(num_iterations=cell.num_iterations, window_pattern=cell.window_pattern)
    outcome = Outcome(record=case["record"], **case["outcome"])
    return summary_of(cell, outcome, label=told["label"], recipe=told["profile"], declared_at=told["declared_at"],
                      timestamp=told["timestamp"])


def line_of(folder, append) -> str:
    """What append(path) writes under the header."""
    append(folder / "file.csv")
    return (folder / "file.csv").read_text(encoding="utf-8").split("\n", 1)[1]


@each_run
def test_entry_of_the_result_file_is_what_it_was(case):
    assert json.dumps(run_of(case).to_json()) == json.dumps(case["run"])  # as text: order counts, and NaN is no number


@each_run
def test_line_of_the_history_is_what_it_was(case, tmp_path):
    Results(tmp_path, "t").append(run_of(case))
    assert (tmp_path / "t_history.csv").read_text(encoding="utf-8").split("\n", 1)[1] == case["lines"]["history"]


@each_run
def test_line_of_a_protocols_cell_in_the_ledger_is_what_it_was(case, tmp_path):
    if not case["record"]:
        assert "of_protocol" not in case["lines"]  # a run without a record gets no row
        return
    row = experiments.row_of_run(run_of(case), case["record"], GOLDEN["metrics"], case["protocol"]["target"])
    assert line_of(tmp_path, partial(experiments.append, row=row)) == case["lines"]["of_protocol"]


@each_run
def test_line_of_a_banked_run_is_what_it_was(case, tmp_path):
    run, home = run_of(case), tmp_path / "home"
    if case["record"]:
        folder = home / "records" / run.run_tag
        folder.mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in GOLDEN["metrics"])
        # As the trainer writes it: run.json is strict JSON, where a loss that is not finite is null.
        write_json(folder / "run.json", json.loads(json.dumps(case["record"]), parse_constant=lambda name: None))
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    protocol = SimpleNamespace(home=home, profile=SimpleNamespace(name=case["protocol"]["profile"]))
    row = noise_row(protocol, RunSummary.from_json(json.loads(json.dumps(run.to_json()))))
    assert line_of(tmp_path, partial(experiments.append, row=row)) == case["lines"]["of_bank"]


@each_run
def test_line_of_an_import_is_what_it_was(case, tmp_path):
    row = experiments.row_of_record(case["record"], GOLDEN["metrics"])
    assert line_of(tmp_path, partial(experiments.append, row=row)) == case["lines"]["of_import"]


@pytest.mark.parametrize("case", GOLDEN["imported"], ids=lambda case: case["name"])
def test_record_and_line_of_upstreams_meta_files_are_what_they_were(case, tmp_path):
    folder = tmp_path / "d12"
    folder.mkdir()
    for meta in case["metas"]:
        (folder / f"meta_{meta['step']:06d}.json").write_text(json.dumps(meta), encoding="utf-8")
    record, metrics = record_of_metas(folder)
    assert (record, metrics) == (case["record"], case["metrics"])
    row = experiments.row_of_record(record, metrics, label="up", arm="base")
    assert line_of(tmp_path, partial(experiments.append, row=row)) == case["line"]


def test_history_is_a_projection_of_the_run(tmp_path):
    with pytest.raises(ValueError, match="the row lacks timestamp"):
        append_row(tmp_path / "x.csv", Results(tmp_path, "t").schema, {})
    assert set(Results(tmp_path, "t").schema) <= RunSummary().to_json().keys()


@pytest.mark.parametrize("facts", [[], {"runs": 3}, {"runs": [{"seed": 1}]}])
def test_file_that_is_no_result_file_is_named(tmp_path, facts):
    (tmp_path / "t_latest.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ValueError, match="--label=t: .*t_latest.json is no result file"):
        tags_of("t", tmp_path)


def test_value_of_another_type_in_a_result_file_is_refused_by_name(tmp_path):
    (tmp_path / "t_latest.json").write_text(json.dumps({"runs": [{"run_tag": "x", "seed": "1"}]}), encoding="utf-8")
    with pytest.raises(ValueError, match="t_latest.json: seed of a run is '1', expected int"):
        Results(tmp_path, "t").read_runs()


def test_meta_file_that_was_cut_off_is_named(tmp_path):
    (tmp_path / "meta_000005.json").write_text('{"step": 5, "val_', encoding="utf-8")
    with pytest.raises(ValueError, match="meta_000005.json: expected the meta file of a checkpoint"):
        record_of_metas(tmp_path)


def test_what_killed_writes_left_is_swept_and_other_labels_files_stay(tmp_path):
    (tmp_path / "a").mkdir()
    left = [".a_latest.json.9.tmp", ".a.png.9.tmp", "a/.report.html.9.tmp", ".index.html.9.tmp"]
    stays = [".b_latest.json.9.tmp", ".index.html.8.tmp", "a_latest.json"]
    for name in left + stays:
        (tmp_path / name).write_text("")
    os.utime(tmp_path / ".index.html.9.tmp", (1, 1))
    Results(tmp_path, "a").sweep()
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(stays)
