"""
Declarations that came first: what a label may still declare after runs were seen, each way to a promotion for nothing
tried for real on the quick stand-in of the trainer (tests/fake_trainer.py).

python -m pytest tests/test_declarations.py -v
"""

import csv
import json
import os
import shutil
from dataclasses import replace

import pytest

from nanochat.common import read_json, write_json
from nanochat.lab.csv_file import read_rows
from nanochat.lab.ledger import declarations, experiments
from nanochat.lab.protocol import session
from nanochat.lab.protocol.protocol import run
from nanochat.lab.report.entries import verdicts_of
from nanochat.lab.report.result_file import read_results
from tests.lab_case import GATE, enter, make

LEDGER, DECLARATIONS, LATEST = "ledger.csv", "declarations.csv", "results/t_latest.json"
FIVE = [1, 2, 3, 4, 5]
RATE = "rate: --matrix-lr=0.03"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)


def protocol(candidates=(GATE,), seeds=FIVE, **options):
    return make(candidates, seeds, **{"ledger": LEDGER, "jobs": 2, **options})


@pytest.fixture(scope="module")
def decided_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decided")
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        assert run(protocol([GATE, RATE]), lambda *_: None) == 0
    return folder


@pytest.fixture
def decided(decided_once):
    """Label t has run two candidates, gate and rate, on FIVE. Returns its result file as JSON."""
    shutil.copytree(decided_once, ".", dirs_exist_ok=True)
    return read_json(LATEST)


@pytest.fixture(scope="module")
def undecided_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undecided")
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        assert run(protocol([GATE, RATE], [1, 2]), lambda *_: None) == 0
    return folder


@pytest.fixture
def undecided(undecided_once):
    """Label t has run two candidates on two seeds without a bank: no verdict can fall."""
    shutil.copytree(undecided_once, ".", dirs_exist_ok=True)


def row_of_declaration():
    return read_rows(DECLARATIONS)


# -----------------------------------------------------------------------------
# The ledger

def test_declaration_is_in_its_ledger_before_the_first_run(monkeypatch):
    seen = []
    monkeypatch.setattr("nanochat.lab.protocol.protocol.run_cells", lambda *_: seen.append(read_rows(DECLARATIONS)))
    run(protocol(seeds=[1, 2], hypothesis="the gate needs\na longer warm-up"))
    row, = seen[0]
    assert list(row) == declarations.schema() and not os.path.exists(LEDGER)
    assert (row["label"], row["candidates"], row["seeds"], row["level"]) == ("t", "gate", "1 2", "0.04")
    assert row["hypothesis"] == "the gate needs a longer warm-up"
    declared, = declarations.read(DECLARATIONS)
    assert declared.declaration.to_json() == read_json(LATEST)["declaration"]


def test_ledger_of_declarations_lies_beside_that_of_experiments():
    assert declarations.beside(experiments.LEDGER).parent == experiments.LEDGER.parent
    assert declarations.beside("dev/ledger/experiments.csv").as_posix() == "dev/ledger/declarations.csv"


def test_edited_row_is_refused_by_name(decided):
    rows = row_of_declaration()
    rows[0]["declaration"] = rows[0]["declaration"].replace('"alpha": 0.04', '"alpha": 0.05')
    with open(DECLARATIONS, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ValueError, match=r"declarations.csv, row 1 \(label t\) was damaged or edited"):
        run(protocol([GATE, RATE]))


def test_torn_last_row_was_never_declared(decided):
    with open(DECLARATIONS, "a") as f:
        f.write("2026-01-01T00:00:00+00:00,t,smoke")
    assert run(protocol([GATE, RATE])) == 0 and len(row_of_declaration()) == 1


def test_same_command_goes_on_under_the_first_declaration_and_adds_no_row(decided):
    assert run(protocol([GATE, RATE])) == 0
    assert read_json(LATEST)["declaration"] == decided["declaration"] and len(row_of_declaration()) == 1


def test_label_from_before_the_ledger_keeps_what_it_declared(decided):
    os.remove(DECLARATIONS)
    old = decided["declaration"] | {"alpha": 0.05, "margin": 0.0}
    for key in ("margin_in_own_sd", "min_gain_by_hand", "numbers"):
        old.pop(key)
    write_json(LATEST, decided | {"declaration": old})
    assert run(protocol([GATE, RATE])) == 0
    assert read_json(LATEST)["declaration"] == old
    assert declarations.read(DECLARATIONS)[0].declaration.to_json() == old


# -----------------------------------------------------------------------------
# After runs were seen

