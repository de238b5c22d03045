"""
The gated residual: its formula, its ramp, causality, and that off, or mix 0, is bit-identical to no gate at all.

python -m pytest tests/test_residual.py -q
"""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from closed_form import RATES, TINY, fill, targets, tokens, uniform

from nanochat.config import parse
from nanochat.cost import gpt_config
from nanochat.gpt import Context, GPTConfig, build_model
from nanochat.layers.cache import DecodeCache
from nanochat.layers.residual import Change, PlainResidual, SymplecticGate
from nanochat.optim import setup_optimizer

torch.set_num_threads(1)


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def gate_of(layer_idx=0, sublayer=0, **changes):
    config = GPTConfig(**{**TINY, "residual": "symplectic", **changes})
    return SymplecticGate(config, 2 * layer_idx + sublayer)


def context(step=0.0, cache=None):
    return Context(None, None, cache, torch.tensor(float(step)))


def naive_gate(x, mix, eps):
    """plans.md, section 1, read aloud: x [T,D] in float64 -> g [T]."""
    g, errors = [1.0], []
    for t in range(1, len(x)):
        errors.append(sum((a - b) ** 2 for a, b in zip(x[t], x[t - 1])) / len(x[t]))
        g.append((1 - mix) + mix * math.tanh(errors[-1] / (sum(errors) / len(errors) + eps)))
    return g


def stream(T=40, B=2):
    """Normed inputs with calm and lively stretches, and one token that repeats."""
    x = uniform((B, T, 48), "stream") * torch.linspace(0.1, 3, T).cos()[None, :, None]
    x = norm(x + 0.7 * uniform((B, 1, 48), "common"))
    x[:, 7] = x[:, 6]
    return x


@pytest.mark.parametrize("mix", [0.0, 0.05, 0.15, 0.6, 1.0])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_gate_equals_the_naive_loop(mix, eps):
    x = stream()
    g = gate_of(symplectic_gate_mix=mix, symplectic_gate_eps=eps).gate(x, context())
    assert g.shape == (2, 40, 1) and g.dtype == torch.float32
    expected = [naive_gate(row.double().tolist(), mix, eps) for row in x]
    assert np.abs(g[..., 0].double().numpy() - np.array(expected)).max() < 1e-6


@pytest.mark.parametrize("mix", [0.05, 0.15, 0.3, 0.6, 0.9, 1.0])
def test_gate_stays_in_its_range_and_starts_at_one(mix):
    still = uniform((1, 1, 48), "still").expand(1, 50, 48)
    x = norm(torch.cat([uniform((1, 300, 48), "x"), still, 9 * uniform((1, 50, 48), "y")], dim=1))
    g = gate_of(symplectic_gate_mix=mix).gate(x, context())[0, :, 0]
    assert g[0] == 1
    assert g.min() >= 1 - mix - 1e-7 and g.max() <= 1
    assert g[310:349].max() == g.min() == pytest.approx(1 - mix, abs=1e-6), "lowest where nothing changes"


def test_constant_input_gives_the_lowest_gate_without_dividing_by_zero():
    g = gate_of(symplectic_gate_mix=0.4).gate(norm(uniform((1, 1, 48), "x")).expand(1, 9, 48), context())[0, :, 0]
    assert g.tolist() == pytest.approx([1] + [0.6] * 8, abs=1e-7)


def test_gate_of_one_token_is_one():
    assert gate_of().gate(norm(uniform((3, 1, 48), "x")), context()).tolist() == [[[1.0]]] * 3


def test_gate_reads_the_past_only():
    x = stream()
    g = gate_of().gate(x, context())
    for t in (0, 1, 20, 38):
        other = x.clone()
        other[:, t + 1:] = norm(uniform((2, 39 - t, 48), "future"))
        changed = gate_of().gate(other, context())
        assert torch.equal(changed[:, :t + 1], g[:, :t + 1]) and not torch.equal(changed[:, t + 1], g[:, t + 1])


