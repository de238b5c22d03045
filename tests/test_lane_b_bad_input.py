"""
Inputs that make no sense: both commands say in a line what is wrong with them, and an older result never stays in the
place of the new result.

python -m pytest tests/test_lane_b_bad_input.py -v
"""

import json

import numpy as np
import pytest

from nanochat.lab.commands import require_writable
from scripts import lane_b_infer_ratio, lane_b_stats

BY_HAND = ["--num-scaling-params=2000000", "--ref-scaling-params=90000000", "--allow-repeated-data",
           "--target-threshold=2.1", "--default-ratio=2", "--flags=--depth=2 --device-batch-size=8 --max-seq-len=256"]
ALPHA = ["--alpha=0.19", "--alpha-ci", "0.16", "0.22"]
POINTS = ["--point=1e6:2.31:1", "--point=2e6:2.22:1", "--point=4e6:2.14:1"]


@pytest.fixture
def typed(tmp_path, capsys):
    """Runs a command over an older JSON; returns (exit code, the line of its error, the JSON)."""
    def run(command, *argv):
        out = tmp_path / "out.json"
        out.write_text('{"chosen_ratio": 7, "alpha_d": 7}')
        code, (_, err) = command.main([*argv, f"--output-json={out}"]), capsys.readouterr()
        assert err.count("\n") <= 1
        return code, err, json.loads(out.read_text())
    return run


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("argv, message", [
    (["--seed=-1"], "--seed=-1: expected 0 or more"), (["--default-ratio=nan"], "--default-ratio=nan"),
    (["--default-ratio=-inf"], "--default-ratio=-inf"), (["--point=8e6:1e308:1"], "8e+06:1e+308"),
    (["--point=0.5:3:1"], "0.5:3: expected 1 to"), (["--point=1e300:1:1"], "1e+300:1: expected"),
    (["--label="], "expected calibration runs")])
def test_inference_names_what_is_wrong_and_leaves_a_fallback(typed, argv, message):
    points = [] if argv == ["--label="] else POINTS
    code, err, facts = typed(lane_b_infer_ratio, *ALPHA, *points, *BY_HAND, *argv)
    assert code == 2 and message in err
    assert facts["decision"] == "fallback" and facts["error"] == {"code": "bad_input", "message": facts["reasons"][0]}
    assert facts["chosen_ratio"] == (None if "default-ratio" in argv[0] else 2.0) and message in facts["reasons"][0]


@pytest.mark.parametrize("result", [[1], {"runs": [{}]}, {"runs": 3}, None])
def test_a_result_file_of_another_form_is_named(typed, tmp_path, monkeypatch, result):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x_latest.json").write_text(json.dumps(result))
    code, err, facts = typed(lane_b_infer_ratio, *ALPHA, "--label=x", "--target-threshold=2")
    assert code == 2 and "x_latest.json is no result file" in err and facts["error"]["code"] == "bad_input"


@pytest.mark.parametrize("text, message", [
    ("", "no statistics of schema version 1 (damaged: no"), ("[", "no statistics of schema version 1 (damaged: no"),
    ('"alpha_d"', "no statistics of schema version 1 (damaged: expected a JSON object"),
    *((json.dumps({"schema_version": 1, "alpha_d": 0.2} | wrong), "no statistics") for wrong in (
        {"alpha_d": "0.2"}, {"alpha_d_ci95": [0.1]}, {"alpha_d_ci95": ["a", 1]}, {"n_star_tokens": "9"},
        {"warnings": 5}, {"error": "no"}))])
def test_statistics_of_another_form_are_named(typed, tmp_path, text, message):
    (tmp_path / "stats.json").write_text(text)
    code, err, facts = typed(lane_b_infer_ratio, f"--stats={tmp_path / 'stats.json'}", *POINTS, *BY_HAND)
    assert (code == 2 and f"stats.json: {message}" in err
            and facts["error"]["code"] == "bad_input")


@pytest.mark.parametrize("argv, message", [
    (["--tokens=nowhere.npy"], "nowhere.npy"), (["--tokens=."], "Errno"),
    (["--tokens=text.npy"], "expected what numpy.save writes"),
    (["--tokens=objects.npy"], "expected what numpy.save writes"), (["--tokens=few.npy", "--seed=-1"], "--seed=-1"),
    (["--tokens=few.npy", "--top-k=0"], "--top-k=0")])
def test_statistics_that_cannot_be_made_replace_the_older_ones_and_the_inference_stops(
        typed, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npy").write_text("hello")
    np.save("few.npy", np.arange(9))
    np.save("objects.npy", np.array([1, "a"], dtype=object))
    code, err, facts = typed(lane_b_stats, *argv)
    assert code == 2 and message in err and "pickle" not in err
    assert facts["error"]["code"] == "bad_input" and message in facts["error"]["message"] and facts["alpha_d"] is None
    (tmp_path / "stats.json").write_text(json.dumps(facts))
    code, err, inferred = typed(lane_b_infer_ratio, "--stats=stats.json", *POINTS, *BY_HAND)
    assert code == 2 and message in err and inferred["decision"] == "fallback"


def test_ids_below_zero_are_named_with_a_vocabulary_that_can_be(typed, tmp_path):
    np.save(tmp_path / "x.npy", np.full(9, -1))
    code, err, facts = typed(lane_b_stats, f"--tokens={tmp_path / 'x.npy'}", "--gamma-source=none")
    assert code == 2 and "token id -1: expected 0 to 0" in err and facts["error"]["code"] == "ids_out_of_range"


@pytest.mark.parametrize("name", ["", "file/out.json", "file/new/out.json"])
@pytest.mark.parametrize("option", ["--output-json", "--plot"])
def test_a_result_that_cannot_be_written_is_refused_before_anything_is_measured(
        tmp_path, capsys, monkeypatch, name, option):
    (tmp_path / "file").touch()
    monkeypatch.setattr(lane_b_stats, "measure", lambda args: pytest.fail("measured"))
    monkeypatch.setattr(lane_b_infer_ratio, "answer", lambda args: pytest.fail("answered"))
    for command, argv in ((lane_b_stats, []), (lane_b_infer_ratio, [*ALPHA, *POINTS, *BY_HAND])):
        assert (command.main([*argv, f"{option}={tmp_path / name}"]) == 2
                and "cannot be written" in capsys.readouterr().err)


def test_a_result_may_be_in_a_folder_that_is_yet_to_be_made(tmp_path):
    require_writable(None, tmp_path / "a" / "b" / "out.json", tmp_path / "out.json")
    assert not list(tmp_path.iterdir())
