"""
Edited result files and ledger rows: each kind of edit is refused by name; what older versions wrote is read.

python -m pytest tests/test_result_check.py -q
"""

import json
import tarfile
from pathlib import Path

import pytest

from nanochat.lab.ledger.experiments import read
from nanochat.lab.ledger.row_check import kept_rows
from nanochat.lab.protocol.protocol import run as run_protocol
from nanochat.lab.report.result_check import changed_verdicts, faults, read_judged
from nanochat.lab.report.result_file import read_results
from scripts import gates as gates_script
from scripts import leaderboard as leaderboard_script
from tests.lab_case import behave, enter, make

ARCHIVE = Path(__file__).with_name("written_by_0_1_0.tar.gz")


@pytest.fixture(scope="module")
def true_text(tmp_path_factory) -> str:
    """A file that a protocol of version 0.1.0 wrote: two candidates, a bank, up to six seeds."""
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return (folder / "results" / "dec_latest.json").read_text(encoding="utf-8")


def first(facts, arm, seed=None) -> dict:
    return next(run for run in facts["runs"] if run["arm"] == arm and seed in (None, run["seed"]))


def of_run(name="gate005", **changes):
    return lambda facts: first(facts, name).update(changes)


def of_declaration(**changes):
    return lambda facts: facts["declaration"].update(changes)


def lose_floor(facts):
    facts["declaration"]["floors"] = facts["declaration"]["floors"][:1]


def swap_arms(facts):
    """The candidate's first run takes the control's place."""
    mine, other = first(facts, "control"), first(facts, "gate005")
    mine["val_bpb"], mine["command"] = other["val_bpb"], other["command"]


