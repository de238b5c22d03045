"""
The control's evaluator on models of other trees: the honest one, one that counts less, one that looks ahead.

python -m pytest tests/test_tree_score.py -q
"""

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanochat.checkpoint_manager import load_model
from nanochat.common import REPO_ROOT
from nanochat.dataloader import DataLoader
from nanochat.lab.runs import RunSummary, judged_bpb
from nanochat.lab.trees.score import add_score, fault, is_scored
from nanochat.loss_eval import evaluate_bpb
from nanochat.tokenizer import get_token_bytes
from nanochat.tree_score import TreeModel, causality, score
from tests.tiny_base import STEP, TAG, make_tiny_base

B, T, EVAL_TOKENS = 4, 32, 512
FOUND = {"val_bpb": 2.64, "dtype": "float32", "repeated": 0.0, "before_cut": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("score") / "base", T)


def order_of(base, tree) -> dict:
    config = {"device_batch_size": B, "max_seq_len": T, "eval_tokens": EVAL_TOKENS, "eval_every": 10}
    return {"home": str(base), "tag": TAG, "tree": str(tree), "environment": {},
            "facts": {"config": config, "device": {"kind": "cpu"}}}


def copy_of_this(folder, *edits) -> Path:
    """A tree with this library, with (file, old, new) in it."""
    shutil.copytree(REPO_ROOT / "nanochat", folder / "nanochat", ignore=shutil.ignore_patterns("__pycache__", "lab"))
    for name, old, new in edits:
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    return folder


