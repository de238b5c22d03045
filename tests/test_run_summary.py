"""
RunSummary: what result files hold of a run, and what a file of another version or with a wrong value does.

python -m pytest tests/test_run_summary.py -q
"""

import json
from dataclasses import fields

import pytest

from nanochat.lab.csv_file import read_schema
from nanochat.lab.metrics import METRICS
from nanochat.lab.runs import LATER, RunSummary

RUN = {"timestamp": "2026-01-01T00:00:00+00:00", "run_tag": "nc_d4_control_s1", "seed": 1, "duration_sec": 12,
       "val_bpb": 1.25, "run_status": "ok", "arm": "control", "reused": False, "threads": 2, "steps_to_target": 7.5}


def test_run_of_a_file_is_written_as_it_was_read():
    whole = {f.name: None for f in fields(RunSummary) if f.name not in LATER} | RUN
    again = RunSummary.from_json(json.loads(json.dumps(whole))).to_json()
    assert again == whole and list(again) == list(whole)


def test_first_fields_are_the_columns_of_the_history():
    names, schema = [f.name for f in fields(RunSummary)], read_schema("history")
    assert names[:len(schema)] == schema


def test_every_metric_is_a_field():
    assert {metric.key for metric in METRICS.values()} <= {f.name for f in fields(RunSummary)}


def test_missing_keys_are_none_and_unknown_ones_are_left_out():
    run = RunSummary.from_json(RUN | {"of_a_later_version": 1})
    assert run.val_bpb == 1.25 and run.error is None and "of_a_later_version" not in run.to_json()


@pytest.mark.parametrize("name,value", [("val_bpb", "1.25"), ("seed", 1.5), ("seed", True), ("arm", 3), ("reused", 1),
                                        ("error", [])])
def test_value_of_another_type_is_refused_by_name_and_file(name, value):
    with pytest.raises(ValueError, match=f"results/x_latest.json: {name} of a run is .*expected"):
        RunSummary.from_json(RUN | {name: value}, "results/x_latest.json")


def test_entry_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="results/x.json: a run is 'ok'"):
        RunSummary.from_json("ok", "results/x.json")


def test_run_of_a_record_that_says_running_has_crashed_and_has_no_final_value():
    run = RunSummary.of_record({"status": "running", "results": {"val_bpb": 2.0, "min_val_bpb": 1.9}}, arm="gate")
    assert (run.run_status, run.val_bpb, run.min_val_bpb, run.arm) == ("crash", None, 1.9, "gate")


def test_what_is_told_stands_in_for_what_the_record_says():
    record = {"status": "ok", "error": "old", "config": {"seed": 7}}
    run = RunSummary.of_record(record, run_status="timeout", seed=1, error=None)
    assert (run.run_status, run.seed, run.error) == ("timeout", 1, None)
