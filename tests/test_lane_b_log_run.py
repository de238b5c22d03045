"""
The ledger of Lane B: the content of a row, and the rows that are refused.

python -m pytest tests/test_lane_b_log_run.py -v
"""

import csv
import json
from multiprocessing.pool import ThreadPool

import pytest

from nanochat.common import REPO_ROOT, read_json, write_json
from nanochat.lab.commands import exit_code
from nanochat.lab.csv_file import read_rows, read_schema
from nanochat.lab.horizon.run_log import LEDGER, append, row_of
from scripts.lane_b_infer_ratio import main as infer_ratio
from scripts.lane_b_log_run import main
from tests.calibration_case import ALPHA, RATIO, calibration_run, loss, store
from tests.ledger_case import DATA

COLUMNS = """timestamp_utc git_commit run_id seed dataset_id target_metric_name target_metric_threshold n_scaling_params
    inferred_data_scaling_exponent inferred_target_tokens inferred_target_param_data_ratio confirmation_ratio
    chosen_ratio lane_b_decision time_to_target_sec_measured time_to_target_sec_extrapolated min_val_bpb
    tok_per_sec_median dt_median_ms status notes""".split()


def test_schema_is_the_specified_order():
    assert read_schema("lane_b_inference") == COLUMNS and len(COLUMNS) == 21


@pytest.fixture
def inference(base_dir, tmp_path):
    """The file that the command writes for three stored runs and a target at 1.5 x the default horizon."""
    runs = [calibration_run(share) for share in (0.25, 0.5, 1.0)]
    n = runs[0][0]["resolved"]["num_scaling_params"]
    path = tmp_path / "infer.json"
    assert infer_ratio([f"--alpha={ALPHA}", "--alpha-ci", "0.19", "0.21", "--records",
                        *(store(base_dir, run) for run in runs),
                        f"--target-threshold={loss(1.5 * RATIO * n)}", f"--default-ratio={RATIO}",
                        f"--ratio-ref={RATIO}", f"--output-json={path}"]) == 0
    return path


@pytest.fixture
def log(inference, tmp_path):
    """Runs the command; returns (exit code, rows of the ledger)."""
    ledger = tmp_path / "ledger" / "lane_b.csv"

    def command(*records, file=inference, **options):
        code = main([f"--inference={file}", f"--ledger={ledger}", "--records", *records,
                     *(f"--{k}={v}" for k, v in options.items())])
        return code, read_rows(ledger)
    command.ledger = ledger
    return command


def arm_run(inference, arm, seed=1, *flags, **changes):
    """A run of an arm: the flags that the inference gives for it."""
    own = read_json(inference)["arms"][arm]["flags"].split()
    return calibration_run(1.0, seed, *own, *flags, run_id=f"nc_lane_d2_{arm}_s{seed}", **changes)


def test_row_joins_what_was_predicted_and_what_was_measured(log, inference, base_dir):
    facts = read_json(inference)
    record, rows = arm_run(inference, "inferred")
    run = store(base_dir, (record, rows))
    code, [row] = log(run, notes="first\ntry")
    assert code == 0 and list(row) == COLUMNS
    assert ((row["run_id"], row["seed"], row["dataset_id"], row["status"], row["notes"])
            == (run, "1", DATA, "ok", "inferred arm; first try"))
    assert row["timestamp_utc"] == record["started_at"] and row["git_commit"] == record["git_commit"]
    numbers = ("target_metric_threshold", *COLUMNS[7:13])
    assert {name: float(row[name]) for name in numbers} == {
        "target_metric_threshold": facts["target_metric_threshold"], "n_scaling_params": facts["num_scaling_params"],
        "inferred_data_scaling_exponent": ALPHA, "inferred_target_tokens": facts["target_tokens"],
        "chosen_ratio": pytest.approx(3.0),
        "inferred_target_param_data_ratio": facts["inferred_target_param_data_ratio"],
        "confirmation_ratio": facts["confirmation_ratio"]}
    assert (row["target_metric_name"], row["lane_b_decision"]) == ("val_bpb", "inferred")
    assert (float(row["tok_per_sec_median"]), float(row["dt_median_ms"])) == (2001.0, 1024.0)


