"""
What lies under the base directory, by kind and by comparison, and what refers to it.

python -m pytest tests/test_disk.py -q
"""

import json
import re

import pytest

from nanochat.lab.arms import cell_tag
from nanochat.lab.ledger import experiments
from nanochat.lab.protocol import disk
from scripts import runs
from tests.two_runs_case import checkpoint, put

CELL = "nc_mix_d4_control_s1"


@pytest.mark.parametrize("tag, label", [
    (cell_tag("mix", 4, "gate", 1), "mix"), (cell_tag("", 4, "control", 1), "protocol"), (f"{CELL}_rerun", "mix"),
    (cell_tag("mix_d8", 8, "gate", 1), "mix_d8"), ("d12", "")])
def test_comparison_is_read_from_the_tag_where_no_row_says_it(base_dir, tag, label):
    checkpoint(base_dir, tag)
    assert [item.comparison for item in disk.survey(base_dir, [])] == [label]


def test_list_says_what_refers_to_what(base_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ledger = tmp_path / "ledger.csv"
    for label, seed in (("mix", 1), ("noise", 900001), ("gone", 3)):
        folder = put(base_dir, seed, run_id=f"nc_{label}_d4_control_s{seed}")
        checkpoint(base_dir, folder.name)
        if label != "gone":
            made = json.loads((folder / "run.json").read_text())
            experiments.append(ledger, experiments.row_of_record(made, [], label=label, arm="control"))
    checkpoint(base_dir, "d12")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mix_latest.json").write_text("{}")
    assert runs.main(["list", f"--ledger={ledger}"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"mix +1 +1 +1 +results", out) and re.search(r"noise +1 +1 +1 +noise bank", out)
    assert re.search(r"gone +1 +1 +0 +nothing", out) and re.search(r"d12 +\S+ +no", out)
    assert len(list(base_dir.rglob("*.pt"))) == 8  # nothing went


def test_empty_base_directory_is_listed(base_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert runs.main(["list", f"--ledger={tmp_path / 'x.csv'}"]) == 0
    assert runs.main(["prune", f"--ledger={tmp_path / 'x.csv'}"]) == 0
    assert "nothing that could go" in capsys.readouterr().out
