"""
Miniseries: every combination of what depths can say, refusals by name, and a series that is killed and repeats nothing.

python -m pytest tests/test_miniseries.py -q
"""

import copy
import functools
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat.common import read_json, write_json
from nanochat.lab.csv_file import read_rows
from nanochat.lab.cycle import miniseries
from nanochat.lab.cycle.miniseries import check_matched, judge, read_depths
from nanochat.lab.protocol.build import build_protocol
from nanochat.lab.report.result_file import ResultFile, Settings, read_results
from nanochat.lab.verdict.facts import Declaration, DeclaredArm, Floor, GateRow, Verdict
from scripts import miniseries as script
from scripts import protocol as protocol_script
from tests.lab_case import FAKE, enter

FLAGS = ["--depth=4", "--no-compile", "--num-iterations=60", "--device-type=cpu"]


def gate(metric, role="floor", lo=-0.001, hi=0.002, result="pass"):
    return GateRow(metric, role, metric, lo=lo, hi=hi, mean=0.0, result=result)


def entry(verdict, lo=-0.001, hi=0.004, floors=(("final_train_loss", {}), ("val_bpb", {})), primary="time_to_target",
          name="gate") -> Verdict:
    gates = [gate(primary, "primary", lo, hi, "pass" if verdict == "promote" else "cannot tell")]
    gates += [gate(metric, **kw) for metric, kw in floors if metric != primary]
    return Verdict(name, verdict, reason=f"because {verdict}", n=5, gates=gates, level=0.05, p=0.01, mean_gain=0.0015,
                   lo=lo, hi=hi)


SAYS = {
    "promote": entry("promote", lo=0.001), "reject": entry("reject", hi=-0.001), "price": entry("optional", lo=0.001),
    "not worse": entry("inconclusive"),
    "unsure": entry("inconclusive", floors=(("final_train_loss", {"result": "cannot tell"}), ("val_bpb", {}))),
}


def facts(depth, *entries, flags=FLAGS) -> ResultFile:
    names = [e.candidate for e in entries] or ["gate"]
    arms = [DeclaredArm("control", ""), *(DeclaredArm(name, "--symplectic-gate") for name in names)]
    declaration = Declaration(label=f"x_d{depth}", primary="time_to_target", margin=0.0, alpha=0.05, arms=arms,
                              floors=[Floor("val_bpb", 0.005)])
    settings = Settings(profile="smoke-cpu", profile_flags=list(flags), common_flags=[f"--depth={depth}"])
    return ResultFile(settings=settings, declaration=declaration, verdicts=list(entries))


def verdict_of(*says):
    found, = judge({2 * i + 2: facts(2 * i + 2, SAYS[what]) for i, what in enumerate(says)})
    assert [d.says for d in found.depths] == list(says)
    return found


def expected(says):
    """The rule in words: promote where every depth says promote or not worse and one says promote; a price or a doubt
    beside a gain is optional; a reject is a rollback, and never a promotion."""
    gain = bool({"promote", "price"} & set(says))
    if "reject" in says:
        return "optional" if gain else "reject"
    if not gain:
        return "inconclusive"
    return "promote" if set(says) <= {"promote", "not worse"} else "optional"


@pytest.mark.parametrize("third", [None, *SAYS])
@pytest.mark.parametrize("second", SAYS)
@pytest.mark.parametrize("first", SAYS)
def test_every_combination_of_depths(first, second, third):
    says = [first, second] + ([third] if third else [])
    found = verdict_of(*says)
    assert found.verdict == expected(says)
    assert (found.rollback is not None) == ("reject" in says)


def test_rollback_names_the_depth_and_its_reason():
    found = verdict_of("promote", "reject")
    assert "depth 4: because reject" in found.rollback and "rejected at depth 4" in found.reason
    assert "depth 6: gate 5 (final_train_loss) is not shown" in verdict_of("promote", "not worse", "unsure").reason


@pytest.mark.parametrize("spoil, why", [
    (dict(floors=(("final_train_loss", {}),)), "gate 6 (val_bpb) was not judged"),
    (dict(floors=(("final_train_loss", {}), ("val_bpb", {"hi": -0.0001}))), "val_bpb is shown worse"),
    (dict(hi=-0.001), "time_to_target is shown worse"),
    (dict(primary="val_bpb", lo=-0.006), "gate 6 (val_bpb) is not shown"), (dict(primary="val_bpb", lo=None), "gate 6"),
    (dict(floors=()), "because inconclusive")])
def test_not_worse_has_to_be_shown(spoil, why):
    found, = judge({2: facts(2, SAYS["promote"]), 4: facts(4, entry("inconclusive", **spoil))})
    assert found.verdict == "optional" and why in found.reason