def test_time_to_target_is_interpolated_between_validations_and_empty_where_it_was_missed(log, inference, base_dir):
    """The inferred arm ends a part of a step short of D*, and so above the target; its longer neighbour reaches it."""
    runs = [arm_run(inference, arm) for arm in ("inferred", "confirmation")]
    missed, reached = log(*(store(base_dir, run) for run in runs))[1]
    assert missed["time_to_target_sec_measured"] == ""
    before, at, _ = runs[1][1][-3:]
    share = (before["val/bpb"] - read_json(inference)["target_metric_threshold"]) / (before["val/bpb"] - at["val/bpb"])
    crossing = before["total_training_time"] + share * (at["total_training_time"] - before["total_training_time"])
    assert (float(reached["time_to_target_sec_measured"]) == pytest.approx(crossing)
            and reached["time_to_target_sec_extrapolated"] == "")


def test_each_arm_is_told_by_its_ratio(log, inference, base_dir):
    runs = [store(base_dir, arm_run(inference, arm, seed)) for seed in (1, 2)
            for arm in ("control", "inferred", "confirmation")]
    code, rows = log(*runs)
    assert (code == 0
            and [row["notes"] for row in rows] == [f"{arm} arm" for arm in ("control", "inferred", "confirmation")] * 2)
    ratios = [arm["target_param_data_ratio"] for arm in read_json(inference)["arms"].values()]
    assert ([float(row["chosen_ratio"]) for row in rows] == ratios * 2
            and {row["lane_b_decision"] for row in rows} == {"inferred"})


def test_failed_run_gets_a_row_and_what_it_has_not_is_empty(log, inference, base_dir):
    record, _ = arm_run(inference, "confirmation", status="diverged", min_val_bpb=None, tok_per_sec_median=None)
    code, [row] = log(store(base_dir, (record, [])))
    assert code == 0 and row["status"] == "diverged" and row["chosen_ratio"] != ""
    assert (row["min_val_bpb"], row["tok_per_sec_median"], row["time_to_target_sec_measured"]) == ("", "", "")


def test_fallback_has_only_its_control_to_log(log, inference, base_dir, tmp_path):
    inferred = store(base_dir, arm_run(inference, "inferred"))
    path = tmp_path / "refused.json"
    assert infer_ratio([f"--alpha={ALPHA}", "--alpha-ci", "0.19", "0.21", "--records", "lane_0.25_s1", "lane_0.5_s1",
                        "lane_1_s1", "--target-threshold=1.0", f"--default-ratio={RATIO}", f"--ratio-ref={RATIO}",
                        f"--output-json={path}"]) == 3
    code, [row] = log("lane_1_s1", file=path)
    assert (code == 0
            and (row["lane_b_decision"], row["notes"]) == ("fallback", "control arm; inference: target_below_floor"))
    assert row["inferred_target_tokens"] == "" and float(row["chosen_ratio"]) == RATIO
    assert log(inferred, file=path)[0] == 2


def test_run_is_logged_once_and_a_refused_one_leaves_no_row_of_the_others(log, inference, base_dir, capsys):
    control, inferred = (store(base_dir, arm_run(inference, arm)) for arm in ("control", "inferred"))
    assert log(control)[0] == 0
    code, rows = log(inferred, control)
    assert code == 2 and len(rows) == 1 and "already: a run has one row" in capsys.readouterr().err
    assert log(inferred, inferred)[0] == 2 and len(log(inferred)[1]) == 2


def test_run_is_logged_once_where_two_write_at_a_time(log, inference, base_dir):
    row = row_of(*arm_run(inference, "control"), read_json(inference))
    with ThreadPool(8) as pool:
        outcomes = pool.map(lambda _: exit_code(lambda: append(log.ledger, [row])), range(8))
    assert sorted(outcomes, key=bool) == [None] + 7 * [2] and len(read_rows(log.ledger)) == 1


