"""
The rows that come with the project and the user's own lie in two files: what git sees of them, and what reads both.

python -m pytest tests/test_reference_rows.py -v
"""

import shutil
import subprocess

import pytest

from nanochat.common import REPO_ROOT
from nanochat.lab.csv_file import append_row, read_rows
from nanochat.lab.horizon import run_log
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.bank import describe, measure, profiles_present
from nanochat.lab.ledger.banked import FIRST_SEED, banked_runs, borrower
from nanochat.lab.ledger.experiments import append, from_reference, read, read_all
from nanochat.lab.protocol.announce import announce
from nanochat.lab.protocol.session import Session
from nanochat.lab.report.text import basis_lines
from scripts import ledger as ledger_script
from scripts import machines
from tests import lab_case
from tests.ledger_case import record, row

USERS = ("dev/ledger/experiments.csv", "dev/ledger/declarations.csv", "dev/ledger/lane_b.csv", "dev/machines.csv")
PROJECTS = ("dev/ledger/reference.csv", "dev/ledger/lane_b_reference.csv", "dev/machines_reference.csv")
PROFILE = record()["profile_hash"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """(the user's ledger, the project's rows), both empty."""
    own, reference = tmp_path / "experiments.csv", tmp_path / "reference.csv"
    monkeypatch.setattr(experiments, "OWN", own)
    monkeypatch.setattr(experiments, "REFERENCE", reference)
    return own, reference


def fill(path, *rows):
    for one in rows:
        append(path, one)


def numbers(rows) -> list:
    return [(one["row"], one["seed"]) for one in rows]


# -----------------------------------------------------------------------------
# Git

def git(*words, folder=REPO_ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("git") or git("rev-parse").returncode, reason="no checkout of git")
def test_the_projects_rows_are_tracked_and_a_users_are_not_ignored_so_that_a_fork_may_commit_them():
    assert set(git("ls-files", "dev").stdout.split()).issuperset(PROJECTS)
    assert git("check-ignore", *USERS).stdout == ""
    locks = [f"{path.rpartition('/')[0]}/.{path.rpartition('/')[2]}.lock" for path in USERS]
    assert git("check-ignore", *locks).stdout.split() == locks


def test_no_command_names_a_tracked_file_of_rows_as_the_one_it_writes_to():
    assert experiments.OWN == REPO_ROOT / USERS[0] and experiments.REFERENCE == REPO_ROOT / PROJECTS[0]
    assert run_log.LEDGER == REPO_ROOT / USERS[2] and run_log.REFERENCE == REPO_ROOT / PROJECTS[1]
    assert (machines.LEDGER.as_posix(), machines.REFERENCE.as_posix()) == (USERS[3], PROJECTS[2])


# -----------------------------------------------------------------------------
# Reading both

def test_projects_rows_come_first_and_each_number_names_one_row(files):
    own, reference = files
    fill(reference, row(1), row(2, label="t"))
    fill(own, row(3), row(4, label="t"))
    assert numbers(read_all(own)) == [("r1", 1), ("r2", 2), (1, 3), (2, 4)]
    assert numbers(read_all(own, label="t")) == [("r2", 2), (2, 4)]
    assert numbers(read_all(own, last=3)) == [("r2", 2), (1, 3), (2, 4)]
    assert numbers(read_all(own, where=[("seed", "<", 3)])) == [("r1", 1), ("r2", 2)]
    assert [from_reference(one) for one in read_all(own)] == [True, True, False, False]
    assert numbers(read(own)) == [(1, 3), (2, 4)]


def test_row_that_is_in_both_files_counts_once_and_the_others_keep_their_numbers(files):
    """A user's file from before the split begins with the project's rows."""
    own, reference = files
    fill(reference, row(1), row(2))
    fill(own, row(1), row(2), row(3), row(2) | {"timestamp": "2026-02-02"})  # the last: a later run of the same id
    assert numbers(read_all(own)) == [("r1", 1), ("r2", 2), (3, 3), (4, 2)]


def test_missing_files_are_empty_ledgers(files):
    own, reference = files
    assert read_all(own) == []
    fill(reference, row(1))
    assert numbers(read_all(own)) == [("r1", 1)] and not own.exists()
    reference.unlink()
    fill(own, row(2))
    assert numbers(read_all(own)) == [(1, 2)]


def test_another_ledger_is_a_history_of_its_own(files, tmp_path):
    own, reference = files
    fill(reference, row(1))
    fill(tmp_path / "other.csv", row(2))
    assert numbers(read_all(tmp_path / "other.csv")) == [(1, 2)]
    assert numbers(read_all(reference)) == [(1, 1)]
    assert numbers(read_all(own.parent / "." / own.name)) == [("r1", 1)]  # another spelling of the same file


def test_newest_profile_is_that_of_the_users_last_row(files):
    own, reference = files
    fill(reference, row(1), row(1, "--depth=6"))
    fill(own, row(2))
    assert [one["profile_hash"] for one in profiles_present(read_all(own))][-1] == PROFILE


# -----------------------------------------------------------------------------
# Commands

def test_ledger_shows_both_and_reruns_the_row_that_is_named(files, capsys, base_dir):
    own, reference = files
    fill(reference, row(1), row(2))
    fill(own, row(3))
    assert ledger_script.main([f"--ledger={own}", "--columns", "row", "seed"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2:5] == [["r1", "1"], ["r2", "2"], ["1", "3"]]
    assert " ".join(lines[5]).startswith(f"1 rows in {own}; 2 (r...) came with the project, in {reference}")
    for number, seed in (("r2", 2), ("1", 3)):
        assert ledger_script.main([f"--ledger={own}", f"--rerun={number}"]) == 0
        assert f"--seed={seed} " in capsys.readouterr().out
    for number in ("r3", "2", "0", "x"):
        assert ledger_script.main([f"--ledger={own}", f"--rerun={number}"]) == 2
        said = f"--rerun={number}: expected a row from 1 to 1 of {own}, or from r1 to r2 of {reference}"
        assert said in capsys.readouterr().err


def test_lane_b_logs_no_run_that_the_project_has_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "LEDGER", tmp_path / "lane_b.csv")
    monkeypatch.setattr(run_log, "REFERENCE", tmp_path / "lane_b_reference.csv")
    made = dict.fromkeys(run_log.schema(), "1") | {"run_id": "a", "timestamp_utc": "t"}
    append_row(run_log.REFERENCE, run_log.schema(), made)
    assert run_log.logged(run_log.LEDGER) == [("a", "t")] and run_log.logged(tmp_path / "other.csv") == []
    with pytest.raises(ValueError, match="a is in .*already"):
        run_log.append(run_log.LEDGER, [made | {"run_id": "b"}, made])
    run_log.append(run_log.LEDGER, [made | {"run_id": "b"}])
    assert run_log.logged(run_log.LEDGER) == [("a", "t"), ("b", "t")] and len(read_rows(run_log.REFERENCE)) == 1


def test_machine_is_compared_with_the_projects_rows_and_adds_none_to_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = dict(versions={"torch": "2.9.1"}, resolved={"dtype": "float32"}, profile_hash="f" * 64, tree_hash="a" * 64)
    curve = [{"step": step, "val/bpb": 3.0 - step / 1000} for step in machines.STEPS]
    monkeypatch.setattr(machines, "prepare", lambda *args: None)
    monkeypatch.setattr(machines, "train", lambda home, dtype: (made, curve))
    monkeypatch.setattr(machines, "cpu_name", lambda: "Theirs")
    machines.main([f"--ledger={machines.REFERENCE}"])
    monkeypatch.setattr(machines, "cpu_name", lambda: "Mine")
    capsys.readouterr()
    assert machines.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["the project" in lines[2], "Theirs" in lines[2], " you " in lines[3], "Mine" in lines[3]] == [True] * 4
    assert len(read_rows(machines.LEDGER)) == len(read_rows(machines.REFERENCE)) == 1
    monkeypatch.setattr(machines, "cpu_name", lambda: "Theirs")
    machines.main([])
    assert "the same as a row from the project, not kept again" in capsys.readouterr().out
    assert len(read_rows(machines.LEDGER)) == 1


# -----------------------------------------------------------------------------
# The bank

def test_projects_rows_lend_by_the_same_rules_and_a_users_own_row_of_a_seed_comes_first(files):
    own, reference = files
    fill(reference, *(row(FIRST_SEED + i) for i in range(4)), row(FIRST_SEED + 4) | {"device": "cpu: another"})
    fill(own, row(FIRST_SEED + 3) | {"timestamp": "2026-02-02"})
    like = borrower(lab_case.make().arms[0].config, "cpu: a processor", 1, record()["tree_hash"])
    like |= {"command": row(1)["command"]}
    runs, left_out = banked_runs(read_all(own), PROFILE, like=like)
    assert [one["row"] for one in runs] == ["r1", "r2", "r3", 1]
    assert "on another device (cpu: another, now cpu: a processor)" in " ".join(left_out)
    noise = measure(read_all(own), PROFILE, like=like)
    assert noise["from_reference"] == 3
    assert "3 of the banked runs came with the project (dev/ledger/reference.csv)" in describe(noise)
    assert "from_reference" not in measure(read(own), PROFILE)


def test_a_protocol_says_that_its_bank_came_with_the_project(files, tmp_path, monkeypatch):
    own, reference = files
    lab_case.enter(tmp_path, monkeypatch)
    made = lab_case.make(ledger=own, machine="a processor", jobs=1)
    command = borrower(made.arms[0].config, "cpu: a processor", 1, lab_case.TREE)["command"]
    shared = {"profile_hash": made.profile_hash, "command": command, "tree_hash": lab_case.TREE}
    fill(reference, *(row(FIRST_SEED + i, val_bpb=2.6 + 0.001 * i) | shared for i in range(8)))
    session = Session(made)
    session.declare()
    assert session.declaration.noise_source == "bank" and session.declaration.noise.metrics["val_bpb"].nu == 7
    said = []
    announce(session, [], said.append)
    line = "8 of the banked runs came with the project (dev/ledger/reference.csv)"
    assert f"  {line}" in said and line in basis_lines(session.facts())
    assert not own.exists()  # declaring writes beside it, in the user's folder


def test_candidate_that_the_project_ran_is_refused_on_its_seeds_and_the_message_says_whose_they_are(
        files, tmp_path, monkeypatch):
    own, reference = files
    lab_case.enter(tmp_path, monkeypatch)
    made = lab_case.make(ledger=own, machine="a processor")
    gate = made.arms[1].config
    command = borrower(gate, "cpu: a processor", 1, lab_case.TREE)["command"]
    fill(reference, row(1337, label="theirs", arm="gate") | {"profile_hash": made.profile_hash, "command": command})
    with pytest.raises(ValueError, match=r"seeds 1337 under label theirs \(rows that came with the project, .*\): "
                                         r"seeds that were seen cannot be declared again; give new ones \(--seeds"):
        Session(made).declare()
    other = lab_case.make(ledger=tmp_path / "other.csv", machine="a processor")
    Session(other).declare()
