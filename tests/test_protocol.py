"""
Protocols end to end, with a trainer that is quick (tests/fake_trainer.py): order, files, reuse, refusals, the script.

python -m pytest tests/test_protocol.py -v
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nanochat.common import REPO_ROOT, VENV_PYTHON, read_json
from nanochat.lab.csv_file import read_rows
from nanochat.lab.protocol import protocol
from nanochat.lab.protocol.build import build_protocol
from nanochat.lab.protocol.protocol import run
from nanochat.machine import usable_cores
from scripts import protocol as script
from tests.lab_case import FAKE, GATE, HISTORY, TREE, enter, make, ran

LATEST = "results/t_latest.json"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("finished"), []
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        assert run(make(), said.append) == 0
    return folder, "\n".join(said)


@pytest.fixture
def finished(finished_once):
    """make() has been run here: control and gate, seeds 1337 and 2026. Returns what it said."""
    shutil.copytree(finished_once[0], ".", dirs_exist_ok=True)
    return finished_once[1]


def test_cells_run_in_turn_and_the_verdict_says_what_would_settle_it(finished):
    assert ran() == ["control_s1337", "gate_s1337", "gate_s2026", "control_s2026"]
    assert "verdict gate: inconclusive (2 seeds, no noise bank)" in finished
    assert "scripts.noise --run --seeds=8 --profile=smoke-cpu" in finished
    assert "--seeds 1337 2026 2027 2028 2029 '--candidate=gate: --symplectic-gate'" in finished


def test_latest_json_has_the_published_fields_and_the_arithmetic_is_right(finished):
    facts = read_json(LATEST)
    assert list(facts) == ["timestamp", "settings", "runs", "deltas", "mean_candidate_minus_control_bpb",
                           "mean_candidate_speed_ratio", "by_candidate", "verdicts", "noise", "provenance",
                           "declaration"]
    assert list(facts["runs"][0])[:17] == make().results.schema
    assert [(row["arm"], row["seed"]) for row in facts["runs"]] == \
        [(a, s) for s in (1337, 2026) for a in ("control", "gate")]
    delta = facts["deltas"][0]
    assert list(delta)[:5] == ["seed", "candidate_minus_control_bpb", "candidate_minus_control_duration_sec",
                               "candidate_speed_ratio", "candidate"]
    assert delta["candidate_minus_control_bpb"] == pytest.approx(0.01 * (10 + 1337 % 3) * 0.15)
    assert delta["candidate_speed_ratio"] == 0.9
    assert facts["mean_candidate_minus_control_bpb"] == pytest.approx(0.0015 * (10 + (1337 % 3 + 2026 % 3) / 2))
    assert facts["by_candidate"]["gate"]["pairs"] == 2 and facts["mean_candidate_speed_ratio"] == 0.9
    assert facts["noise"]["source"] == "none" and facts["declaration"]["seeds"] == [1337, 2026]
    assert {"git_commit", "dirty", "tree_hash", "patch_hash", "upstream_commit"} <= set(facts["provenance"])


def test_history_rows_are_the_declared_columns(finished):
    control, gate = read_rows(HISTORY)[:2]
    assert (control["recipe"], control["seed"]) == ("smoke-cpu", "1337")
    assert (control["trained_tokens"], control["val_bpb"]) == ("122880", "2.4")
    assert (control["duration_sec"], control["num_iterations"], control["window_pattern"]) == ("1.5", "60", "L")
    assert (control["resumed_from_step"], control["candidate"]) == ("", "")
    assert (gate["candidate"], gate["label"]) == ("--symplectic-gate", "t")


def test_two_candidates_leave_the_two_means_to_by_candidate():
    run(make([GATE, "lr: --matrix-lr=0.03"], seeds=[1, 2]))
    facts = read_json(LATEST)
    assert facts["mean_candidate_minus_control_bpb"] is None and facts["mean_candidate_speed_ratio"] is None
    assert list(facts["by_candidate"]) == [v["candidate"] for v in facts["verdicts"]] == ["gate", "lr"]
    assert facts["verdicts"][1]["reason"].startswith("identical")  # the stand-in knows no learning rate


def test_declaration_is_on_disk_before_the_first_run(monkeypatch):
    seen = []
    monkeypatch.setattr(protocol, "run_cells", lambda session, left: seen.append(read_json(LATEST)))
    run(make())
    assert seen[0]["runs"] == [] and seen[0]["declaration"]["arms"][1]["name"] == "gate"
    assert seen[0]["declaration"]["primary"] == "val_bpb" and seen[0]["declaration"]["alpha"] == 0.04


# -----------------------------------------------------------------------------
# Reuse

def test_second_run_reuses_everything_and_says_so(finished, capsys):
    first = read_json(LATEST)
    assert run(make()) == 0
    assert "reused 4 of 4 cells" in capsys.readouterr().out and len(ran()) == 4
    again = read_json(LATEST)
    assert all(row.pop("reused") and not old.pop("reused") for row, old in zip(again["runs"], first["runs"]))
    assert again.pop("timestamp") and first.pop("timestamp") and again.pop("settings") and first.pop("settings")
    assert again == first


def test_changed_candidate_runs_alone_and_its_speed_is_not_compared(finished, capsys):
    run(make(["gate: --symplectic-gate --symplectic-gate-mix=0.3"]))
    assert ran()[4:] == ["gate_s1337", "gate_s2026"]
    facts = read_json(LATEST)
    assert facts["mean_candidate_speed_ratio"] is None
    assert facts["mean_candidate_minus_control_bpb"] == pytest.approx(0.003 * 11.5)
    assert "under different protocols" in facts["deltas"][0]["note"]
    assert "new declaration, arms:" in capsys.readouterr().out


def test_more_seeds_reuse_the_earlier_ones_and_are_a_new_declaration(finished, capsys):
    run(make(seeds=[1337, 2026, 3]))
    assert ran()[4:] == ["control_s3", "gate_s3"]
    assert "new declaration, seeds: [1337, 2026] -> [1337, 2026, 3]" in capsys.readouterr().out
    assert read_json(LATEST)["mean_candidate_speed_ratio"] == 0.9  # each pair took turns in its own protocol


@pytest.mark.parametrize("change", ["fresh", "code"])
def test_fresh_and_changed_code_run_everything_anew(finished, monkeypatch, change):
    declared = read_json(LATEST)["declaration"]
    monkeypatch.setenv("FAKE_TREE", "other" if change == "code" else TREE)
    assert run(make(fresh=change == "fresh")) == 0
    assert ran()[4:] == ran()[:4] and read_json(LATEST)["declaration"] == declared, "fresh trains, and declares nothing"
    assert "--resume" not in make().results.logs.joinpath("nc_t_d4_gate_s1337.log").read_text()


# -----------------------------------------------------------------------------
# Refusals and notes

def test_foreign_history_is_refused_before_anything_runs():
    os.mkdir("results")
    with open(HISTORY, "w") as f:
        f.write("seed,arm\n1,control\n")
    with pytest.raises(ValueError, match="other columns: seed,arm"):
        make()


def test_second_protocol_of_the_same_label_waits_for_the_first_and_takes_its_runs_over():
    """It was refused before. The first may be the child of a miniseries that was killed: nothing can be done but
    wait."""
    os.mkdir("results")
    hold = "import filelock\nwith filelock.FileLock('results/.t.lock'):\n    print('held', flush=True)\n    input()"
    first = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"held\n"
    said = []

    def say(text):
        said.append(text)
        if "already running here" in text:
            assert not os.path.exists(HISTORY), "nothing is done before"
            first.kill()
    assert run(make(), say) == 0
    assert said[0].startswith("protocol t is already running here") and len(ran()) == 4


@pytest.mark.parametrize("options, message", [(dict(label="a/b"), "--label"), (dict(min_gain=0.0), "--min-gain"),
                                              (dict(min_gain=float("nan")), "--min-gain"),
                                              (dict(timeout_sec=-60), "--timeout-minutes=-1")])
def test_bad_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_equal_arms_other_workloads_and_overload_are_said(monkeypatch, capsys):
    monkeypatch.setenv("FAKE_LOAD", str(10 * usable_cores()))
    assert run(make(["copy:", "deep: --depth=5"], seeds=[1, 2])) == 0
    out = capsys.readouterr().out
    assert "copy has the options of control: an A/A comparison" in out
    assert "deep changes the workload (--depth 4 -> 5)" in out
    assert "verdict copy: reject" in out and "verdict deep: no verdict" in out
    assert "in 6 of 6 cells: their times, and so their speed, are not to be trusted" in out
    assert read_json(LATEST)["runs"][0]["overloaded"]


# -----------------------------------------------------------------------------
# python -m scripts.protocol

@pytest.fixture
def main(monkeypatch, tmp_path):
    """script.main on the stand-in, without a card, a corpus or a tokenizer."""
    monkeypatch.setattr(script, "build_protocol", functools.partial(build_protocol, trainer=FAKE))
    monkeypatch.setattr(script, "LEDGER", tmp_path / "experiments.csv")  # what was declared in one test binds no other
    monkeypatch.setattr(script.profiles, "prepare", lambda *args: ("data", "tok"))
    monkeypatch.setattr(script.tokenizer, "get_tokenizer", lambda home: SimpleNamespace(get_vocab_size=lambda: 4096))
    monkeypatch.setattr(script.profiles, "cuda_memory_mib", lambda: None)
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)
    return script.main


def test_command_of_the_issue_runs(main, base_dir):
    argv = shlex.split('--seeds="1337 2026" --num-iterations=20 --label=mix005 '
                       '--candidate="--symplectic-gate --symplectic-gate-mix=0.05"')
    assert main(argv) == 0
    facts = read_json("results/mix005_latest.json")
    control, candidate = facts["runs"][:2]
    assert control["run_tag"] == "nc_mix005_d4_control_s1337" and candidate["run_tag"] == "nc_mix005_d4_candidate_s1337"
    assert candidate["candidate"] == "--symplectic-gate --symplectic-gate-mix=0.05" and control["num_iterations"] == 20
    assert (base_dir / "lab" / "smoke-cpu" / "records" / "nc_mix005_d4_candidate_s2026").is_dir()
    assert main([*shlex.split(facts["settings"]["command"])[3:]]) == 0  # the printed command means the same
    assert len(read_rows("results/mix005_history.csv")) == 4


def test_printed_command_has_the_python_that_runs_and_the_stored_one_is_neutral(main, monkeypatch, capsys):
    monkeypatch.setattr(sys, "prefix", str(REPO_ROOT / ".venv"))
    assert main(["--seeds=1 2"]) == 0
    printed, = [line for line in capsys.readouterr().out.splitlines() if "-m scripts.protocol" in line]
    stored = read_json("results/protocol_latest.json")["settings"]["command"]
    assert stored.startswith("python -m ")
    before, found, after = printed.strip().partition(" -m ")
    assert found + after == stored.removeprefix("python").replace("1 2", "1 2 3 4 5")
    *environment, python = shlex.split(before)
    assert environment == [f"{name}={os.environ[name]}" for name in ("NANOCHAT_BASE_DIR", "NANOCHAT_LEDGER")]
    assert shutil.which(python) and python != VENV_PYTHON, "a path that the repository's root has"


def test_flags_may_be_words_of_their_own_and_candidates_repeat(main):
    argv = ["--seeds", "1", "2", "--candidate", "--symplectic-gate", "--candidate", "b: --matrix-lr=0.03",
            "--flags", "--num-iterations=20"]
    assert main(argv) == 0
    facts = read_json("results/protocol_latest.json")
    assert [arm["flags"] for arm in facts["settings"]["arms"]] == ["", "--symplectic-gate", "--matrix-lr=0.03"]
    assert facts["runs"][0]["run_tag"] == "nc_d4_control_s1"


@pytest.mark.parametrize("argv, message", [
    (["--seeds", "1", "x"], "'x' is not a whole number"), (["--seeds="], "no seeds"),
    (["--candidate=--dept=4"], "arm candidate: unknown flag"), (["--profile=protocol-16gb"], "needs a CUDA device"),
    (["--flags=--total-batch-size=1000"], "arm control: .*multiple"),
    (["--candidate=x: --target-param-data-ratio=3"], "arm x: .* resolves to the run of control"),
    (["--max-seeds=4"], "only with --until"),
    (["--until=decided", "--max-seeds=13"], "at most 12"),
    (["--aa", "--candidate=x: --matrix-lr=0.03"], "--aa runs the control"),
    (["--primary=time_to_target"], "no target; give --target-bpb"), (["--flags='"], "--flags: cannot read"),
    (["--num-iterations=0"], "arm control: --num-iterations=0")])
def test_bad_input_is_one_clear_line_and_exit_2(main, capsys, argv, message):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and re.search(message, err)
    assert not os.path.exists("results/protocol_latest.json")


def test_fresh_in_the_environment_is_the_flag(monkeypatch):
    def fresh():
        return script.build_parser().parse_args([]).fresh
    monkeypatch.setenv("FRESH", "0")
    assert not fresh()
    monkeypatch.setenv("FRESH", "1")
    assert fresh()
