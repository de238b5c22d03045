"""
Bits per byte against sums by hand.

python -m pytest tests/test_loss_eval.py -q
"""

import math

import pytest
import torch
from closed_form import TINY, fill, tokens, uniform

from nanochat.gpt import GPTConfig, build_model
from nanochat.loss_eval import evaluate_bpb

torch.set_num_threads(1)
BYTES = torch.tensor([0, 1, 2, 3, 4, 5, 0, 7], dtype=torch.int32)


class Teller:
    """A model whose loss for each target is prescribed."""

    def __init__(self, losses):
        self.losses = iter(losses)

    def __call__(self, x, y, loss_reduction):
        assert loss_reduction == "none" and not torch.is_grad_enabled()
        return torch.where(y >= 0, torch.tensor(next(self.losses)).view(y.shape), 0).flatten()


def test_a_small_example_by_hand():
    """Special tokens (0 bytes) and ignored targets count in neither sum; sums are of all batches, not means of
    means."""
    batches = [(None, torch.tensor([[1, 2, 0, -1]])), (None, torch.tensor([[7, 6, 5, 5]]))]
    losses = [[1.0, 2.0, 100.0, 100.0]], [[7.0, 100.0, 1.5, 0.5]]
    assert evaluate_bpb(Teller(losses), batches,
                        BYTES) == pytest.approx((1 + 2 + 7 + 1.5 + 0.5) / (math.log(2) * (1 + 2 + 7 + 5 + 5)))


def test_nothing_measured_is_none():
    assert evaluate_bpb(Teller([]), [], BYTES) is None
    assert evaluate_bpb(Teller([[[3.0, 3.0, 3.0]]]), [(None, torch.tensor([[0, 6, -1]]))], BYTES) is None


def test_uniform_model_over_256_bytes_is_8_bits():
    y = torch.randint(256, (4, 50), generator=torch.Generator().manual_seed(0))
    teller = Teller([[[math.log(256)] * 50] * 4])
    assert evaluate_bpb(teller, [(None, y)], torch.ones(256, dtype=torch.int32)) == pytest.approx(8, rel=1e-6)


def test_many_small_losses_are_not_lost_beside_a_large_sum():
    """A running sum in fp32 would not notice them: 1e4 + 3e-4 == 1e4 there."""
    y, n = torch.ones(1, 1, dtype=torch.long), 1000
    teller = Teller([[[1e4]], *([[3e-4]] for _ in range(n))])
    bpb = evaluate_bpb(teller, [(None, y)] * (n + 1), BYTES)
    assert bpb * math.log(2) * (n + 1) == pytest.approx(1e4 + n * 3e-4, rel=1e-8)
    assert evaluate_bpb(Teller([[[2.0 ** 24, 1.0]]]), [(None, torch.ones(1, 2, dtype=torch.long))],
                        BYTES) * math.log(2) * 2 == 2 ** 24 + 1


def test_real_model_against_its_own_logits():
    model = fill(build_model(GPTConfig(**TINY), "cpu", seed=0)).eval()
    sizes = (tokens((70,), 6, "sizes")).int()
    batches = [(tokens((2, 160), 70, f"x{i}"), tokens((2, 160), 70, f"y{i}")) for i in range(3)]
    batches[1][1][0, :80] = -1
    nats = total = 0
    for x, y in batches:
        with torch.no_grad():
            rows = model(x).double().log_softmax(dim=-1).view(-1, 70)
        for row, target in zip(rows, y.flatten().tolist()):
            if target >= 0 and sizes[target] > 0:
                nats, total = nats - row[target].item(), total + sizes[target].item()
    assert evaluate_bpb(model, batches, sizes) == pytest.approx(nats / total / math.log(2), rel=1e-6)


def test_better_prediction_means_fewer_bits():
    x = tokens((2, 30), 70)
    good, bad = (fill(build_model(GPTConfig(**TINY), "cpu", seed=0)) for _ in range(2))
    y = good(x).argmax(dim=-1)
    with torch.no_grad():
        bad.lm_head.weight.add_(uniform(bad.lm_head.weight.shape, "noise"))
    ones = torch.ones(70, dtype=torch.int32)
    assert evaluate_bpb(good, [(x, y)], ones) < evaluate_bpb(bad, [(x, y)], ones)
