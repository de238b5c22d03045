"""
Calibration points off records, and python -m scripts.lane_b_infer_ratio over them.

python -m pytest tests/test_lane_b_calibration.py -v
"""

import json
import math

import pytest

from nanochat.common import write_json
from nanochat.config import FIELDS, parse
from nanochat.cost import gpt_config, meta_model, resolve, scaling_params
from nanochat.lab.horizon.calibration import exponent_of_stats, parse_point, read_runs
from nanochat.lab.horizon.infer import FALLBACK, INFERRED
from nanochat.lab.horizon.loss_law import Point, fit, pool
from nanochat.lab.horizon.source import Refusal
from scripts.lane_b_infer_ratio import main
from tests.calibration_case import ALPHA, CORPUS, FLAGS, FLOOR, RATIO, VOCAB, A, calibration_run, loss, store
from tests.ledger_case import DATA, TOKENIZER

SHARES = (0.25, 0.5, 1.0)
N = scaling_params(meta_model(gpt_config(parse(FLAGS), VOCAB)))
TARGET = loss(1.5 * RATIO * N)


def refusal(*runs):
    with pytest.raises(Refusal) as refused:
        read_runs(list(runs))
    return refused.value.code, str(refused.value)


# -----------------------------------------------------------------------------
# Records

def test_points_are_the_ends_of_the_runs():
    runs = [calibration_run(share, seed) for share in SHARES for seed in (1, 2)]
    found = read_runs(runs)
    assert found.points == [Point(record["resolved"]["total_tokens"], record["results"]["val_bpb"],
                                  record["config"]["seed"], record["run_id"], 2048) for record, _ in runs]
    assert (found.dataset_id, found.tokenizer_id, found.num_scaling_params) == (DATA, TOKENIZER, N)
    assert found.distinct_tokens == pytest.approx(CORPUS)
    assert found.ref_scaling_params == scaling_params(meta_model(gpt_config(parse(FLAGS), VOCAB, depth=12)))
    one = read_runs([calibration_run(1.0, 1, pinned=False)])
    assert one.ref_scaling_params == found.ref_scaling_params, "also of a run whose laws were not pinned"


@pytest.mark.parametrize("change, why", [
    (dict(status="interrupted"), "its status is interrupted"), (dict(status="diverged"), "its status is diverged"),
    (dict(steps=17), "it took 17 of"),
    (dict(value=math.nan), "not validated at its end"), (dict(val_bpb=None), "not validated at its end")])
def test_run_that_did_not_complete_its_schedule_is_no_point(change, why):
    code, message = refusal(calibration_run(0.5), calibration_run(1.0, **change))
    assert code == "incomplete_run" and why in message and "lane_1_s1" in message


@pytest.mark.parametrize("flags", [("--warmdown-ratio=0",), ("--final-lr-frac=1",)])
def test_run_whose_rate_never_comes_down_is_no_point(flags):
    assert refusal(calibration_run(1.0, 1, *flags))[0] == "incomplete_run"


def test_last_validation_has_to_be_of_the_last_step():
    record, rows = calibration_run(1.0)
    assert refusal((record, rows[:-1]))[0] == "incomplete_run" and refusal((record, []))[0] == "incomplete_run"


def test_upstream_checkpoint_is_no_point():
    record, rows = calibration_run(1.0)
    assert refusal((record | {"resolved": {"num_iterations": None, "total_batch_size": 2048}},
                    rows))[0] == "incomplete_run"


@pytest.mark.parametrize("name", ["tau", "ref_tokens", "total_batch_size"])
def test_record_of_an_older_trainer_is_no_point(name):
    record, rows = calibration_run(1.0)
    older = {key: value for key, value in record["resolved"].items() if key != name}
    assert refusal((record | {"resolved": older}, rows))[0] == "incomplete_run"


@pytest.mark.parametrize("epochs_used", [None, 0.0])
def test_run_that_does_not_say_what_it_read_is_no_point(epochs_used):
    assert refusal(calibration_run(1.0, epochs_used=epochs_used))[0] == "incomplete_run"