@pytest.mark.parametrize("cuts", [range(1, 40), (1, 2, 17, 39), (39,), (25,)], ids=lambda cuts: f"{len(cuts)}_cuts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_decoded_in_pieces_equals_the_whole(cuts, dtype):
    x, gate, cache = stream().to(dtype), gate_of(symplectic_gate_mix=0.5), DecodeCache(2, 40)
    pieces = []
    for start, end in zip((0, *cuts), (*cuts, 40)):
        cache.pos = start
        pieces.append(gate.gate(x[:, start:end], context(cache=cache)))
    assert (torch.cat(pieces, dim=1) - gate.gate(x, context())).abs().max() <= 1e-6


def test_sums_are_kept_in_float32_for_bfloat16_inputs():
    """Against the naive loop on the same bfloat16 inputs: bfloat16 sums would be off by 1e-2 after 2000 tokens."""
    x = norm(uniform((1, 2000, 24), "long")).bfloat16()
    g = gate_of(symplectic_gate_mix=1.0).gate(x, context())
    assert g.dtype == torch.float32
    e = (x[0, 1:].double() - x[0, :-1].double()).square().mean(dim=-1)
    expected = torch.tanh(e / (e.cumsum(0) / torch.arange(1, 2000) + 1e-6))
    assert (g[0, 1:, 0].double() - expected).abs().max() < 1e-5


def test_write_multiplies_the_output_before_it_joins_the_stream():
    s, x, y = uniform((2, 9, 48), "s"), norm(uniform((2, 9, 48), "x")), uniform((2, 9, 48), "y")
    gate = gate_of()
    assert torch.allclose(gate.write(s, x, y, None, context()), s + y * gate.gate(x, context()), rtol=0, atol=5e-7)
    assert torch.equal(PlainResidual(None, 0).write(s, x, y, None, context()), s + y)
    mixed = gate.write(s.bfloat16(), x.bfloat16(), y.bfloat16(), None, context())
    assert mixed.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_change_between_tokens_and_its_gradient_equal_the_plain_expression_in_float64(dtype, tolerance):
    x, de = norm(uniform((2, 7, 12), "x")).to(dtype).requires_grad_(), uniform((2, 6), "de")
    exact = x.detach().double().requires_grad_()
    e = ((exact[:, 1:] - exact[:, :-1]) ** 2).mean(dim=-1)
    ours, dx = Change.apply(x), torch.autograd.grad(Change.apply(x), x, de)[0]
    expected, = torch.autograd.grad(e, exact, de.double())
    assert ours.dtype == torch.float32 and (ours - e).abs().max() < 1e-6 and dx.dtype == dtype
    assert (dx - expected).abs().max() <= tolerance * expected.abs().max()


def test_odd_means_every_second_layer_from_the_second():
    s, x, y = uniform((1, 9, 48), "s"), norm(uniform((1, 9, 48), "x")), uniform((1, 9, 48), "y")

    def gated(sublayer, **changes):
        gates = [gate_of(i, sublayer, **changes) for i in range(5)]
        return [not torch.equal(gate.write(s, x, y, None, context()), s + y) for gate in gates]
    for sublayer in (0, 1):
        assert gated(sublayer, symplectic_gate_layers="odd") == [False, True, False, True, False]
        assert gated(sublayer) == [True] * 5


def test_mix_ramps_up_linearly_over_optimizer_steps():
    gate = gate_of(symplectic_gate_mix=0.4, symplectic_gate_ramp_start=10, symplectic_gate_ramp_steps=20)
    for step, mix in ((0, 0), (9, 0), (10, 0), (11, 0.02), (15, 0.1), (20, 0.2), (29, 0.38), (30, 0.4), (31, 0.4),
                      (10 ** 6, 0.4)):
        assert float(gate.mix_at(torch.tensor(float(step)))) == pytest.approx(mix, abs=1e-7), step
        expected = gate_of(symplectic_gate_mix=mix).gate(stream(), context())
        assert (gate.gate(stream(), context(step)) - expected).abs().max() < 1e-6
    assert float(gate_of(symplectic_gate_mix=0.4).mix_at(torch.tensor(0.0))) == 0.4, "without a ramp: from the start"


# -----------------------------------------------------------------------------
# In the model

def run(config, step=0, lr_steps=2):
    """State dict, logits, loss and gradients of a filled model, and its weights after optimizer steps."""
    model = fill(build_model(config, "cpu", seed=0))
    model.step.fill_(step)
    x, y = tokens((2, 160), 70), targets((2, 160), 70)
    out = {"logits": model(x).detach()}
    optimizer = setup_optimizer(model, **RATES)
    for i in range(lr_steps):
        model.zero_grad()
        out[f"loss {i}"] = model(x, y)
        out[f"loss {i}"].backward()
        out.update({f"grad {i} {name}": p.grad.clone() for name, p in model.named_parameters()})
        optimizer.step()
    return {**out, **{f"weight {name}": p.detach().clone() for name, p in model.state_dict().items()}}


def assert_bit_identical(a, b):
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_flag_that_is_off_leaves_no_trace_in_the_model_configuration():
    off = parse(["--no-symplectic-gate"])
    assert asdict(gpt_config(off, 70)) == asdict(gpt_config(parse([]), 70))
    on = gpt_config(parse(["--symplectic-gate", "--symplectic-gate-mix=0.9", "--symplectic-gate-eps=0.01",
                           "--symplectic-gate-layers=odd", "--symplectic-gate-ramp-start=3",
                           "--symplectic-gate-ramp-steps=5"]), 70)
    assert on.variant_dict() == dict(residual="symplectic", symplectic_gate_mix=0.9, symplectic_gate_eps=0.01,
                                     symplectic_gate_layers="odd", symplectic_gate_ramp_start=3,
                                     symplectic_gate_ramp_steps=5)


def test_plain_residual_is_bit_identical_to_a_block_without_residual_objects():
    def bare_forward(block, s, ctx):
        s = s + block.attn(norm(s), ctx)[0]
        return s + block.mlp(norm(s), ctx)[0], {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanochat.gpt.Block.forward", bare_forward)
        bare = run(GPTConfig(**TINY))
    assert_bit_identical(run(GPTConfig(**TINY)), bare)


@pytest.mark.parametrize("changes, step", [
    (dict(symplectic_gate_mix=0.0), 0), (dict(symplectic_gate_mix=0.0, symplectic_gate_layers="odd"), 0),
    (dict(symplectic_gate_ramp_start=5, symplectic_gate_ramp_steps=10), 5)],
    ids=["mix_0", "mix_0_odd", "before_its_ramp"])
def test_gate_without_effect_is_bit_identical_to_none(changes, step):
    assert_bit_identical(run(GPTConfig(**TINY, residual="symplectic", **changes), step), run(GPTConfig(**TINY)))


def test_gate_adds_no_parameter_and_does_change_the_function():
    plain, gated = run(GPTConfig(**TINY)), run(GPTConfig(**TINY, residual="symplectic"))
    assert list(plain) == list(gated)
    assert (plain["logits"] - gated["logits"]).abs().max() > 1e-3
    assert torch.equal(plain["logits"][:, 0], gated["logits"][:, 0]), "g_0 = 1: the first position is not gated"


def test_both_sublayers_are_gated_each_by_its_own_input(monkeypatch):
    model, seen = fill(build_model(GPTConfig(**TINY, residual="symplectic"), "cpu", seed=0)), []
    original = SymplecticGate.gate
    monkeypatch.setattr(SymplecticGate, "gate", lambda self, x, ctx: seen.append((self, x)) or original(self, x, ctx))
    model(tokens((1, 20), 70))
    gates = [gate for block in model.transformer.h for gate in (block.attn_res, block.mlp_res)]
    assert [gate for gate, _ in seen] == gates
    assert all(abs(x.square().mean(dim=-1) - 1).max() < 1e-3 for _, x in seen), "the gate looks at the normed input"
    assert len({x.sum().item() for _, x in seen}) == len(seen)


def test_gradient_flows_through_the_gate():
    """Directional derivative of the gated model by central differences, in the direction of the gradient."""
    model = fill(build_model(GPTConfig(**TINY, residual="symplectic", symplectic_gate_mix=1.0), "cpu", seed=0))
    x, y, weight = tokens((1, 60), 70), targets((1, 60), 70), model.transformer.h[0].attn.c_proj.weight
    model(x, y).backward()
    direction, norm_ = weight.grad / weight.grad.norm(), weight.grad.norm().item()
    with torch.no_grad():
        weight += 1e-2 * direction
        up = model(x, y).item()
        weight -= 2e-2 * direction
        down = model(x, y).item()
    assert (up - down) / 2e-2 == pytest.approx(norm_, rel=2e-3)


@pytest.mark.slow
def test_compiled_model_serves_every_step_with_one_graph():
    """Dynamo decides about recompilation before any backend sees the graph, so a backend that only counts is enough."""
    from torch._dynamo.testing import CompileCounter
    config = GPTConfig(**TINY, residual="symplectic", symplectic_gate_ramp_start=2, symplectic_gate_ramp_steps=10)
    model, counter, x = fill(build_model(config, "cpu", seed=0)), CompileCounter(), tokens((2, 32), 70)
    torch._dynamo.reset()
    compiled, results = torch.compile(model, dynamic=False, backend=counter), []
    for step in (0, 2, 3, 7, 12, 500):
        model.step.fill_(step)
        results.append(compiled(x).detach())
        assert (results[-1] - model(x)).abs().max() < 1e-6
        assert counter.frame_count == 1, f"step {step} was compiled anew"
    assert torch.equal(results[0], results[1]) and torch.equal(results[4], results[5])
    assert (results[1] - results[2]).abs().max() > 1e-5 and (results[3] - results[4]).abs().max() > 1e-5
