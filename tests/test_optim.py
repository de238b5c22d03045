"""
Groups of the optimizer, AdamW against torch's, Muon against a naive version in float64, cautious decay, state.

python -m pytest tests/test_optim.py -q
"""

import numpy as np
import pytest
import torch
from closed_form import RATES, TINY, fill, set_gradients, uniform

from nanochat.device import can_compile
from nanochat.gpt import MIXERS, MLPS, RESIDUALS, GPTConfig, build_model
from nanochat.optim import POLAR_EXPRESS, MuonAdamW, orthogonalize, setup_optimizer

torch.set_num_threads(1)
OFF = dict(value_embeds=False, smear=False, lambdas=False, backout=False, qk_norm=False, logit_softcap=0.0)


def make(dtype=torch.float32, **changes):
    return fill(build_model(GPTConfig(**{**TINY, **changes}), "cpu", dtype, seed=0))


@pytest.mark.parametrize("changes", [{}, OFF, *({name: value} for name, value in OFF.items()), *({"mixer": row} for row in MIXERS),
                                     *({"mlp": row} for row in MLPS), *({"residual": row} for row in RESIDUALS), {"n_layer": 1}], ids=str)
def test_every_parameter_is_in_exactly_one_group(changes):
    model = make(**changes)
    grouped = [id(p) for group in setup_optimizer(model, **RATES).param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_parameter_that_belongs_nowhere_is_an_error():
    model = make()
    model.stray = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(AssertionError, match="stray"):
        setup_optimizer(model, **RATES)


def test_groups_have_their_members_rates_and_betas():
    model = make()
    names = {id(p): name for name, p in model.named_parameters()}
    s = (48 / 768) ** -0.5
    groups = setup_optimizer(model, **RATES).param_groups
    adamw = [([names[id(p)] for p in g["params"]], g["lr"], g["betas"], g["weight_decay"]) for g in groups if g["kind"] == "adamw"]
    assert adamw == [
        (["lm_head.weight"], 0.008 * s, (0.8, 0.96), 0.01), (["transformer.wte.weight"], 0.3 * s, (0.8, 0.995), 0.001),
        (["value_embeds.1.weight", "value_embeds.3.weight"], 0.5 * 0.3 * s, (0.8, 0.995), 0.01),
        (["resid_lambdas"], 0.01 * 0.5, (0.8, 0.95), 0.05), (["x0_lambdas"], 0.5, (0.96, 0.95), 0.0),
        (["smear_gate.weight", "smear_lambda", "backout_lambda"], 0.2, (0.8, 0.95), 0.0)]
    muon = [g for g in groups if g["kind"] == "muon"]
    assert [tuple(g["params"][0].shape) for g in muon] == [(2, 12), (24, 48), (48, 48), (48, 192), (192, 48)]
    for g in muon:
        assert (g["lr"], g["weight_decay"], g["beta2"], g["ns_steps"]) == (0.02, 0.28, 0.9, 5)
        assert all(names[id(p)].startswith("transformer.h.") and p.shape == g["params"][0].shape for p in g["params"])
    assert all(g["initial_lr"] == g["lr"] for g in groups) and all(g["eps"] == 1e-10 for g in groups if g["kind"] == "adamw")


# -----------------------------------------------------------------------------
# AdamW

def adamw_groups(tensors):
    return [dict(kind="adamw", params=[tensors[0], tensors[1]], lr=0.03, betas=(0.8, 0.96), eps=1e-10, weight_decay=0.1),
            dict(kind="adamw", params=[tensors[2]], lr=0.5, betas=(0.96, 0.995), eps=1e-10, weight_decay=0.0)]


def test_adamw_equals_torchs():
    shapes = (31, 7), (5,), (1,)
    ours, theirs = ([uniform(shape, f"w{i}").clone().requires_grad_() for i, shape in enumerate(shapes)] for _ in range(2))
    optimizer = MuonAdamW(adamw_groups(ours))
    reference = torch.optim.AdamW([{k: v for k, v in g.items() if k != "kind"} for g in adamw_groups(theirs)], fused=False, foreach=False)
    for step in range(12):
        for i, (a, b) in enumerate(zip(ours, theirs)):
            a.grad = 10.0 ** (-step) * uniform(a.shape, f"g{i} {step}")
            b.grad = a.grad.clone()
        for opt in (optimizer, reference):
            for group in opt.param_groups:
                group["lr"] *= 0.9
            opt.step()
        for a, b in zip(ours, theirs):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), step