def test_checkpoints_of_one_run_are_no_points_and_would_give_another_ratio():
    """The naive L(D): validations along the longest run. At full rate they stand above the law, so its end looks like a
    steep fall."""
    record, rows = calibration_run(1.0)
    tokens = [row["step"] * 2048 for row in rows]
    naive = fit(pool([Point(t, row["val/bpb"]) for t, row in zip(tokens, rows)], 0.002), ALPHA).tokens_to(TARGET)
    true = 1.5 * RATIO * N
    assert abs(naive / true - 1) > 0.1
    ends = read_runs([calibration_run(share) for share in SHARES]).points
    assert fit(pool(ends, 0.002), ALPHA).tokens_to(TARGET) == pytest.approx(true, rel=1e-9)
    cut_short = [(record | {"results": record["results"] | {"steps": row["step"], "val_bpb": row["val/bpb"]}}, rows)
                 for row in rows[:3]]
    assert refusal(*cut_short)[0] == "one_run" and refusal(cut_short[0])[0] == "incomplete_run"


@pytest.mark.parametrize("flags, named",
                         [(("--matrix-lr=0.03",), "--matrix-lr"), (("--depth=3",), "--depth, num_scaling_params"),
                          (("--eval-tokens=16384",), "--eval-tokens")])
def test_runs_that_differ_in_more_than_length_and_seed_are_refused(flags, named):
    code, message = refusal(calibration_run(0.5), calibration_run(1.0, 1, *flags))
    assert code == "mixed_workloads" and f"differ in {named}:" in message


def test_run_from_before_an_option_existed_had_its_default():
    (record, rows), later = calibration_run(0.5), [name for name, o in FIELDS.items() if o.before is not None]
    older = record | {"config": {name: value for name, value in record["config"].items() if name not in later}}
    assert len(read_runs([(older, rows), calibration_run(1.0)]).points) == 2
    code, message = refusal((older, rows), calibration_run(1.0, 1, "--no-smear"))
    assert code == "mixed_workloads" and "--smear" in message


def test_runs_of_two_corpora_are_refused():
    record, rows = calibration_run(1.0)
    assert "dataset_id" in refusal(calibration_run(0.5), (record | {"dataset_id": "a" * 64}, rows))[1]


def test_only_the_ratio_changed_is_refused_because_tau_moves():
    code, message = refusal(*(calibration_run(share, pinned=False) for share in SHARES))
    assert code == "tau_moves" and "--ratio-ref" in message
    taus = [calibration_run(share)[0]["resolved"]["tau"] for share in SHARES]
    assert taus == pytest.approx([taus[0]] * 3, rel=1e-9)


@pytest.mark.parametrize("text", ["1e6", "1e6:x", "1e6:2.0:1:2", "1e6:nan", "1e6:2.0:1.5", ""])
def test_point_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="expected TOKENS:LOSS"):
        parse_point(text)


# -----------------------------------------------------------------------------
# Statistics

def stats(**changes) -> dict:
    return {"schema_version": 1, "alpha_d": ALPHA, "alpha_d_ci95": [0.19, 0.21], "n_star_tokens": 30, "warnings": [],
            "h_inf_nats": None, "h_inf_identified": False, "bytes_per_token": 3.0, "dataset_id": DATA,
            "tokenizer_id": TOKENIZER, "error": None, **changes}


def test_exponent_is_only_a_prior_where_the_horizon_exceeds_a_quarter_of_the_context():
    assert exponent_of_stats(stats(), 256).doubts == () == exponent_of_stats(stats(n_star_tokens=64), 256).doubts
    assert "prior" in exponent_of_stats(stats(n_star_tokens=65), 256).doubts[0]
    assert exponent_of_stats(stats(warnings=["horizon_exceeds_context: n* 30 > 16"])).doubts
    censored = stats(n_star_tokens=50, n_star_censored=True)  # documents too short to see whether it is above 64
    assert [doubt.split(":")[0] for doubt in exponent_of_stats(censored, 256).doubts] == ["horizon_censored"]
    assert [doubt.split(":")[0] for doubt in exponent_of_stats(censored, 128).doubts] == ["horizon_exceeds_context"]
    assert exponent_of_stats(stats(warnings=["broken_power_law", "window_sensitive"], n_star_tokens=None),
                             256).doubts == ()


# -----------------------------------------------------------------------------
# The command