EDITS = {
    "status running": (of_run(run_status="running"), "gate005 on seed 1 has the status 'running'"),
    "status unknown": (of_run(run_status="fine"), "gate005 on seed 1 has the status 'fine'"),
    "status missing": (of_run(run_status=None), "has the status None"),
    "crash with a value": (of_run(run_status="crash"), "ended as crash and has a val_bpb"),
    "half a run": (of_run(steps=12), "is said to have ended ok at step 12 of 24"),
    "another profile's row": (of_run(recipe="lane-b-small"), "has recipe 'lane-b-small', expected 'smoke-cpu'"),
    "another profile hash": (of_run(profile_hash="ff"), "the runs of gate005 are of several profiles"),
    "another label's row": (of_run(label="other"), "has label 'other', expected 'dec'"),
    "another device": (of_run(device="H100"), "its runs are of several values of device: AMD EPYC, H100"),
    "another dataset": (of_run(dataset_id="ff"), "its runs are of several values of dataset_id"),
    "another cell's row": (of_run(run_tag="nc_dec_d2_lr03_s1"), "is the run of another cell, nc_dec_d2_lr03_s1"),
    "control with candidate flags": (of_run("control", candidate="--matrix-lr=0.006"),
                                     "control on seed 1 has candidate '--matrix-lr=0.006', expected ''"),
    "control that ran with them": (swap_arms, "control on seed 1 ran with options that it was not declared with "
                                   "(--residual plain -> symplectic"),
    "floor missing": (lose_floor, "its declaration lacks the floor of tok_per_sec"),
    "floors missing": (of_declaration(floors=[]), "its declaration lacks the floor of"),
    "floor widened": (lambda f: f["declaration"]["floors"][1].update(margin=1.0),
                      "the floor of tok_per_sec is 1, expected at most 0.1054"),
    "floor null": (lambda f: f["declaration"]["floors"][1].update(margin=None),
                   "Floor: margin is None, expected float"),
    "margin of the primary gate": (of_declaration(margin=0.01), "the margin of its primary gate is 0.01"),
    "level": (of_declaration(alpha=0.5), "its alpha is 0.5, expected at most 0.05"),
    "no time of declaration": (of_declaration(declared_at=None), "its declaration has no time (declared_at None)"),
    "no date": (of_declaration(declared_at="later"), "its declaration has no time (declared_at 'later')"),
    "run without one": (of_run(declared_at=None), "gate005 on seed 1 has no time of its declaration"),
    "run without a start": (of_run(started_at=None), "gate005 on seed 1 has no time at which it started"),
    "text for a number": (of_run(val_bpb="3.1"), "val_bpb of a run is '3.1', expected float"),
    "text in the declaration": (of_declaration(alpha="0.05"), "Declaration: alpha is '0.05', expected float or null"),
    "text among seeds": (of_declaration(seeds=["1", 2]), "Declaration: seeds is ['1', 2], expected list of int"),
    "text in the bank": (lambda f: f["declaration"]["noise"]["metrics"]["val_bpb"].update(s_b="small"),
                         "MetricNoise: s_b is 'small'"),
    "text in a verdict": (lambda f: f["verdicts"][0].update(n="5"), "Verdict: n is '5', expected int"),
    "not a number": (of_run(val_bpb=float("nan")), "is damaged: it holds NaN, which is no JSON"),
    "infinite": (of_run(val_bpb=float("-inf")), "gate005 on seed 1 has val_bpb -inf, expected a finite number"),
    "infinite margin": (of_declaration(margin=float("inf")), "Declaration: margin is inf"),
    "negative time": (of_run(training_sec=-1.0), "gate005 on seed 1 has training_sec -1.0, expected 0 or more"),
    "negative loss": (of_run(val_bpb=-1.0), "gate005 on seed 1 has val_bpb -1.0, expected a number above 0"),
    "undeclared seed": (of_run(seed=99, run_tag="nc_dec_d2_gate005_s99"),
                        "gate005 on seed 99 is on a seed that was not"),
    "undeclared arm": (lambda f: first(f, "gate005").update(arm="new"), "is of an arm that was not declared"),
    "run twice": (lambda f: f["runs"].append(first(f, "gate005")), "gate005 on seed 1 is there twice"),
    "fewer candidates": (of_declaration(K=1), "it declares 1 candidates and has 2"),
    "more looks": (of_declaration(looks=[2, 3, 4, 5, 5]), "its looks are [2, 3, 4, 5, 5]"),
    "bank of another profile": (lambda f: f["declaration"]["noise"].update(profile_hash="ff"),
                                "its bank is of another profile than its control"),
    "bank of nothing": (of_declaration(noise=None), "its noise source is 'bank' with no bank"),
    "spread of zero": (lambda f: f["declaration"]["noise"]["metrics"]["val_bpb"].update(s_b=0.0),
                       "its bank has a spread that is not above 0"),
    "primary": (of_declaration(primary="tok_per_sec"), "its primary metric is 'tok_per_sec'"),
    "budget": (of_declaration(matched_budget="--wall-budget-sec=5"), "its declaration says matched budget"),
    "other seeds than asked": (lambda f: f["settings"].update(seeds=[1, 2]), "its seeds in the settings and in the"),
}


def write(folder, text, edit=None) -> Path:
    facts = json.loads(text)
    if edit:
        edit(facts)
    path = folder / "dec_latest.json"
    text = json.dumps(facts).replace("Infinity", "1e999")  # JSON has no Infinity; this number is one when it is read
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_protocol_wrote_is_read_with_the_verdicts_that_it_had(true_text, tmp_path):
    results = read_judged(path := write(tmp_path, true_text))
    assert faults(read_results(path)) == [] and changed_verdicts(path, results) == []
    assert [v.to_json() for v in results.verdicts] == json.loads(true_text)["verdicts"]


@pytest.mark.parametrize("edit, named", EDITS.values(), ids=EDITS.keys())
def test_edit_is_refused_by_name_in_every_reader_that_judges(edit, named, true_text, tmp_path, capsys):
    path = write(tmp_path, true_text, edit)
    with pytest.raises(ValueError) as refused:
        read_judged(path)
    assert named in str(refused.value) and str(path) in str(refused.value)
    assert gates_script.main(["--label=dec", f"--results-dir={tmp_path}", "--json"]) == 2
    assert named in capsys.readouterr().err
    assert leaderboard_script.all_results(tmp_path) == [] and "left out" in capsys.readouterr().out


