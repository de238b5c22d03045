"""
A label or a candidate that comes back: without its bank, without its reason, as a near copy.

python -m pytest tests/test_declared_again.py -q
"""

from pathlib import Path

import pytest

from nanochat.common import read_json
from nanochat.lab.csv_file import read_rows
from nanochat.lab.protocol import session
from nanochat.lab.protocol.announce import announce
from nanochat.lab.protocol.protocol import run
from nanochat.lab.protocol.session import Session
from nanochat.lab.verdict.facts import MetricNoise, Noise
from tests.lab_case import GATE, enter, make

LATEST = "results/t_latest.json"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)


def protocol(candidates=(GATE,), seeds=(1, 2, 3, 4, 5), **options):
    return make(candidates, list(seeds), **{"ledger": "ledger.csv", "jobs": 2, **options})


def test_label_whose_bank_is_not_lent_any_more_goes_on_as_its_next_number(monkeypatch, capsys):
    """An edit of the trainer: the same command is not refused. It costs the level of one more label."""
    lent = Noise("bank", "p", {"val_bpb": MetricNoise(0.002, 9)})
    for noise in (lent, Noise("none", left_out=["seeds 900001 to 900008: by other code"])):
        monkeypatch.setattr(session.Session, "read_bank", lambda self, noise=noise: (noise, None))
        assert run(protocol(seeds=[1, 2])) == 0
    found = read_json(LATEST)["declaration"]
    assert (found["noise_source"], found["numbers"], found["alpha"]) == ("none", {"gate": 2}, 0.008)
    assert "because its runs were seen under a bank that is not lent any more" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was declared otherwise"):
        run(protocol(seeds=[1, 2], primary="wall_time"))
    monkeypatch.setattr("nanochat.lab.protocol.protocol.run_cells", lambda *_: None)
    run(protocol(seeds=[7, 8], label="next"))
    assert read_json("results/next_latest.json")["declaration"]["numbers"] == {"gate": 3}


@pytest.mark.parametrize("file", ["result file", "no result file"])
def test_label_that_was_killed_before_its_first_run_is_declared_once(monkeypatch, file):
    monkeypatch.setattr(session.Session, "reuse", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(protocol())
    declared = Path("declarations.csv").read_text()
    if file == "no result file":
        Path(LATEST).unlink()
    monkeypatch.setattr(session, "now", lambda: "2999-01-01T00:00:00+00:00")
    with pytest.raises(ZeroDivisionError):
        run(protocol())
    assert Path("declarations.csv").read_text() == declared
    assert read_json(LATEST)["declaration"]["declared_at"] in declared


def test_reason_of_a_new_hypothesis_need_not_be_typed_again():
    run(protocol())
    for why in ("a fix of its rate", None):
        assert run(protocol(seeds=[11, 12, 13, 14, 15], label="again", hypothesis=why)) == 0
    found = read_json("results/again_latest.json")["declaration"]
    assert (found["hypothesis"], found["numbers"]) == ("a fix of its rate", {"gate": 1})


def test_near_copy_is_the_same_candidate():
    run(protocol())
    with pytest.raises(ValueError, match="on seeds 2 4 under label t"):
        run(protocol(["copy: --symplectic-gate --symplectic-gate-mix=0.15000001"], [2, 4], label="again"))


def test_label_keeps_the_bank_that_it_was_declared_with(monkeypatch):
    """Ten banks, and the smallest of them for the label: a later bank decides nothing, with --fresh neither."""
    spreads = [0.002, 0.0001, 0.0002]
    monkeypatch.setattr(session.Session, "read_bank", lambda self: (
        Noise("bank", "p", {"val_bpb": MetricNoise(spreads.pop(0), 9)}), None))
    for fresh in (False, False, True):
        assert run(protocol(seeds=[1, 2], fresh=fresh)) == 0
        found = read_json(LATEST)
        assert found["declaration"]["noise"]["metrics"]["val_bpb"]["s_b"] == 0.002
        assert found["noise"] == found["declaration"]["noise"] and found["declaration"]["margin"] == -0.0002
    assert spreads == [] and len(read_rows("declarations.csv")) == 1


def test_second_comparison_without_a_label_is_told_to_take_one():
    run(protocol(label=""))
    with pytest.raises(ValueError, match="label protocol was declared otherwise .* give a comparison a --label of its"):
        run(protocol(["rate: --matrix-lr=0.03"], label=""))


# -----------------------------------------------------------------------------
# The same candidate on other data

def test_a_candidate_that_was_declared_on_other_data_is_said_to_be_so(tmp_path):
    """Other data ask another question and have a level of their own: so a promotion may be looked for text by text."""
    def announced(label, data, seeds=(1, 2)):
        made = make(label=label, seeds=seeds, ledger=tmp_path / "ledger.csv")
        made.identify(data, "tok")
        session, said = Session(made), []
        session.declare()
        announce(session, [], said.append)
        return " ".join(said)
    assert "was declared before on other data" not in announced("a", "data")
    text = announced("b", "data with one line less")
    assert "gate was declared before on other data or common flags (a): each of these may promote for nothing" in text
    assert "(a, b)" in announced("c", "data with two lines less") and "(b, c)" in announced("d", "data", [3, 4])
