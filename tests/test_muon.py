"""
Muon against a naive version in float64, cautious decay, stacks of matrices.

python -m pytest tests/test_muon.py -q
"""

import numpy as np
import pytest
import torch
from closed_form import uniform

from nanochat.device import can_compile
from nanochat.muon import POLAR_EXPRESS, orthogonalize
from nanochat.optim import MuonAdamW, make_group

torch.set_num_threads(1)


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
    """One matrix in float64, as the papers of muon.py's opening have it, one after the other."""

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
        pairs = zip(update, self.w)
        self.decayed = np.array([[decay * w if u * w >= 0 else 0.0 for u, w in zip(*pair)] for pair in pairs])
        self.w = self.w - rate * update - rate * self.decayed


@pytest.mark.parametrize("shape", [(16, 16), (40, 12), (12, 40)], ids=str)
def test_muon_equals_a_naive_version(shape):
    params = [uniform(shape, f"w{i}").clone().requires_grad_() for i in range(3)]
    naive = [NaiveMuon(p.detach().numpy()) for p in params]
    group = dict(kind="muon", params=params, lr=0.02, momentum=0.95, ns_steps=5, beta2=0.9, weight_decay=0.3)
    optimizer = MuonAdamW([group])
    for step in range(4):
        moved = dict(momentum=0.85 + 0.03 * step, lr=0.02 * (1 + step), weight_decay=0.3 - 0.1 * step)
        optimizer.param_groups[0].update(moved)
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


@pytest.mark.parametrize("shape", [(3, 20, 12), (3, 12, 20), (2, 3, 8, 8)], ids=str)
def test_stack_of_experts_is_stepped_as_its_single_matrices(shape):
    """Two stacks in one group, against the same matrices one by one: three steps, weights and state."""
    stacks = [uniform(shape, f"w{i}").clone().requires_grad_() for i in range(2)]
    singles = [m.clone().requires_grad_() for stack in stacks for m in stack.detach().flatten(0, -3)]
    optimizers = [MuonAdamW([make_group("muon", params, lr=0.02, weight_decay=0.3)]) for params in (stacks, singles)]
    for step in range(3):
        for i, p in enumerate(stacks):
            p.grad = uniform(shape, f"g{i} {step}") * torch.linspace(0.1, 4, shape[0]).view(-1, *[1] * (len(shape) - 1))
        for single, grad in zip(singles, torch.stack([p.grad for p in stacks]).flatten(0, -3)):
            single.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(torch.stack(stacks).flatten(0, -3), torch.stack(singles))
    a, b = (optimizer.state[params[0]] for optimizer, params in zip(optimizers, (stacks, singles)))
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_compiled_update_equals_the_eager_one():
    able, why = can_compile(torch.device("cpu"))
    if not able:
        pytest.skip(why)
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        params = [[uniform(shape, f"w{i}").clone().requires_grad_() for i in range(2)] for shape in ((24, 8), (8, 24))]
        hyper = dict(lr=0.02, momentum=0.9, ns_steps=5, beta2=0.9, weight_decay=0.3)
        groups = [dict(kind="muon", params=pair, **hyper) for pair in params]
        optimizer = MuonAdamW(groups, compile_update=compiled)
        for step in range(4):
            for group in optimizer.param_groups:
                group.update(lr=0.02 / (1 + step), momentum=0.85 + 0.03 * step, weight_decay=0.3 - 0.1 * step)
                for i, p in enumerate(group["params"]):
                    p.grad = uniform(p.shape, f"g{i} {step}").clone()
            optimizer.step()
        moved = [[p.detach() - uniform(p.shape, f"w{i}") for i, p in enumerate(pair)] for pair in params]
        results.append([torch.cat([change.flatten() for change in pair]) for pair in moved])
    for eager, compiled in zip(*results):
        assert (compiled - eager).norm() <= 1e-5 * eager.norm()