def test_run_of_the_same_name_that_was_started_anew_is_another_run(log, inference, base_dir):
    record, rows = arm_run(inference, "control")
    assert log(store(base_dir, (record, rows)))[0] == 0
    code, logged = log(store(base_dir, (record | {"started_at": "2026-02-02T00:00:00+00:00"}, rows)))
    assert code == 0 and len(logged) == 2 and len({row["run_id"] for row in logged}) == 1


def test_label_adds_the_runs_of_a_protocol_that_are_not_logged_yet(
        log, inference, base_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = [store(base_dir, arm_run(inference, arm)) for arm in ("control", "inferred", "confirmation")]
    command = [f"--inference={inference}", f"--ledger={log.ledger}", "--label=lane"]
    assert main(command) == 2 and "run its protocol first" in capsys.readouterr().err
    (tmp_path / "results").mkdir()
    write_json("results/lane_latest.json", {"runs": [{"run_tag": tag} for tag in runs]})
    log(runs[0])
    assert main(command) == 0 and [row["run_id"] for row in read_rows(log.ledger)] == runs
    assert main(command) == 0 and len(read_rows(log.ledger)) == 3 and "nothing to add" in capsys.readouterr().out
    assert main(command[:2]) == 2 and "no runs: expected --records" in capsys.readouterr().err


def test_foreign_header_is_refused(log, inference, base_dir, capsys):
    log.ledger.parent.mkdir()
    log.ledger.write_text("run_id,seed\nx,1\n")
    assert log(store(base_dir, arm_run(inference, "control")))[0] == 2 and "other columns" in capsys.readouterr().err
    assert log.ledger.read_text() == "run_id,seed\nx,1\n"


@pytest.mark.parametrize("flags, said", [
    (("--target-param-data-ratio=2.5",), "its ratio is 2.5"), (("--depth=3",), "num_scaling_params is"),
    (("--ratio-ref=12",), "ratio_ref is 12.0"),
    (("--num-iterations=50",), "its ratio is None"),
    (("--target-bpb=1.2", "--eval-near-target=10"), "target_bpb is 1.2")])
def test_run_that_contradicts_the_inference_is_refused(log, inference, base_dir, capsys, flags, said):
    code, rows = log(store(base_dir, arm_run(inference, "inferred", 1, *flags)))
    assert code == 2 and not rows and said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dataset_id", "tokenizer_id"])
def test_run_on_another_corpus_is_refused(log, inference, base_dir, capsys, name):
    record, rows = arm_run(inference, "inferred")
    assert (log(store(base_dir, (record | {name: "a" * 64}, rows)))[0] == 2
            and f"{name} is aaaa" in capsys.readouterr().err)


def test_file_that_is_no_inference_or_of_a_metric_without_curve_is_refused(log, inference, base_dir, tmp_path, capsys):
    run, path = store(base_dir, arm_run(inference, "control")), tmp_path / "other.json"
    for changes, said in (({"schema_version": 0}, "schema version 1"),
                          ({"target_metric_name": "val_loss"}, "about val_loss"),
                          ({"direction": "higher"}, "higher is better")):
        write_json(path, read_json(inference) | changes)
        assert log(run, file=path)[0] == 2 and said in capsys.readouterr().err
    path.write_text(json.dumps({"schema_version": 1, "decision": "fallback"}))
    assert log(run, file=path)[0] == 2 and "arms, ratio_ref" in capsys.readouterr().err
    record, rows = arm_run(inference, "inferred", status="running")
    assert log(store(base_dir, (record, rows)))[0] == 2 and "has not ended" in capsys.readouterr().err


def test_rows_of_two_branches_merge(log, inference, base_dir):
    """A row is one line, and the ledger's folder is merged by union."""
    log(store(base_dir, arm_run(inference, "control")), notes="a, b\nc")
    assert len(list(csv.reader(log.ledger.open()))) == 2 == len(log.ledger.read_text().splitlines())
    attributes = (REPO_ROOT / ".gitattributes").read_text()
    assert "dev/ledger/*.csv merge=union" in attributes and LEDGER.match("dev/ledger/*.csv")
