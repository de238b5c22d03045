"""
Stored files of another shape: a value of another type anywhere in them is one line that names the file, or is ignored.
It is never a traceback, whoever reads the file.

python -m pytest tests/test_other_shapes.py -q
"""

import contextlib
import copy
import json

import pytest

from nanochat.common import read_json
from nanochat.lab.cycle.rules import CycleRecord
from nanochat.lab.cycle.walk import read_cycles
from nanochat.lab.horizon import entropy, run_log
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.imports import find_run
from nanochat.lab.ledger.rerun import protocol_of
from nanochat.lab.protocol.protocol import run
from nanochat.lab.protocol.results import Results, tags_of
from nanochat.lab.report.result_check import changed_verdicts, read_judged
from nanochat.lab.trees.metas import read_metas
from scripts import gates as gates_script
from tests.lab_case import enter, make
from tests.ledger_case import metrics, record

OTHERS = [3, -1.5, None, [], {}, "x", [None], {"a": 1}, True, 10 ** 400]
TOO_LARGE, DEEP = '"here": 1e999', "[" * 3000 + "]" * 3000


def places(facts, at=()):
    """The path of every value in a JSON value; of a list the first entry stands for all."""
    yield at
    inner = facts.items() if isinstance(facts, dict) else [(0, facts[0])] if isinstance(facts, list) and facts else []
    for key, value in inner:
        yield from places(value, (*at, key))


def changed(facts, at, value):
    if not at:
        return value
    facts = copy.deepcopy(facts)
    inner = facts
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return facts


def texts(facts):
    """The file with each of its values replaced by each of the others; and with values that JSON can spell."""
    for at in places(facts):
        for value in OTHERS:
            yield json.dumps(changed(facts, at, value))
        yield json.dumps(changed(facts, at, "HERE")).replace('"HERE"', "1e999")
    yield json.dumps(facts)[:-1] + f', "more": {DEEP}}}'


def refused_or_read(path, text, read):
    """read() may raise one line that names the file, and nothing else."""
    path.write_text(text, encoding="utf-8")
    try:
        return read()
    except ValueError as e:
        assert "\n" not in str(e) and path.name in str(e), (text[:300], str(e))
    except Exception as e:
        raise AssertionError(f"{type(e).__name__}: {e}; of {text[:300]}") from e


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A result file, and its facts."""
    enter(tmp_path, monkeypatch)
    assert run(make(seeds=[1, 2])) == 0
    path = tmp_path / "results" / "t_latest.json"
    return path, read_json(path)


def test_result_files(results):
    path, facts = results
    row = {"run_id": "nc_t_d4_gate_s1", "config_hash": facts["runs"][0]["config_hash"]}
    facts = {**facts, "runs": facts["runs"][:1]}  # of equal runs one is enough

    def read():
        for use in (lambda: Results(path.parent, "t").read_runs(), lambda: tags_of("t", path.parent)):
            with contextlib.suppress(ValueError):
                use()
        protocol_of(row, path)
        changed_verdicts(path, read_judged(path))
    for text in texts(facts):
        refused_or_read(path, text, read)


@pytest.mark.parametrize("text", ["[]", "null", '{"runs": 3}', '{"declaration": {"arms": 3}}', DEEP, ""])
def test_gates_and_protocol_say_it_in_a_line(results, text, capsys):
    path, _ = results
    path.write_text(text)
    gates_script.main(["--label=t", f"--results-dir={path.parent}"])
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and "t_latest.json" in captured.err or "no declaration" in captured.out


def test_records(tmp_path):
    path = tmp_path / "run" / "run.json"
    path.parent.mkdir()
    rows = metrics()

    def read():
        found = find_run(str(path), tmp_path)[0]
        try:
            experiments.row_of_record(found, rows, {"metric": "val_bpb", "threshold": 2.7})
        except ValueError as e:
            assert "\n" not in str(e)
    for text in texts({**record(), "load_start": 0.5, "versions": {"torch": "2"}}):
        refused_or_read(path, text, read)


def test_metas_of_other_trees(tmp_path):
    path = tmp_path / "meta_000010.json"
    facts = {"step": 10, "val_bpb": 1.1, "loop_state": {"smooth_train_loss": 3.2, "total_training_time": 1.0},
             "total_batch_size": 256, "user_config": {"depth": 4}, "model_config": {"n_layer": 4}}

    def read():
        meta, = read_metas(tmp_path)
        assert meta.is_finite in (True, False) and meta.train_loss is not str and meta.trained_tokens is not str
    for text in texts(facts):
        refused_or_read(path, text, read)


def test_cycles(tmp_path):
    path = tmp_path / "a_cycle.json"
    facts = CycleRecord.from_json({"label": "a", "timestamp": "2026-01-01", "profile": "p", "flags": "",
                                   "accepted": [], "phases": [], "stopped": None, "complete": True}).to_json()
    for text in texts(facts):
        refused_or_read(path, text, lambda: read_cycles(tmp_path))


def test_losses_by_position(tmp_path):
    path = tmp_path / "positions.json"
    facts = {"schema_version": entropy.SCHEMA_VERSION, "contexts": [0, 1], "loss_nats": [3.0, 2.0],
             "se_nats": [0.1, 0.1], "block_loss_nats": [[3.0, 2.0], [3.0, 2.0]]}
    for text in texts(facts):
        refused_or_read(path, text, lambda: entropy.read_positions(path))


def test_inferences(tmp_path):
    path = tmp_path / "inference.json"
    facts = {"schema_version": run_log.INFERENCE_VERSION, "arms": {"control": {"target_param_data_ratio": 12.0}},
             "ratio_ref": 12.0, "direction": "lower", "error": None,
             **dict.fromkeys(run_log.FROM_INFERENCE.values()), "target_metric_name": "val_bpb"}
    path.write_text(json.dumps(facts))
    run_log.check_inference(read_json(path))

    def read():
        found = read_json(path)
        with contextlib.suppress(ValueError):
            run_log.row_of(record(), metrics(), found)
    for text in texts(facts):
        refused_or_read(path, text, read)