CHANGED = {
    "fewer candidates": dict(candidates=[GATE]), "other candidates": dict(candidates=[GATE, "r: --matrix-lr=0.05"]),
    "another primary": dict(candidates=[GATE, RATE], primary="wall_time"),
    "another margin": dict(candidates=[GATE, RATE], min_gain=0.01),
    "other looks": dict(candidates=[GATE, RATE], seeds=[*FIVE, 6, 7], until_decided=True),
    "best two seeds": dict(candidates=[GATE, RATE], seeds=[2, 4]),
    "one seed more": dict(candidates=[GATE, RATE], seeds=[*FIVE, 6])}


@pytest.mark.parametrize("file", ["kept", "deleted", "damaged"])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("change", CHANGED)
def test_seen_label_is_not_declared_otherwise(decided, change, fresh, file):
    if file == "deleted":
        shutil.rmtree("results")
    elif file == "damaged":
        with open(LATEST, "w") as f:
            f.write('{"runs": [')
    with pytest.raises(ValueError, match="label t was declared otherwise and has been run.*another --label with new"):
        run(protocol(fresh=fresh, **CHANGED[change]))
    assert len(row_of_declaration()) == 1


@pytest.mark.parametrize("file", ["deleted", "damaged"])
def test_lost_result_file_comes_back_under_the_declaration_of_its_runs(decided, file):
    if file == "deleted":
        shutil.rmtree("results")
    else:
        open(LATEST, "w").close()
    assert run(protocol([GATE, RATE])) == 0
    now = read_json(LATEST)
    assert now["declaration"] == decided["declaration"] and now["verdicts"] == decided["verdicts"]
    assert {r["declared_at"] for r in now["runs"]} == {decided["declaration"]["declared_at"]}
    assert all(r["reused"] for r in now["runs"])


@pytest.mark.parametrize("change", sorted(set(CHANGED) - {"one seed more", "other looks"}))
def test_label_that_could_decide_nothing_loses_nothing_either(undecided, change):
    options = CHANGED[change] | ({"seeds": [2, 1]} if change == "best two seeds" else {"seeds": [1, 2]})
    with pytest.raises(ValueError, match="declared otherwise"):
        run(protocol(**options))


def test_label_that_could_decide_nothing_is_extended_at_half_its_level(undecided, capsys):
    assert run(protocol([GATE, RATE])) == 0
    declared = read_json(LATEST)["declaration"]
    assert (declared["alpha"], declared["looks"], declared["noise_source"]) == (0.02, [5], "own")
    assert "level: 0.04 -> 0.02, because its runs were seen before it could decide" in capsys.readouterr().out
    assert [row["level"] for row in row_of_declaration()] == ["0.04", "0.02"]


def test_label_is_not_extended_by_seeds_that_another_label_showed(undecided):
    run(protocol([GATE], [3, 4, 5, 6, 7], label="again"))
    with pytest.raises(ValueError, match="candidate gate was declared or run on seeds 4 6 7 under label again"):
        run(protocol([GATE, RATE], [1, 2, 4, 6, 7]))
    assert run(protocol([GATE, RATE], [1, 2, 8, 9, 10])) == 0
    assert read_json(LATEST)["declaration"]["numbers"] == {"gate": 1, "rate": 1}


def test_run_that_began_before_its_declaration_is_refused_also_when_it_is_trained_again(decided):
    shutil.rmtree("results")
    os.remove(DECLARATIONS)
    rows = read_rows(LEDGER)
    os.remove(LEDGER)
    assert rows
    for fresh in (False, True):
        with pytest.raises(ValueError, match="s1 began at .* a run that was seen cannot be declared afterwards"):
            run(protocol(candidates=[GATE], fresh=fresh))
        os.remove(DECLARATIONS)


# -----------------------------------------------------------------------------
# A candidate over its labels

@pytest.mark.parametrize("seeds, seen", [([2, 4], "2 4"), ([4, 5, 6, 7, 8], "4 5")], ids=["subset", "overlap"])
def test_candidate_is_not_declared_on_seeds_that_another_label_showed(decided, seeds, seen):
    for reason in (None, "it deserves another chance"):
        with pytest.raises(ValueError) as e:
            run(protocol(["renamed: --symplectic-gate"], seeds, label="again", hypothesis=reason))
        assert f"candidate renamed was declared or run on seeds {seen} under label t" in str(e.value)
        assert "--seeds" in str(e.value) and "go on with label t" in str(e.value)