@pytest.fixture
def lane(base_dir, tmp_path):
    """Runs the command on three stored runs; returns (exit code, the JSON or None)."""
    ids = [store(base_dir, calibration_run(share)) for share in SHARES]

    def command(*argv, records=ids, stats_of=None, target=TARGET):
        out, path = tmp_path / "infer.json", tmp_path / "stats.json"
        write_json(path, stats() if stats_of is None else stats_of)
        out.unlink(missing_ok=True)
        words = [f"--target-threshold={target}", f"--default-ratio={RATIO}", f"--ratio-ref={RATIO}",
                 f"--output-json={out}"]
        words += [f"--stats={path}"] if not any(word.startswith("--alpha") for word in argv) else []
        words += ["--records", *records] if records else []
        code = main([*words, *argv])
        return code, json.loads(out.read_text()) if out.exists() else None
    return command


def test_runs_and_statistics_give_a_ratio_and_what_the_trainer_makes_of_it(lane, capsys):
    code, facts = lane()
    assert code == 0 and facts["decision"] == INFERRED and facts["reasons"] == []
    assert (facts["target_tokens"] == pytest.approx(1.5 * RATIO * N, rel=1e-9)
            and facts["a"] == pytest.approx(A, rel=1e-6))
    assert (facts["l_inf"] == pytest.approx(FLOOR, rel=1e-6) and facts["num_scaling_params"] == N
            and facts["dataset_id"] == DATA)
    assert list(facts["arms"]) == ["control", "inferred", "confirmation"]
    for arm in facts["arms"].values():
        trained = resolve(parse([*FLAGS, *arm["flags"].split()]), VOCAB)
        assert {name: getattr(trained, name) for name in arm["pinned"]} == arm["pinned"]
    said = capsys.readouterr().out
    assert "decision: inferred, ratio 3\n" in said and "unpinned" in said and "lane_0.25_s1" in said


