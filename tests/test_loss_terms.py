"""
A layer with a loss term of its own: it trains, it is recorded, and evaluation never sees it.

python -m pytest tests/test_loss_terms.py -q
"""

import math

import pytest
import torch

from nanochat import gpt
from nanochat.layers.mlp import ReluSquaredMLP
from tests.tiny import make_base
from tests.train_case import metrics, run


class WithTerm(ReluSquaredMLP):
    """The plain MLP, and the mean square of its output as a term."""
    aux_weights = {"size": 0.0}

    def forward(self, x, ctx):
        y, aux = super().forward(x, ctx)
        return y, {**aux, "size": y.float().square().mean()}


class Trained(WithTerm):
    aux_weights = {"size": 1e6}


@pytest.fixture
def base(base_dir, monkeypatch):
    make_base(base_dir)
    monkeypatch.setitem(gpt.MLPS, "recorded", WithTerm)
    monkeypatch.setitem(gpt.MLPS, "trained", Trained)
    return base_dir


def steps_of(base, tag):
    return [row for row in metrics(base, tag) if "train/loss" in row]


def test_a_term_of_weight_0_is_recorded_and_changes_no_bit(base):
    plain, recorded = run("--model-tag=plain"), run("--model-tag=recorded", "--mlp=recorded")
    assert recorded["status"] == plain["status"] == "ok"
    rows = steps_of(base, "recorded")
    assert all(row["train/size"] >= 0 for row in rows) and rows[-1]["train/size"] > 0 == rows[0]["train/size"]
    assert [{k: v for k, v in row.items() if k != "train/size"} for row in rows] == steps_of(base, "plain")
    assert recorded["results"]["val_bpb"] == plain["results"]["val_bpb"]


def test_a_term_with_a_weight_is_made_smaller_and_the_loss_shown_is_the_cross_entropy(base):
    run("--model-tag=recorded", "--mlp=recorded")
    run("--model-tag=trained", "--mlp=trained")
    free, held = steps_of(base, "recorded"), steps_of(base, "trained")
    assert held[0]["train/loss"] == free[0]["train/loss"], "the term is no part of the loss that is shown"
    assert held[-1]["train/size"] < 0.5 * free[-1]["train/size"]


def test_the_term_is_the_mean_over_micro_batches_and_summed_over_layers(base, monkeypatch):
    """A constant term of 1 in each of two layers reads 2, however many micro-batches a step has."""
    class Constant(ReluSquaredMLP):
        aux_weights = {"one": 0.0}

        def forward(self, x, ctx):
            return super().forward(x, ctx)[0], {"one": torch.ones(())}
    monkeypatch.setitem(gpt.MLPS, "constant", Constant)
    run("--model-tag=a", "--mlp=constant")
    assert all(math.isclose(row["train/one"], 2.0) for row in steps_of(base, "a"))


def test_evaluation_never_sees_a_term(base):
    model = gpt.build_model(gpt.GPTConfig(n_layer=2, n_embd=32, n_head=2, n_kv_head=2, vocab_size=64, sequence_len=16,
                                          mlp="trained"), "cpu", seed=1)
    ids = torch.arange(16)[None]
    loss, terms = model(ids, ids, with_aux=True)
    assert set(terms) == {"size"} and torch.equal(model(ids, ids), loss)
    assert model(ids, ids, loss_reduction="none").shape == (16,)
    assert torch.equal(model.objective(loss, terms), loss + 1e6 * terms["size"])