def test_runs_count_where_their_declaration_is_not_known(decided):
    os.remove(DECLARATIONS)
    with pytest.raises(ValueError, match="on seeds 2 4 under label t"):
        run(protocol(seeds=[2, 4], label="again"))
    os.remove(LATEST)
    with pytest.raises(ValueError, match="or restore the row of label t in declarations.csv, which is missing"):
        run(protocol([GATE, RATE]))


def test_labels_of_a_candidate_share_one_level_until_a_new_hypothesis(decided, monkeypatch, capsys):
    monkeypatch.setattr("nanochat.lab.protocol.protocol.run_cells", lambda *_: None)
    levels = []
    for i, why in enumerate((None, None, "the gate after a fix of its rate", None), start=1):
        run(protocol(seeds=[10 * i, 10 * i + 1], label=f"t{i}", hypothesis=why))
        levels.append(read_json(f"results/t{i}_latest.json")["declaration"]["alpha"])
    assert levels == [0.008, 0.0016, 0.04, 0.008]
    said = capsys.readouterr().out
    assert "label 3 of candidate gate: the levels of all its labels add up to 5 %, and 0.16 % is left" in said
    assert "new hypothesis: the gate after a fix of its rate" in said
    run(protocol([RATE], seeds=[77, 78], label="other"))
    assert read_json("results/other_latest.json")["declaration"]["alpha"] == 0.008  # rate's second label, not gate's


def test_other_candidate_workload_or_code_begins_at_one(decided, monkeypatch):
    monkeypatch.setattr("nanochat.lab.protocol.protocol.run_cells", lambda *_: None)
    run(protocol(["gate: --symplectic-gate --symplectic-gate-mix=0.3"], label="a"))
    run(protocol(flags=["--num-iterations=30"], label="b"))
    assert [read_json(f"results/{x}_latest.json")["declaration"]["numbers"] for x in "ab"] == [{"gate": 1}] * 2


def test_typing_error_costs_no_label(monkeypatch):
    monkeypatch.setattr("nanochat.lab.protocol.protocol.run_cells", lambda *_: None)
    run(protocol(primary="wall_time"))
    run(protocol())  # nothing was run under the first declaration
    assert [(row["level"], row["label_numbers"]) for row in row_of_declaration()] == [("0.04", "1")] * 2


def test_runs_of_a_killed_protocol_were_seen(monkeypatch):
    """The protocol is killed, and its trainers end by themselves: no file of the lab has a row of theirs."""
    def killed(session, cells):
        for cell in cells:
            attempt = session.executor.submit(cell)
            while not session.executor.poll(attempt, 0.1):
                pass
        raise SystemExit
    with monkeypatch.context() as m:
        m.setattr("nanochat.lab.protocol.protocol.run_cells", killed)
        with pytest.raises(SystemExit):
            run(protocol())
    assert not os.path.exists(LEDGER)
    with pytest.raises(ValueError, match="label t was declared otherwise and has been run"):
        run(protocol(seeds=[2, 4]))
    assert run(protocol()) == 0


def test_new_hypothesis_stands_beside_the_verdict(decided):
    results = read_results(LATEST)
    results = replace(results, declaration=replace(results.declaration, hypothesis="a fix"))
    assert all(text.endswith(" (new hypothesis: a fix)") for text in verdicts_of([results]).values())


def test_clock_that_was_set_back_is_refused(decided, monkeypatch):
    monkeypatch.setattr(session, "now", lambda: "2020-01-01T00:00:00+00:00")
    with pytest.raises(ValueError, match="it is 2020-01-01T00:00:00.* by the clock.*a clock ran backwards"):
        run(protocol(seeds=[11, 12], label="again"))


def test_declaration_is_refused_where_another_process_declared_the_candidate_meanwhile(monkeypatch):
    first, second = session.Session(protocol(label="a")), session.Session(protocol(label="b"))
    first.declare()
    with pytest.raises(ValueError, match="declared by another process just now"):
        second.declare()


def test_aa_candidates_are_the_control_and_use_nothing_up(monkeypatch):
    monkeypatch.setattr("nanochat.lab.protocol.protocol.run_cells", lambda *_: None)
    for label in ("a", "b"):
        run(protocol(["aa:"], label=label, aa=True))
        assert read_json(f"results/{label}_latest.json")["declaration"]["alpha"] == 0.04


def test_hash_of_a_row_is_the_hash_of_its_candidate(decided):
    rows = [row for row in experiments.read(LEDGER) if row["arm"] == "gate"]
    row, = row_of_declaration()
    assert rows and {declarations.hash_of_row(row) for row in rows} == {row["option_hashes"].split()[0]}
    assert json.loads(row["declaration"])["label"] == "t"