def test_adamw_of_bfloat16_parameters_is_computed_in_float32_and_rounded_once():
    """One step from the same bfloat16 state: the result is the fp32 result rounded, not a chain of rounded operations."""
    w, g = uniform((500,), "w").bfloat16(), uniform((500,), "g").bfloat16()
    low, high = w.clone().requires_grad_(), w.float().requires_grad_()
    for p in (low, high):
        group = dict(kind="adamw", params=[p], lr=0.01, betas=(0.8, 0.995), eps=1e-10, weight_decay=0.01)
        p.grad = g.to(p.dtype)
        MuonAdamW([group]).step()
    assert low.dtype == torch.bfloat16
    # rounded once: at most half a unit of bfloat16 from the fp32 result, with a little room for a tie
    unit = 2.0 ** (high.detach().abs().log2().floor() - 7)
    assert ((low.detach().float() - high.detach()).abs() <= 0.51 * unit).all()


# -----------------------------------------------------------------------------
# Muon

@pytest.mark.parametrize("shape", [(40, 40), (96, 24), (24, 96), (2, 12), (12, 2), (1, 5)], ids=str)
def test_orthogonalisation_is_close_to_the_polar_factor(shape):
    """Same singular vectors; singular values in 1 +- 0.15, where they were above 2e-3 of the norm."""
    x = torch.stack([uniform(shape, f"m{i}") for i in range(3)])
    y = orthogonalize(x.clone(), 5)
    for matrix, result in zip(x.double(), y.double()):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        inside = u.T @ result @ vt.T  # diagonal where the singular vectors are kept
        values, lifted = inside.diagonal(), s > 2e-3 * s.norm()
        assert (inside - values.diag()).abs().max() < 1e-5
        assert lifted.sum() >= min(shape) - 1 and ((values[lifted] - 1).abs() < 0.15).all()
        assert (result - u @ vt).norm() < 0.15 * (u @ vt).norm()


def test_orthogonalisation_does_not_care_about_scale_and_survives_zero():
    x = uniform((2, 12, 30), "x")
    assert (orthogonalize(x.clone(), 5) - orthogonalize(1000 * x, 5)).abs().max() < 1e-4
    zero = orthogonalize(torch.zeros(1, 4, 6), 5)
    assert zero.isfinite().all() and zero.count_nonzero() == 0


class NaiveMuon:
    """One matrix in float64, as the papers of optim.py's opening have it, one after the other."""

    def __init__(self, w):
        rows, cols = w.shape
        self.w, self.momentum = w.astype(np.float64), np.zeros(w.shape)
        self.by_row = rows >= cols
        self.second = np.zeros(rows if self.by_row else cols)

    def step(self, grad, lr, momentum, beta2, decay):
        (rows, cols), grad = grad.shape, grad.astype(np.float64)
        self.momentum = momentum * self.momentum + (1 - momentum) * grad
        x = (1 - momentum) * grad + momentum * self.momentum
        x = np.array([row / max(np.linalg.norm(row), 1e-6) for row in x]) * np.linalg.norm(x) / np.sqrt(rows)  # MuonEq
        x = x / (1.01 * np.linalg.norm(x) + 1e-6)
        for a, b, c in POLAR_EXPRESS:
            x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
        x = x * np.sqrt(min(rows, cols)) / np.linalg.norm(x)  # Muon+
        mean_square = np.array([np.mean(line ** 2) for line in (x if self.by_row else x.T)])  # NorMuon
        self.second = beta2 * self.second + (1 - beta2) * mean_square
        lines = np.array([line / np.sqrt(v) for line, v in zip(x if self.by_row else x.T, self.second)])
        scaled = lines if self.by_row else lines.T
        update = scaled * np.linalg.norm(x) / np.linalg.norm(scaled)
        rate = lr * max(1, rows / cols) ** 0.5
        self.decayed = np.array([[decay * w if u * w >= 0 else 0.0 for u, w in zip(*pair)] for pair in zip(update, self.w)])
        self.w = self.w - rate * update - rate * self.decayed


@pytest.mark.parametrize("shape", [(16, 16), (40, 12), (12, 40)], ids=str)
def test_muon_equals_a_naive_version(shape):
    params = [uniform(shape, f"w{i}").clone().requires_grad_() for i in range(3)]
    naive = [NaiveMuon(p.detach().numpy()) for p in params]
    optimizer = MuonAdamW([dict(kind="muon", params=params, lr=0.02, momentum=0.95, ns_steps=5, beta2=0.9, weight_decay=0.3)])
    for step in range(4):
        optimizer.param_groups[0].update(momentum=0.85 + 0.03 * step, lr=0.02 * (1 + step), weight_decay=0.3 - 0.1 * step)
        for i, p in enumerate(params):
            p.grad = (1 + 50 * i) * uniform(shape, f"g{i} {step}") * torch.linspace(0.1, 4, shape[0])[:, None]
            naive[i].step(p.grad.numpy(), 0.02 * (1 + step), 0.85 + 0.03 * step, 0.9, 0.3 - 0.1 * step)
        optimizer.step()
    for p, reference, start in zip(params, naive, range(3)):
        moved = reference.w - uniform(shape, f"w{start}").double().numpy()
        assert np.linalg.norm(p.detach().double().numpy() - reference.w) < 1e-4 * np.linalg.norm(moved)