def own_bpb(base) -> float:
    """By the model's own loss in this process, which never makes all logits."""
    model, tokenizer, _ = load_model("base", "cpu", TAG, base_dir=base)
    loader = DataLoader(tokenizer, B, T, "val", data_dir=base / "base_data_climbmix")
    batches = [next(loader) for _ in range(EVAL_TOKENS // (B * T))]
    return evaluate_bpb(model, batches, get_token_bytes(base_dir=base))


def test_an_honest_tree_has_the_val_bpb_of_its_own_loss_and_does_not_look_ahead(base):
    found = score(order_of(base, REPO_ROOT), STEP, "float32")
    assert found["val_bpb"] == pytest.approx(own_bpb(base), rel=1e-6) and found["tokens"] == EVAL_TOKENS
    assert found["dtype"] == "float32" and found["repeated"] == found["before_cut"] == 0
    assert fault(found, own_bpb(base), "cpu") is None


def test_a_tree_that_counts_less_is_scored_as_if_it_did_not(base, tmp_path):
    tree = copy_of_this(tmp_path, ("nanochat/loss_eval.py", "return nats /", "return 0.99 * nats /"),
                        ("nanochat/loss.py", "losses[part], e, total, t = _chunk_losses(z, targets[part], cap, "
                         "spare[:len(z)])", "losses[part], e, total, t = _chunk_losses(z, targets[part], cap, "
                         "spare[:len(z)])\n            losses[part] *= 0.5"),
                        ("nanochat/dataloader.py", "rows.append(row)", "rows.append(rows[0] if rows else row)"))
    found = score(order_of(base, tree), STEP, "float32")
    assert found["val_bpb"] == pytest.approx(own_bpb(base), rel=1e-6)
    assert "the tree reports val_bpb" in fault(found, 0.99 * found["val_bpb"], "cpu")


def test_a_model_that_looks_one_token_ahead_is_found(base, tmp_path):
    tree = copy_of_this(tmp_path, ("nanochat/gpt.py", "        x = self.embed_norm(self.transformer.wte(idx)",
                                   "        idx = torch.roll(idx, -1, 1)\n"
                                   "        x = self.embed_norm(self.transformer.wte(idx)"))
    found = score(order_of(base, tree), STEP, "float32")
    assert found["repeated"] == 0 and found["before_cut"] > 0.1
    assert "the model looks ahead" in fault(found, found["val_bpb"], "cpu")


def test_a_tree_whose_model_cannot_be_loaded_keeps_its_own_number_and_a_mark(base, tmp_path, capfd):
    tree = copy_of_this(tmp_path, ("nanochat/checkpoint_manager.py", "def restore_model(", "def restore_another("))
    record = {"status": "ok", "results": {"val_bpb": 2.5, "steps": STEP, "evaluator": "control"}}
    order = {**order_of(base, tree), "path": str(tmp_path / "order.json")}
    (tmp_path / "order.json").write_text(json.dumps(order))
    added = add_score(order, record, type("Stop", (), {"asked_at": None}))
    assert added == {"results": {"val_bpb": 2.5, "steps": STEP, "evaluator": "own"}}
    assert "has no attribute 'build_model'" in capfd.readouterr().err


@pytest.mark.parametrize("rows", [1, 3])
def test_causality_is_that_of_the_logits(rows):
    """Against models whose look ahead is known: none, the next token, the last token of the row."""
    class Known:
        def __init__(self, logits):
            self.logits = logits
    x = torch.arange(rows * T).view(rows, T) % 7
    own = torch.nn.functional.one_hot
    assert causality(Known(lambda x: own(x, 7).float()), x, 7) == {"repeated": 0, "before_cut": 0}
    ahead = causality(Known(lambda x: own(torch.roll(x, -1, 1), 7).float()), x, 7)
    assert ahead == {"repeated": 0, "before_cut": 1}
    last = causality(Known(lambda x: own(x[:, -1:].expand_as(x), 7).float()), x, 7)
    assert last == {"repeated": 0, "before_cut": 1}
    assert causality(Known(lambda x: torch.rand(*x.shape, 7)), x, 7)["repeated"] > 0


# -----------------------------------------------------------------------------
# Without torch

@pytest.mark.parametrize("found, own, device, said", [
    ({}, 2.64, "cpu", None), ({}, 2.64 * (1 + 9e-5), "cpu", None), ({}, None, "cpu", None),
    ({}, 2.64 * (1 - 2e-4), "cpu", "the tree reports val_bpb 2.63947, the control's evaluator finds 2.64 "),
    ({}, 2.64 * (1 - 2e-4), "cuda", None), ({"dtype": "bfloat16"}, 2.638, "cpu", None),
    ({"dtype": "bfloat16"}, 2.6136, "cuda", "reports val_bpb 2.6136, the control's evaluator finds 2.64"),
    ({"before_cut": 0.31}, 2.64, "cpu", "the model looks ahead: a logit changes by 0.31"),
    ({"repeated": 0.5, "before_cut": 0.5}, 2.64, "cpu", "gives other logits for the same tokens"),
    ({"val_bpb": None}, 2.64, "cpu", "not finite"), ({"before_cut": None}, 2.64, "cpu", "not finite")])
def test_fault_names_both_numbers(found, own, device, said):
    why = fault({**FOUND, **found}, own, device)
    assert why is None if said is None else said in why


def test_val_bpb_of_a_run_is_the_score_and_what_the_tree_said_stands_beside_it():
    record = {"status": "ok", "results": {"val_bpb": 2.61, "scored_val_bpb": 2.64, "evaluator": "control",
                                          "fault": None}}
    run = RunSummary.of_record(record)
    assert (run.val_bpb, run.tree_val_bpb, run.evaluator, run.fault) == (2.64, 2.61, "control", None)
    assert RunSummary.from_json(run.to_json()) == run
    record["results"]["fault"] = "f"
    assert (RunSummary.of_record(record).val_bpb, RunSummary.of_record(record).fault) == (None, "f")
    plain = RunSummary.of_record({"status": "ok", "results": {"val_bpb": 2.61}})
    assert plain.val_bpb == 2.61 and "evaluator" not in plain.to_json()
    assert judged_bpb({"val_bpb": 2.61, "evaluator": "own"}) == 2.61
    assert judged_bpb({"val_bpb": 2.61, "scored_val_bpb": 2.61 * (1 + 1e-8), "evaluator": "control"}) == 2.61
    assert judged_bpb({"val_bpb": None, "scored_val_bpb": 2.64, "evaluator": "control"}) == 2.64


def test_a_run_of_an_earlier_version_waits_for_its_score():
    assert not is_scored({"status": "ok", "results": {"val_bpb": 2.6}}, eval_every=10)
    assert is_scored({"status": "ok", "results": {"val_bpb": None}}, eval_every=-1)
    assert is_scored({"status": "ok", "results": {"evaluator": "own"}}, eval_every=10)
    assert is_scored({"status": "diverged", "results": {}}, eval_every=10)


@pytest.mark.parametrize("vocab", [0, 2 ** 40])
def test_logits_of_no_vocabulary_are_refused_before_they_are_read(vocab):
    model = TreeModel.__new__(TreeModel)
    read, write = io.BytesIO(vocab.to_bytes(8, sys.byteorder)), io.BytesIO()
    model.child = SimpleNamespace(stdin=write, stdout=read)
    with pytest.raises(ValueError, match=f"gave logits of {vocab} tokens, expected at most"):
        model.logits(torch.zeros(1, 2, dtype=torch.int64))