def test_a_value_that_is_not_the_one_in_the_history_is_refused(true_text, tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    assert read_judged(tmp_path / "results" / "dec_latest.json")
    write(tmp_path / "results", true_text, of_run(val_bpb=3.0))
    with pytest.raises(ValueError, match="gate005 on seed 1 has val_bpb 3.0, and 3.2.* in its history"):
        read_judged(tmp_path / "results" / "dec_latest.json")


@pytest.mark.parametrize("changes, named", [
    ({"status": "running"}, "its status is 'running'"), ({"val_bpb": -1.0}, "its val_bpb is -1.0"),
    ({"training_sec": -5.0}, "its training_sec is -5.0"), ({"status": "crash"}, "ended as crash and has a val_bpb"),
    ({"timestamp": "2026-01-01T00:00:00+00:00"}, "began at 2026-01-01T00:00:00+00:00, before its declaration"),
    ({"val_bpb": 3.0}, "its val_bpb is 3.0, and 3.2")])
def test_an_edited_row_is_left_out_by_name(changes, named, true_text, tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    rows, runs = read(tmp_path / "experiments.csv"), read_results(write(tmp_path, true_text)).runs
    assert kept_rows(rows, runs) == (rows, [])
    i = next(i for i, row in enumerate(rows) if row["label"] == "dec")
    rows[i] = {**rows[i], **changes}
    kept, lines = kept_rows(rows, runs)
    assert kept == rows[:i] + rows[i + 1:] and len(lines) == 1
    assert lines[0].startswith(f"row {i + 1} left out: ") and named in lines[0]


def test_a_cell_that_is_no_number_is_refused_with_its_row(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    path = tmp_path / "experiments.csv"
    text = path.read_text(encoding="utf-8")
    bpb = str(read(path)[2]["val_bpb"])
    for word in ("nan", "inf", "low"):
        path.write_text(text.replace(f",{bpb},", f",{word},"), encoding="utf-8")
        with pytest.raises(ValueError, match=f"row 3: .*val_bpb={word}: expected a"):
            read(path)


@pytest.mark.parametrize("name", ["started_at", "device", "steps", "bound", "label", "recipe", "candidate", "command",
                                  "threads", "profile_hash", "dataset_id"])
def test_a_value_that_an_older_version_did_not_write_is_no_edit(name, true_text, tmp_path):
    def forget(facts):
        for run in facts["runs"]:
            del run[name]
    assert faults(read_results(write(tmp_path, true_text, forget))) == []


def test_a_stored_verdict_decides_nothing(true_text, tmp_path, capsys):
    def promote(facts):
        facts["verdicts"][1].update(verdict="promote", text="promote", reason="better")
    path = write(tmp_path, true_text, promote)
    assert gates_script.main(["--label=dec", f"--results-dir={tmp_path}", "--exit-code"]) == gates_script.EXIT["reject"]
    assert "the stored verdict on lr03 is promote, its runs give reject" in capsys.readouterr().err
    found, = leaderboard_script.all_results(tmp_path)
    assert found.verdicts[1].verdict == "reject" and "its runs give reject" in capsys.readouterr().out
    assert read_results(path).verdicts[1].verdict == "promote"


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {}, {"candidates": ("gate: --symplectic-gate", "lr: --matrix-lr=0.03"), "seeds": (1, 2, 3, 4, 5)},
    {"candidates": ("aa:",), "aa": True}, {"until_decided": True, "seeds": tuple(range(1, 13))},
    {"primary": "time_to_target", "target_bpb": 2.5}, {"flags": ("--wall-budget-sec=100",)},
    {"candidates": ("deep: --depth=2",)}, {"label": ""}, {"candidates": ()}], ids=str)
def test_every_protocol_writes_files_that_are_read(options, tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    for how in ("crash", "ok"):  # first a failed cell, then a whole file
        behave(monkeypatch, **{f"gate_s{options.get('seeds', (1337,))[0]}": how})
        run_protocol(make(**options), say=lambda *lines: None)
        path = next(Path("results").glob("*_latest.json"))
        assert read_judged(path).verdicts == read_results(path).verdicts
        assert changed_verdicts(path, read_judged(path)) == []
