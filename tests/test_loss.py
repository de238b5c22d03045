"""
Chunked cross-entropy against the plain one, a float64 reference and finite differences.

python -m pytest tests/test_loss.py -q
"""

import pytest
import torch
import torch.nn.functional as F
from closed_form import uniform

from nanochat import loss as module
from nanochat.loss import LOSSES, ChunkedCrossEntropy, CrossEntropy, plain_cross_entropy, softcap

torch.set_num_threads(1)
caps = pytest.mark.parametrize("cap", [0.0, 15.0, 1.5], ids=lambda cap: f"cap{cap:g}")


def problem(n=37, c=16, v=50, scale=4.0, dtype=torch.float32):
    """(x [n,c], weight [v,c], targets [n] with some ignored); logits reach beyond a cap of 15."""
    x = (scale * uniform((n, c), "x")).to(dtype).requires_grad_()
    weight = (2 * uniform((v, c), "weight")).requires_grad_()
    targets = ((uniform((n,), "targets").double() + 1) / 2 * v).long().clamp(max=v - 1)
    targets[::5] = -1
    return x, weight, targets


def reference(x, weight, targets, cap, reduction):
    """In float64, from the definition."""
    logits = x.double() @ weight.double().T
    logits = cap * (logits / cap).tanh() if cap else logits
    losses = logits.exp().sum(dim=1).log() - logits[torch.arange(len(targets)), targets.clamp_min(0)]
    losses = torch.where(targets >= 0, losses, 0)
    return losses.sum() / (targets >= 0).sum() if reduction == "mean" else losses