def test_bpb_as_the_primary_metric_has_the_margin_of_gate_6():
    found, = judge({2: facts(2, SAYS["promote"]), 4: facts(4, entry("inconclusive", primary="val_bpb", lo=-0.0049))})
    assert found.verdict == "promote"


def test_each_candidate_has_its_own_verdict():
    a, b = replace(SAYS["promote"], candidate="a"), replace(SAYS["not worse"], candidate="b")
    found = judge({2: facts(2, a, b), 4: facts(4, a, b)})
    assert [(v.candidate, v.verdict) for v in found] == [("a", "promote"), ("b", "inconclusive")]


# -----------------------------------------------------------------------------
# Refusals

def test_depth_without_verdict_is_refused_by_name():
    with pytest.raises(ValueError, match="depth 4: no verdict on gate .because None"):
        none = replace(SAYS["promote"], verdict=None, reason="because None")
        judge({2: facts(2, SAYS["promote"]), 4: facts(4, none)})
    with pytest.raises(ValueError, match="depth 4: no verdict .*no cell has been run"):
        judge({2: facts(2, SAYS["promote"]), 4: facts(4)})


@pytest.fixture
def verdicts_set_by_hand(monkeypatch):
    """Files without runs: their verdicts cannot be replayed. test_result_check.py reads files with runs."""
    monkeypatch.setattr(miniseries, "read_judged", read_results)


def test_edited_depth_is_refused_by_name(tmp_path):
    write_json(tmp_path / "x_d2_latest.json", facts(2, SAYS["promote"]).to_json())
    with pytest.raises(ValueError, match="depth 2: .*x_d2_latest.json is not as a protocol writes it: its declaration"):
        read_depths(tmp_path, "x", [2])


def test_missing_depths_are_refused_by_name(tmp_path, verdicts_set_by_hand):
    write_json(tmp_path / "x_d2_latest.json", facts(2, SAYS["promote"]).to_json())
    (tmp_path / "x_d6_latest.json").write_text("{torn")
    says = "depth 4: no .*x_d4_latest.json; depth 6: .*x_d6_latest.json is damaged: .*the same command goes on"
    with pytest.raises(ValueError, match=says):
        read_depths(tmp_path, "x", [2, 4, 6])
    assert list(read_depths(tmp_path, "x", [2])) == [2]


@pytest.mark.parametrize("change, named", [
    (lambda f: f["declaration"]["arms"][1].update(flags="--symplectic-gate --symplectic-gate-mix=0.3"), "candidates"),
    (lambda f: f["declaration"]["arms"].append({"name": "b", "flags": ""}), "candidates"),
    (lambda f: f["declaration"].update(primary="val_bpb"), "primary: time_to_target -> val_bpb"),
    (lambda f: f["declaration"].update(floors=[]), "floors"),
    (lambda f: f["settings"].update(profile="smoke-16gb"), "profile"),
    (lambda f: f["settings"]["common_flags"].append("--matrix-lr=0.03"), "matrix_lr: 0.02 -> 0.03"),
    (lambda f: f["settings"]["common_flags"].append("--depth=6"), "x_d4 was run at depth 6")])
def test_depths_that_are_not_matched_are_refused_by_name(change, named):
    stored = copy.deepcopy(facts(4, SAYS["promote"]).to_json())
    change(stored)
    other = ResultFile.from_json(stored)
    with pytest.raises(ValueError, match=named):
        check_matched({2: facts(2, SAYS["promote"]), 4: other})


def test_device_batch_may_shrink_with_depth():
    assert check_matched({2: facts(2), 4: facts(4, flags=[*FLAGS, "--device-batch-size=8"])}) == ["gate"]


# -----------------------------------------------------------------------------
# The script

@pytest.fixture
def place(tmp_path, monkeypatch, base_dir):
    """The miniseries runs protocols in this process, on the trainer's stand-in; returns (main, commands so far)."""
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr(protocol_script, "build_protocol", functools.partial(build_protocol, trainer=FAKE))
    monkeypatch.setattr(protocol_script.profiles, "prepare", lambda *args, **kw: ("data", "tok"))
    monkeypatch.setattr(protocol_script.tokenizer, "get_tokenizer",
                        lambda home: SimpleNamespace(get_vocab_size=lambda: 4096))
    called = []

    def call(command):
        called.append(command)
        return protocol_script.main([word for word in command[3:] if not word.startswith("--until")])
    monkeypatch.setattr(script, "call", call)
    argv = ["--label=t", "--depths=2 4", "--profile=smoke-cpu", "--seeds=1 2", "--noise=own", "--jobs=1",
            "--candidate=gate: --symplectic-gate", f"--ledger={tmp_path / 'ledger.csv'}"]
    return functools.partial(script.main, argv), called


