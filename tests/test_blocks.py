"""
What a block may be made of: layers with loss terms, several residual streams, a mixer for each layer, and what is
refused. The layers here are toys that the tests add to the dicts.

python -m pytest tests/test_blocks.py -q
"""

import pytest
import torch
from closed_form import RATES, TINY, fill, targets, tokens
from rows_case import OFF, config_of, usable

from nanochat.gpt import MIXERS, MLPS, RESIDUALS, build_model, make_gpt
from nanochat.gpt_config import GPTConfig
from nanochat.layers.cache import DecodeCache
from nanochat.layers.layer import Layer
from nanochat.layers.linear import Linear
from nanochat.layers.mlp import ReluSquaredMLP
from nanochat.layers.residual import PlainResidual
from nanochat.optim import setup_optimizer

torch.set_num_threads(1)
X, Y = tokens((2, 20), 70), targets((2, 20), 70)


class Shift(Layer):
    """y_t = W x_{t-1}: a mixer without attention, and without room for a value embedding."""
    refuses = ("value_embeds",)

    def __init__(self, config, layer_idx):
        super().__init__()
        self.proj = Linear(config.n_embd, config.n_embd)

    @torch.no_grad()
    def init_weights(self):
        self.proj.weight.uniform_(-0.1, 0.1)

    def forward(self, x, ctx):
        state = None if ctx.cache is None else ctx.cache.of(self)
        last = state["x"] if state else torch.zeros_like(x[:, :1])
        if state is not None:
            state["x"] = x[:, -1:]
        return self.proj(torch.cat([last, x[:, :-1]], dim=1)), {}


class Penalized(ReluSquaredMLP):
    """Two terms: its output's mean square, and a figure that is only recorded."""
    aux_weights = {"size": 0.5, "layers": 0.0}

    def forward(self, x, ctx):
        y, _ = super().forward(x, ctx)
        return y, {"size": y.float().square().mean(), "layers": torch.ones(())}


class TwoStreams(PlainResidual):
    """Reads the mean of two streams and writes unevenly, with weights whose mean is 1: the mean is the plain stream."""
    streams = 2

    def __init__(self, config, sublayer_idx):
        super().__init__(config, sublayer_idx)
        self.sublayer_idx = sublayer_idx

    def enter(self, x):
        return torch.stack([x, x], dim=2)

    def leave(self, s):
        return s.mean(dim=2)

    def read(self, s, ctx):
        return s.mean(dim=2), None

    def write(self, s, x, y, carry, ctx):
        share = torch.tensor([1.5, 0.5]).roll(self.sublayer_idx)
        return s + share[:, None] * y[:, :, None]


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for rows, name, toy in ((MIXERS, "shift", Shift), (MLPS, "penalized", Penalized), (RESIDUALS, "two", TwoStreams)):
        monkeypatch.setitem(rows, name, toy)


def make(**changes):
    return fill(build_model(config_of(changes), "cpu", seed=0))


def decoded_in_two(model):
    cache = DecodeCache(2, 20)
    return torch.cat([model(part, cache=cache) for part in (X[:, :9], X[:, 9:])], dim=1)


# -----------------------------------------------------------------------------
# Loss terms

def test_layers_of_today_return_no_term_and_leave_the_loss_as_it_is():
    for residual in ("plain", "symplectic"):
        model = make(residual=residual)
        loss, terms = model(X, Y, with_aux=True)
        assert terms == {} and model.aux_weights == {} and torch.equal(loss, model(X, Y))
        assert model.objective(loss, terms) is loss


def test_terms_of_one_name_are_summed_over_the_layers_and_weighted_in_the_objective():
    model, seen = make(mlp="penalized"), []
    for block in model.transformer.h:
        block.mlp.register_forward_hook(lambda module, args, out: seen.append(out[0].float().square().mean()))
    loss, terms = model(X, Y, with_aux=True)
    assert terms["layers"] == TINY["n_layer"] and terms["size"].item() == pytest.approx(sum(seen).item(), rel=1e-6)
    assert model.objective(loss, terms).item() == pytest.approx(loss.item() + 0.5 * sum(seen).item(), rel=1e-6)
    assert torch.equal(loss, make()(X, Y)), "the cross-entropy itself does not know the terms"