def grads(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@caps
@pytest.mark.parametrize("rows", [1, 7, 36, 37, 1000])
def test_value_and_gradients_equal_the_definition_for_any_chunk_size(cap, rows, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_LOGITS", 50 * rows)
    x, weight, targets = problem()
    expected = reference(x, weight, targets, cap, "mean")
    ours = ChunkedCrossEntropy.apply(x, weight, targets, cap, "mean")
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, theirs in zip(grads(ours, x, weight), grads(expected, x, weight)):
        assert relative(mine, theirs) < 2e-6 and mine.dtype == torch.float32


@caps
def test_single_losses_equal_the_definition(cap, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_LOGITS", 50 * 8)
    args = problem()
    with torch.no_grad():
        ours = ChunkedCrossEntropy.apply(*args, cap, "none")
    assert torch.allclose(ours.double(), reference(*args, cap, "none"), atol=2e-5)
    assert ours.shape == (37,) and ours[::5].count_nonzero() == 0


@caps
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
def test_chunked_equals_plain(cap, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_LOGITS", 50 * 8)
    x, weight, targets = problem(dtype=dtype)
    plain = plain_cross_entropy(x, weight, targets, cap, "mean")
    ours = ChunkedCrossEntropy.apply(x, weight, targets, cap, "mean")
    assert ours.dtype == plain.dtype == torch.float32
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for mine, theirs in zip(grads(ours, x, weight), grads(plain, x, weight)):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape and relative(mine, theirs) < tolerance


@caps
def test_gradient_equals_finite_differences(cap):
    x, weight, targets = problem(n=6, c=4, v=9, scale=1.0)
    analytic = grads(ChunkedCrossEntropy.apply(x, weight, targets, cap, "mean"), x, weight)
    step = 1e-2
    for tensor, gradient in zip((x, weight), analytic):
        for index in range(0, tensor.numel(), 3):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    tensor.view(-1)[index] += sign * step
                    values.append(ChunkedCrossEntropy.apply(x, weight, targets, cap, "mean").double().item())
                    tensor.view(-1)[index] -= sign * step
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(gradient.view(-1)[index].item(), abs=2e-4)


def test_gradient_is_scaled_by_what_comes_from_above():
    x, weight, targets = problem()
    whole = grads(ChunkedCrossEntropy.apply(x, weight, targets, 15.0, "mean"), x, weight)
    third = grads(ChunkedCrossEntropy.apply(x, weight, targets, 15.0, "mean") / 3, x, weight)
    for a, b in zip(whole, third):
        assert relative(3 * b, a) < 1e-6


def test_gradient_of_one_input_only():
    x, weight, targets = problem()
    expected = grads(reference(x, weight, targets, 15.0, "mean"), x, weight)
    for wanted in (0, 1):
        inputs = [t.detach().requires_grad_(i == wanted) for i, t in enumerate((x, weight))]
        mine, = grads(ChunkedCrossEntropy.apply(*inputs, targets, 15.0, "mean"), inputs[wanted])
        assert relative(mine, expected[wanted]) < 2e-6


def test_ignored_targets_get_no_gradient():
    x, weight, targets = problem()
    gradient, = grads(ChunkedCrossEntropy.apply(x, weight, targets, 15.0, "mean"), x)
    assert gradient[::5].count_nonzero() == 0 and (gradient[1::5].abs().sum(dim=1) > 0).all()


@caps
def test_mean_over_only_ignored_targets_is_nan_as_the_plain_loss_has_it(cap):
    """Nothing was measured: 0 would look like a perfect model, and differ from what compiled code says."""
    x, weight, _ = problem()
    nothing = torch.full((37,), -1)
    assert plain_cross_entropy(x, weight, nothing, cap, "mean").isnan()
    assert ChunkedCrossEntropy.apply(x, weight, nothing, cap, "mean").isnan()
    assert ChunkedCrossEntropy.apply(x.detach(), weight.detach(), nothing, cap, "mean").isnan()


def test_mean_without_gradients_does_no_work_for_them(monkeypatch):
    """Parameters require gradients also under no_grad: what is asked there must not cost a backward pass."""
    x, weight, targets = problem()
    made, product = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **kwargs: made.append(args) or product(*args, **kwargs))
    with torch.no_grad():
        CrossEntropy(50, 15.0)(x.view(1, 37, 16), weight, targets.view(1, 37), "mean")
    assert len(made) == 1  # the logits, in one chunk


@pytest.mark.parametrize("cap", [0.0, 15.0, 100.0, 1000.0], ids=lambda cap: f"cap{cap:g}")
def test_huge_logits_overflow_nothing(cap):
    """Logits of 1e4: exp of them does not exist in fp32, with a large cap neither."""
    x, weight, targets = problem(scale=2e3)
    expected = F.cross_entropy(softcap((x.double() @ weight.double().T), cap), targets, ignore_index=-1)
    ours = CrossEntropy(50, cap)(x.view(1, 37, 16), weight, targets.view(1, 37), "mean")
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(g.isfinite().all() for g in grads(ours, x, weight))


def test_softcap_squashes_into_its_range_and_0_is_off():
    z = torch.tensor([-1e6, -15.0, -0.01, 0.0, 0.01, 3.0, 1e6])
    assert torch.equal(softcap(z, 0.0), z)
    capped = softcap(z, 15.0)
    assert capped.tolist() == pytest.approx([-15, -15 * 0.76159416, -0.01, 0, 0.01, 15 * 0.19737532, 15], rel=1e-5)


# -----------------------------------------------------------------------------
# CrossEntropy: [B,T] in, padding cut, the right path chosen

@pytest.mark.parametrize("kind", LOSSES)
def test_every_kind_of_loss_equals_the_definition(kind):
    x, padded, targets = model_problem()
    ours = CrossEntropy(50, 15.0, kind)(x, padded, targets, "mean")
    expected = reference(x.flatten(0, 1), padded[:50], targets.flatten(), 15.0, "mean")
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, theirs in zip(grads(ours, x, padded), grads(expected, x, padded)):
        assert relative(mine, theirs) < 2e-6


def test_unknown_kind_of_loss_is_refused_with_the_rows_there_are():
    with pytest.raises(ValueError, match="--loss=nonsense: there is no such row; the rows are chunked, plain"):
        CrossEntropy(50, 15.0, "nonsense")


def model_problem(dtype=torch.float32):
    x, weight, targets = problem(n=36, dtype=dtype)
    padded = torch.cat([weight.detach(), 50 * torch.ones(14, 16)]).requires_grad_()
    return x.detach().view(4, 9, 16).requires_grad_(), padded, targets.view(4, 9)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("grad", [True, False])
def test_padding_rows_of_the_head_take_no_part(reduction, grad):
    x, padded, targets = model_problem()
    with torch.set_grad_enabled(grad):
        ours = CrossEntropy(50, 15.0)(x, padded, targets, reduction)
    expected = reference(x.flatten(0, 1), padded[:50], targets.flatten(), 15.0, reduction)
    assert ours.shape == expected.shape and torch.allclose(ours.double(), expected, atol=2e-5)
    if grad:
        a, b = grads(ours.sum(), x, padded), grads(expected.sum(), x, padded)
        assert relative(a[0], b[0]) < 2e-6 and relative(a[1], b[1]) < 2e-6 and a[1][50:].count_nonzero() == 0


def test_no_tensor_of_all_logits_is_made_for_the_mean(monkeypatch):
    """64 rows a chunk of 4096: neither forward nor backward makes a tensor of n x v elements."""
    from torch.utils._python_dispatch import TorchDispatchMode
    n, c, v = 512, 8, 1024
    monkeypatch.setattr(module, "CHUNK_LOGITS", 64 * v)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, (tuple, list)) else [out]
            largest = max([largest, *(t.numel() for t in made if torch.is_tensor(t))])
            return out
    x, weight, targets = problem(n, c, v)
    with Watch():
        CrossEntropy(v, 15.0)(x.view(1, n, c), weight, targets.view(1, n), "mean").backward()
    assert 64 * v <= largest < n * v


def test_target_beyond_the_vocabulary_is_an_error():
    x, weight, targets = problem()
    for bad in (50, 63):
        targets[1] = bad
        with pytest.raises((IndexError, RuntimeError)):
            ChunkedCrossEntropy.apply(x, weight, targets, 15.0, "mean")


@pytest.mark.slow
def test_compiled_code_leaves_its_graph_for_the_chunks_with_the_same_result():
    x, padded, targets = model_problem()
    torch._dynamo.reset()
    eager, loss = CrossEntropy(50, 15.0), CrossEntropy(50, 15.0)
    loss.leave_graphs()
    assert eager.function == LOSSES["chunked"] != loss.function, "one model's loss is no other's"
    compiled = torch.compile(lambda *args: loss(*args), dynamic=False, backend="aot_eager")
    for reduction in ("mean", "none"):
        ours, theirs = (f(x, padded, targets, reduction) for f in (eager, compiled))
        assert torch.allclose(ours, theirs, atol=1e-5)
        for a, b in zip(grads(ours.sum(), x, padded), grads(theirs.sum(), x, padded)):
            assert relative(a, b) < 2e-6


@pytest.mark.slow
def test_the_plain_expression_compiles_whole_as_a_card_needs_it():
    x, weight, targets = problem()
    torch._dynamo.reset()
    compiled = torch.compile(plain_cross_entropy, dynamic=False, backend="aot_eager", fullgraph=True)
    ours, theirs = (f(x, weight, targets, 15.0, "mean") for f in (plain_cross_entropy, compiled))
    assert torch.allclose(ours, theirs, atol=1e-6)