def cells_run():
    return [(row["run_tag"], row["run_status"]) for depth in (2, 4)
            for row in read_rows(f"results/t_d{depth}_history.csv")]


def test_each_depth_is_a_label_of_its_own_and_all_is_in_one_table(place, capsys):
    main, called = place
    assert main() in (0, 2)
    assert [[word for word in command if word.startswith(("--label", "--flags"))] for command in called] == [
        ["--label=t_d2", "--flags=--depth=2"], ["--label=t_d4", "--flags=--depth=4"]]
    assert len(cells_run()) == 8 and {tag.split("_")[2] for tag, _ in cells_run()} == {"d2", "d4"}


def test_killed_and_restarted_miniseries_repeats_nothing(place, monkeypatch):
    main, _ = place
    with monkeypatch.context() as m:  # the second cell of depth 4 takes the machine down
        m.setenv("FAKE_PLAN", json.dumps({"nc_t_d4_d4_gate_s1": "wait"}))
        children = kill_when_started(m, "nc_t_d4_d4_gate_s1")
        with pytest.raises(SystemExit, match="power cut"):
            main()
    before = cells_run()
    assert len(before) == 5 and children
    assert main() in (0, 2)
    after = cells_run()
    assert after[:5] == before and len(after) == 8 and len({tag for tag, _ in after}) == 8


def kill_when_started(m, tag):
    """SIGKILL the cell's process and leave as if the machine had gone: no handler of ours runs."""
    from nanochat.lab.protocol.executor import LocalExecutor
    submit, children = LocalExecutor.submit, []

    def submit_and_die(self, cell):
        attempt = submit(self, cell)
        if cell.tag == tag:
            children.append(attempt.job)
            attempt.job.kill()
            attempt.job.wait()
            raise SystemExit("power cut")
        return attempt
    m.setattr(LocalExecutor, "submit", submit_and_die)
    return children


def test_bad_input_is_refused_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(script, "call", lambda command: pytest.fail("nothing may run"))
    for argv, named in ((["--depths=2 2"], "repeated"), (["--depths=x"], "--depths x"),
                        (["--depths=0"], "at least one layer"), (["--label=a/b"], "--label=a/b"),
                        (["--dephts=3"], "unknown flag --dephts"), (["--profile=nobody", "--dry-run"], "nobody"),
                        (["--data=nobody", "--dry-run"], "no corpus of this name")):
        assert script.main(argv) == 2
        assert named in capsys.readouterr().err


def test_interrupted_protocol_ends_the_miniseries_and_a_diverged_cell_does_not(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    codes = {"--label=x_d2": 1, "--label=x_d4": 130}
    monkeypatch.setattr(script, "call", lambda command: codes.get(command[3], 0))
    assert script.main(["--label=x", "--depths", "2", "4", "6", "--noise-seeds=0"]) == 130
    assert script.main(["--label=x", "--depths", "2", "--noise-seeds=0"]) == 2  # and then says which file is not there
    assert "depth 2: no results/x_d2_latest.json" in capsys.readouterr().err.replace(os.sep, "/")
    monkeypatch.setattr(script, "call", lambda command: "scripts.noise" in command)
    assert script.main(["--label=x", "--depths", "2"]) == 1, "without its noise no depth is run"


def test_noise_is_banked_at_each_depth_with_the_flags_of_its_protocol(capsys):
    argv = ["--label=x", "--depths=2 4", "--profile=smoke-cpu", "--num-iterations=30", "--flags", "--matrix-lr=0.03",
            "--dry-run"]
    assert script.main(argv) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("64 cells at most: 2 depths, at each 8 control runs for the bank and 2 arms x 12 seeds")
    lines = [line[line.index(" -m "):] for line in lines]
    flags = "'--flags=--num-iterations=30 --matrix-lr=0.03 --depth={}'"
    assert lines == [line.format(flags.format(depth)) for depth in (2, 4) for line in (
        " -m scripts.noise --run --seeds=8 --profile=smoke-cpu {}",
        f" -m scripts.protocol --label=x_d{depth} --profile=smoke-cpu {{}} --until=decided")]


def test_judge_writes_the_verdict_and_prints_one_table(tmp_path, monkeypatch, capsys, verdicts_set_by_hand):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    for depth, what in ((2, "promote"), (4, "not worse")):
        write_json(f"results/x_d{depth}_latest.json", facts(depth, SAYS[what]).to_json())
    assert script.main(["--label=x", "--depths=2 4", "--judge"]) == 0
    out = capsys.readouterr().out
    assert "miniseries gate: promote" in out and out.count("candidate") == 1 and "up to 10 %" in out
    assert read_json("results/x_miniseries.json")["verdicts"][0]["depths"][1]["says"] == "not worse"
    assert miniseries.false_promotion(2, 0.05) == pytest.approx(0.0975)