def test_label_names_the_runs_of_a_protocol(lane, base_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    write_json("results/cal_latest.json", {"runs": [{"run_tag": f"lane_{share:g}_s1"} for share in SHARES]})
    assert lane("--label=cal", records=[]) == lane()
    assert lane("--label=other", records=[])[0] == 2


@pytest.mark.parametrize("argv", [[], ["--target-threshold=0.9"], ["--default-ratio=9"]])
def test_picture_is_drawn_with_an_answer_and_without(lane, tmp_path, argv):
    lane(*argv, f"--plot={tmp_path / 'plots' / 'infer.png'}")
    assert (tmp_path / "plots" / "infer.png").read_bytes()[:4] == b"\x89PNG"


def test_command_repeats_itself(lane):
    assert lane() == lane() and lane("--seed=1")[1]["target_tokens_q90"] != lane()[1]["target_tokens_q90"]


def test_statistics_with_an_error_fall_back_with_its_name(lane):
    refused = stats(alpha_d=None, alpha_d_ci95=None, error={"code": "no_signal", "message": "lag 1 is not significant"})
    code, facts = lane(stats_of=refused)
    assert (code, facts["decision"], facts["chosen_ratio"], facts["error"]["code"]) == (3, FALLBACK, RATIO, "no_signal")
    assert list(facts["arms"]) == ["control"] and facts["target_tokens"] is None
    assert lane(stats_of=stats(alpha_d=None, error=None))[1]["error"]["code"] == "alpha_unavailable"


def test_without_a_control_there_is_only_the_fallback_and_an_exit_code(lane, base_dir, capsys):
    code, facts = lane(records=["lane_0.25_s1", "lane_0.5_s1"])
    assert ((code, facts["decision"], facts["error"]["code"], list(facts["arms"]))
            == (2, FALLBACK, "no_control", ["control"]))
    store(base_dir, calibration_run(1.0, status="crash"))
    code, facts = lane()
    assert ((code, facts["decision"], facts["error"]["code"]) == (2, FALLBACK, "incomplete_run")
            and "crash" in capsys.readouterr().err)


def test_corpus_that_would_be_repeated_is_refused_unless_forced(lane, base_dir):
    code, facts = lane("--distinct-tokens=1e6")
    assert (code, facts["decision"], facts["error"]["code"]) == (3, FALLBACK, "repeated_data")
    assert lane("--distinct-tokens=1e6", "--allow-repeated-data")[1]["decision"] == INFERRED
    store(base_dir, calibration_run(1.0, epochs_used=1.3))
    assert lane()[1]["error"]["code"] == "repeated_data", "a record says so itself"


def test_points_by_hand_give_the_same_answer(lane):
    recorded = lane()[1]
    by_hand = [f"--point={p['tokens']}:{p['loss']!r}:1" for p in recorded["points"]]
    common = [*by_hand, f"--num-scaling-params={N}",
              f"--ref-scaling-params={recorded['ref_scaling_params']}", f"--flags={' '.join(FLAGS)}"]
    code, facts = lane(*common, "--distinct-tokens=60e6", "--alpha=0.2", "--alpha-ci", "0.19", "0.21", records=[])
    assert code == 0 and facts["arms"] == recorded["arms"]
    same = ("decision", "target_tokens", "target_tokens_q10", "confirmation_ratio", "l_inf", "reasons")
    assert {name: facts[name] for name in same} == {name: recorded[name] for name in same}
    assert lane(*common, records=[])[0] == 2, "how many distinct tokens there are has to be said"


def test_loss_in_nats_per_token_takes_its_noise_and_its_floor_in_that_unit(lane):
    recorded, unit = lane()[1], math.log(2) * 3.0
    words = [f"--point={p['tokens']}:{p['loss'] * unit!r}:1" for p in recorded["points"]]
    words += [f"--num-scaling-params={N}", f"--ref-scaling-params={N}", f"--flags={' '.join(FLAGS)}",
              "--target-metric=val_loss", "--allow-repeated-data"]
    facts = lane(*words, records=[], target=TARGET * unit)[1]
    assert facts["target_metric_unit"] == "nats per token" and facts["loss_sd"] == pytest.approx(0.002 * unit)
    assert [facts[f"target_tokens_q{q}"]
            for q in (10, 90)] == pytest.approx([recorded[f"target_tokens_q{q}"] for q in (10, 90)])
    known = stats(h_inf_nats=FLOOR * unit, h_inf_identified=True)
    assert lane(*words, records=[], stats_of=known,
                target=TARGET * unit)[1]["entropy_floor"] == pytest.approx(FLOOR * unit)
    assert lane(stats_of=known)[1]["entropy_floor"] == pytest.approx(FLOOR)


@pytest.mark.parametrize("argv, message", [
    (["--alpha=0.2"], "--alpha-ci=None"), (["--alpha=-1", "--alpha-ci", "0.1", "0.3"], "--alpha=-1"),
    (["--alpha=0.2", "--alpha-ci", "0.3", "0.4"], "low <= alpha <= high"), (["--default-ratio=0"], "--default-ratio=0"),
    (["--ratio-ref=12"], "2, as the runs were trained"), (["--num-scaling-params=5"], "nothing beside --records"),
    (["--target-metric=val_loss"], "which is what records hold"), (["--records", "nobody"], "no run of this id"),
    (["--point=1e6"], "expected TOKENS:LOSS"), (["--records", "lane_1_s1"], "given more than once"),
    (["--target-threshold=nan"], "finite")])
def test_bad_input_is_refused_by_name(lane, capsys, argv, message):
    code, facts = lane(*argv)
    assert code == 2 and message in capsys.readouterr().err
    assert (facts["decision"] == FALLBACK and facts["error"]["message"] == facts["reasons"][0]
            and message in facts["reasons"][0])
    assert facts["error"]["code"] in ("bad_input", "one_run")


@pytest.mark.parametrize("file", [{}, [1], None, stats(schema_version=2), {"schema_version": 1}], ids=str)
def test_file_that_holds_no_statistics_is_named(lane, tmp_path, capsys, file):
    (tmp_path / "other.json").write_text(json.dumps(file))
    assert main([f"--stats={tmp_path / 'other.json'}", "--records", "lane_1_s1", "--target-threshold=1"]) == 2
    assert "no statistics of schema version 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dataset_id", "tokenizer_id"])
def test_statistics_of_another_corpus_are_refused(lane, capsys, name):
    assert lane(stats_of=stats(**{name: "b" * 64}))[0] == 2 and f"are of {name} bbbbbbbb" in capsys.readouterr().err
    assert lane(stats_of=stats(**{name: None}))[0] == 0, "a text that is no dataset has no id"
