"""
A candidate that would be the same run as the control, or as another candidate, is refused before anything is made.

python -m pytest tests/test_equal_arms.py -q
"""

import re
import shutil

import pytest
from test_runs import ROOT, Stage

from nanochat.lab import profiles
from scripts import protocol
from tests.lab_case import enter


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, base_dir):
    enter(tmp_path, monkeypatch)
    monkeypatch.delenv("AA", raising=False)
    monkeypatch.setattr(profiles, "prepare", lambda *args: pytest.fail("nothing may be made before it is refused"))


@pytest.mark.parametrize("candidates, says", [
    (["--matrix-lr=0.02"], "arm candidate: --matrix-lr=0.02 changes nothing, so it is the same run as control"),
    (["a: --no-symplectic-gate"], "arm a: --no-symplectic-gate changes nothing"),
    (["a: --symplectic-gate-mix=0.15"], "changes nothing"),  # its default, and the option that it needs is off
    (["a: --save-every=10"], "arm a: --save-every=10 changes nothing"),  # no number of a run depends on it
    (["a: --matrix-lr=0.03", "b: --matrix-lr=0.030"], "arm b: .* the same run as a"),
    (["a: --symplectic-gate", "b: --residual=symplectic"], "arm b: .* the same run as a"),
    (["copy:"], "arm copy: it has no flags"),
    (["a: --symplectic-gate-mix=0.05"], "--symplectic-gate beside it: alone it changes nothing"),
])
def test_equal_options_are_refused_by_name(candidates, says, capsys):
    assert protocol.main(["--profile=smoke-cpu", *(f"--candidate={text}" for text in candidates)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(says, error), error


def test_the_refusal_says_how_to_mean_it_and_then_it_runs(capsys):
    assert protocol.main(["--profile=smoke-cpu", "--candidate=--matrix-lr=0.02"]) == 2
    assert "AA=1 compares the control with itself" in capsys.readouterr().err
    parse = protocol.build_parser().parse_args
    made = protocol.make_protocol(parse(["--profile=smoke-cpu", "--candidate=--matrix-lr=0.02", "--aa"]))
    assert made.plan.aa and [arm.name for arm in made.arms] == ["control", "candidate"]
    assert protocol.main(["--profile=smoke-cpu", "--candidate=--matrix-lr=0.03", "--aa"]) == 2


@pytest.mark.skipif(not shutil.which("bash") or not shutil.which("awk"), reason="no bash or no awk")
def test_point_of_a_grid_that_is_the_control_is_left_out_and_said(tmp_path, base_dir, capsys):
    stage = Stage(tmp_path, base_dir)
    flags = "--warmdown-ratio=0.4 --warmdown-shape=cosine"  # as after a theory slice that promoted it
    call, = stage.run(ROOT / "runs" / "warmdown.sh", PROFILE="smoke-cpu", FLAGS=flags)
    made = protocol.make_protocol(protocol.build_parser().parse_args(call[2:]))
    assert len(made.arms) == 8 and "cosine40" not in [arm.name for arm in made.arms]
    assert "left out: cosine40" in capsys.readouterr().out
    assert protocol.main(["--profile=smoke-cpu", "--grid", "--candidate=copy:"]) == 2
    assert "no candidate differs from the control" in capsys.readouterr().err