def one_muon_step(w, grad, **changes):
    p = w.clone().requires_grad_()
    p.grad = grad.clone()
    polar_dtype = changes.pop("polar_dtype", torch.float32)
    group = dict(kind="muon", params=[p], lr=0.1, momentum=0.9, ns_steps=5, beta2=0.9, weight_decay=0.0)
    MuonAdamW([{**group, **changes}], polar_dtype).step()
    return p.detach()


def test_decay_acts_only_where_update_and_weight_have_one_sign():
    w, grad = uniform((20, 30), "w"), uniform((20, 30), "g")
    w[3, :] = 0
    bare, decayed = one_muon_step(w, grad), one_muon_step(w, grad, weight_decay=0.5)
    update = (w - bare) / 0.1
    agree = update * w > 0
    assert 0.3 < agree.float().mean() < 0.7
    assert torch.equal(decayed[~agree], bare[~agree])
    assert torch.allclose(decayed[agree], bare[agree] - 0.1 * 0.5 * w[agree], atol=1e-6)


def test_update_has_the_size_of_an_orthogonal_matrix_whatever_the_gradient():
    """Frobenius norm lr sqrt(min(m, n)), times sqrt(rows/cols) for tall ones: Muon+ and NorMuon both keep it."""
    for shape in ((20, 30), (30, 20), (25, 25)):
        w, grad = uniform(shape, "w"), uniform(shape, "g")
        for scale in (1e-4, 1.0, 1e4):
            size = (w - one_muon_step(w, scale * grad)).norm().item()
            assert size == pytest.approx(0.1 * min(shape) ** 0.5 * max(1, shape[0] / shape[1]) ** 0.5, rel=1e-4)


def test_bfloat16_orthogonalisation_stays_near_the_float32_one():
    w, grad = uniform((64, 64), "w"), uniform((64, 64), "g")
    exact, rounded = one_muon_step(w, grad) - w, one_muon_step(w, grad, polar_dtype=torch.bfloat16) - w
    assert 1e-3 * exact.norm() < (rounded - exact).norm() < 0.06 * exact.norm()


def test_gradients_are_left_as_they_were():
    """zero_grad(set_to_none) follows anyway, but a step that ruins gradients would make a logged norm a lie."""
    model = make()
    set_gradients(model, 0)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    setup_optimizer(model, **RATES).step()
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())


# -----------------------------------------------------------------------------
# State

def steps(model, optimizer, numbers):
    for step in numbers:
        set_gradients(model, step)
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_saved_and_loaded_goes_on_bit_identically(dtype, tmp_path):
    model = make(dtype)
    optimizer = setup_optimizer(model, polar_dtype=dtype, **RATES)
    steps(model, optimizer, range(3))
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    expected = steps(model, optimizer, range(3, 6))
    again = make(dtype)
    resumed = setup_optimizer(again, polar_dtype=dtype, **RATES)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for name, w in steps(again, resumed, range(3, 6)).items():
        assert torch.equal(w, expected[name]), name


def test_muons_state_is_stacked_under_the_first_matrix_of_its_shape():
    model = make()
    optimizer = setup_optimizer(model, **RATES)
    steps(model, optimizer, range(1))
    for group in optimizer.param_groups:
        first, *others = group["params"]
        if group["kind"] == "muon":
            k, (rows, cols) = len(group["params"]), first.shape
            assert {name: tuple(t.shape) for name, t in optimizer.state[first].items()} == {
                "momentum_buffer": (k, rows, cols), "second_momentum_buffer": (k, rows, 1) if rows >= cols else (k, 1, cols)}
            assert not any(p in optimizer.state and optimizer.state[p] for p in others)
        else:
            for state in (optimizer.state[p] for p in group["params"]):
                assert set(state) == {"step", "exp_avg", "exp_avg_sq"} and state["step"] == 1


@pytest.mark.slow
def test_compiled_update_equals_the_eager_one():
    able, why = can_compile(torch.device("cpu"))
    if not able:
        pytest.skip(why)
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        params = [[uniform(shape, f"w{i}").clone().requires_grad_() for i in range(2)] for shape in ((24, 8), (8, 24))]
        groups = [dict(kind="muon", params=pair, lr=0.02, momentum=0.9, ns_steps=5, beta2=0.9, weight_decay=0.3) for pair in params]
        optimizer = MuonAdamW(groups, compile_update=compiled)
        for step in range(4):
            for group in optimizer.param_groups:
                group.update(lr=0.02 / (1 + step), momentum=0.85 + 0.03 * step, weight_decay=0.3 - 0.1 * step)
                for i, p in enumerate(group["params"]):
                    p.grad = uniform(p.shape, f"g{i} {step}").clone()
            optimizer.step()
        results.append([torch.cat([(p.detach() - uniform(p.shape, f"w{i}")).flatten() for i, p in enumerate(pair)]) for pair in params])
    for eager, compiled in zip(*results):
        assert (compiled - eager).norm() <= 1e-5 * eager.norm()
