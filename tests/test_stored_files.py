"""
What version 0.1.0 wrote, loads: checkpoints, records, a tokenizer, a ledger with a bank, a protocol with its verdicts.

python -m pytest tests/test_stored_files.py -q

written_by_0_1_0.tar.gz was written by commit 23cf72c, on a CPU:
- base/: a run of tests/tiny.py (--model-dim=24 --head-dim=12) with its checkpoint at step 6 of 12, and one of the gate
- experiments.csv: `make noise SEEDS=8` and the rows of the protocol, at depth 2 and 24 steps of the profile smoke-cpu
- results/dec_*: a protocol of two candidates with that bank, seeds added one by one until each was decided
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import find_last_step, load_model
from nanochat.config import config_of_record, parse, profile_hash, read_config
from nanochat.lab.arms import split_flags
from nanochat.lab.ledger.bank import measure
from nanochat.lab.ledger.experiments import read
from nanochat.lab.profiles import PROFILES
from nanochat.lab.report.result_file import read_results
from nanochat.lab.verdict.gates import judge
from nanochat.record import read_metrics, read_record
from nanochat.tokenizer import get_tokenizer, get_tokenizer_id
from nanochat.trainer import train
from tests.tiny import TRAIN_FLAGS

ARCHIVE = Path(__file__).with_name("written_by_0_1_0.tar.gz")


@pytest.fixture
def stored(tmp_path, monkeypatch):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path


def dec(stored) -> dict:
    return json.loads((stored / "results" / "dec_latest.json").read_text(encoding="utf-8"))


# -----------------------------------------------------------------------------
# Checkpoints and records

def test_a_run_resumes_from_its_checkpoint_and_ends_where_it_ended(stored):
    """To the last bit on the machine that wrote it; on another one the rounding of six steps apart."""
    base = stored / "base"
    old = read_metrics(base / "records" / "old" / "metrics.jsonl")
    flags = [*TRAIN_FLAGS, "--model-dim=24", "--head-dim=12", "--model-tag=old", "--save-every=6", "--resume"]
    assert find_last_step(base / "base_checkpoints" / "old") == 6
    assert train(parse(flags), flags)["status"] == "ok"
    new = read_metrics(base / "records" / "old" / "metrics.jsonl")
    assert [row["step"] for row in new] == [row["step"] for row in old]
    for before, now in zip(old, new):
        assert now.keys() == before.keys()
        for name in ("train/loss", "train/grad_norm", "train/lrm", "val/bpb"):
            assert name not in before or now[name] == pytest.approx(before[name], rel=1e-4)


def test_a_variant_loads_and_its_evaluation_is_as_recorded(stored):
    model, tokenizer, meta = load_model("base", "cpu", "old_gate", step=12)
    assert model.config.residual == "symplectic" and model.config.symplectic_gate_mix == 0.5
    ids = torch.tensor([tokenizer.encode("kata lone misa")])
    assert torch.isfinite(model(ids)).all() and meta["step"] == 12


def test_a_record_says_which_options_its_run_had(stored):
    config = config_of_record(read_record(stored / "base", "old_gate")["config"])
    assert (config.residual, config.mlp, config.value_embeds) == ("symplectic", "relu_squared", True)


def test_the_tokenizer_is_the_one_that_the_checkpoint_names(stored):
    record = read_record(stored / "base", "old")
    assert get_tokenizer_id(stored / "base") == record["tokenizer_id"]
    assert get_tokenizer(stored / "base").get_vocab_size() == 300


# -----------------------------------------------------------------------------
# Ledger, bank and verdicts

def test_the_bank_of_the_ledger_is_the_one_of_the_declaration(stored):
    declared = dec(stored)["declaration"]["noise"]
    rows = read(stored / "experiments.csv")
    assert len(rows) == 8 + len(dec(stored)["runs"])
    found = measure(rows[:8], declared["profile_hash"], [1, 2, 3, 4, 5, 6])
    # These rows ran on an overloaded machine. Version 0.1.0 lent their speeds; today they lend their losses alone.
    speeds = {"tok_per_sec", "wall_time"}
    losses = {metric: entry for metric, entry in declared["metrics"].items() if metric not in speeds}
    assert declared["metrics"].keys() - found["metrics"].keys() == speeds and found["metrics"] == losses
    assert ["they lend no speed" in line for line in found.pop("left_out")] == [True]
    assert found | {"metrics": 0, "left_out": []} == declared | {"metrics": 0}


def test_rows_belong_to_the_profile_that_is_computed_today(stored):
    declaration = dec(stored)["declaration"]
    row = read(stored / "experiments.csv")[0]
    flags = [*PROFILES["smoke-cpu"].flags, "--no-quiet-start", *split_flags("flags", declaration["common_flags"])]
    found = profile_hash(read_config(flags), "cpu", row["dataset_id"], row["tokenizer_id"])
    assert found == declaration["noise"]["profile_hash"] == row["profile_hash"]


def test_the_stored_runs_get_the_stored_verdicts_to_the_last_digit(stored):
    """Two candidates, a bank, a look after each seed: every number of every gate."""
    facts = read_results(stored / "results" / "dec_latest.json")
    verdicts = [verdict.to_json() for verdict in judge(facts.declaration, facts.runs)]
    assert verdicts == dec(stored)["verdicts"] and [v["verdict"] for v in verdicts] == ["inconclusive", "reject"]


def test_a_result_file_is_written_again_as_it_was(stored):
    facts = read_results(stored / "results" / "dec_latest.json")
    assert json.dumps(facts.to_json()) == json.dumps(dec(stored))