def test_terms_reach_the_gradients_and_plain_calls_never_see_them():
    with_terms, without = make(mlp="penalized"), make()
    with_terms.objective(*with_terms(X, Y, with_aux=True)).backward()
    without(X, Y).backward()
    name = "transformer.h.3.mlp.c_proj.weight"
    a, b = (model.get_parameter(name).grad for model in (with_terms, without))
    assert (a - b).norm() > 1e-3 * b.norm()
    with torch.no_grad():
        assert torch.equal(with_terms(X), without(X)) and torch.equal(with_terms(X, Y), without(X, Y))
        logits, terms = with_terms(X, with_aux=True)
        assert torch.equal(logits, without(X)) and list(terms) == ["size", "layers"]


def test_two_weights_for_one_term_are_a_bug(monkeypatch):
    class Other(Shift):
        aux_weights = {"size": 0.1}
    monkeypatch.setitem(MIXERS, "other", Other)
    with pytest.raises(AssertionError, match="size"):
        make(mlp="penalized", mixer="other")


# -----------------------------------------------------------------------------
# Streams

@torch.no_grad()
def test_several_streams_need_no_word_in_the_model():
    """The toy's mean stream is the plain network, though its streams differ."""
    bare = {name: OFF[name] for name in ("lambdas", "backout")}
    two, plain, streams = make(residual="two"), make(residual="plain", **bare), []
    two.transformer.h[-1].register_forward_hook(lambda module, args, out: streams.append(out[0]))
    assert (two(X) - plain(X)).abs().max() < 1e-5
    assert streams[0].shape == (2, 20, 2, 48) and (streams[0][:, :, 0] - streams[0][:, :, 1]).abs().max() > 0.1
    assert (decoded_in_two(two) - two(X)).abs().max() < 1e-5


def test_residuals_know_their_sublayer():
    blocks = make(residual="two").transformer.h
    indices = [res.sublayer_idx for block in blocks for res in (block.attn_res, block.mlp_res)]
    assert indices == list(range(2 * TINY["n_layer"]))


@pytest.mark.parametrize("extra", ["lambdas", "backout"])
def test_extras_of_one_stream_refuse_several_by_name(extra):
    changes = {**usable(dict(residual="two")), extra: True}
    with pytest.raises(ValueError, match=f"TwoStreams does not work with {extra}=True; add --no-{extra}"):
        make_gpt(GPTConfig(**{**TINY, **changes}))


# -----------------------------------------------------------------------------
# A mixer for each layer, and names

@torch.no_grad()
def test_mixers_are_tiled_over_the_layers():
    model = make(mixer="shift, attention,shift", n_layer=5)
    assert [type(block.attn) is Shift for block in model.transformer.h] == [True, False, True, True, False]
    assert (decoded_in_two(model) - model(X)).abs().max() < 1e-5
    assert GPTConfig(mixer="shift,attention").variant_dict() == {"mixer": "shift,attention"}
    assert GPTConfig().variant_dict() == {} and GPTConfig().mixer_of(7) == "attention"


def test_mixer_without_value_embeddings_refuses_them_by_the_name_of_the_flag():
    with pytest.raises(ValueError, match="Shift does not work with value_embeds=True; add --no-value-embeds"):
        make_gpt(GPTConfig(**TINY, mixer="attention,shift"))


@pytest.mark.parametrize("option, rows", [("mixer", MIXERS), ("mlp", MLPS), ("residual", RESIDUALS)])
def test_unknown_row_is_refused_with_the_rows_there_are(option, rows):
    with pytest.raises(ValueError, match=f"--{option}=nonsense: there is no such row; the rows are {', '.join(rows)}"):
        make_gpt(GPTConfig(**{option: "nonsense"}))


def test_toys_train_like_any_other_layer():
    model = make(mixer="shift", mlp="penalized", residual="two")
    optimizer, losses = setup_optimizer(model, **RATES), []
    for _ in range(3):
        loss, terms = model(X, Y, with_aux=True)
        model.objective(loss, terms).backward()
        optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(p.isfinite().all() for p in model.parameters())
