"""
Schedules and scaling laws against closed forms. Upstream's own figures: tests/test_parity.py.

python -m pytest tests/test_schedule.py -q
"""

import math

import pytest

from nanochat.schedule import (
    B_REF,
    batch_lr_scale,
    ema_time_scale,
    lr_multiplier,
    muon_momentum,
    optimal_batch_size,
    scaled_weight_decay,
    weight_decay_multiplier,
)


def test_rate_warms_up_stays_and_falls_linearly():
    rates = [lr_multiplier(step, 100, 10, 0.5, 0.2) for step in range(101)]
    assert rates[:11] == pytest.approx([0.1 * (i + 1) for i in range(10)] + [1.0])
    assert rates[10:51] == [1.0] * 41
    assert rates[50:] == pytest.approx([1 - 0.8 * i / 50 for i in range(51)])
    assert rates[100] == pytest.approx(0.2)


def test_first_step_is_not_wasted_and_no_warmup_means_full_rate():
    assert lr_multiplier(0, 100, 40, 0.65, 0.05) == 1 / 40
    assert lr_multiplier(0, 100, 0, 0.65, 0.05) == 1.0


@pytest.mark.parametrize("warmup, warmdown, final", [
    (0, 0.0, 0.5), (5, 0.0, 0.0), (0, 1.0, 0.0), (200, 0.65, 0.05), (0, 0.001, 0.0), (3, 1.0, 1.0)])
def test_rate_is_in_its_range_at_every_corner(warmup, warmdown, final):
    for n in (1, 2, 3, 100):
        for step in range(n + 1):
            assert 0 <= lr_multiplier(step, n, warmup, warmdown, final) <= 1


def test_momentum_warms_up_over_400_steps_stays_and_warms_down():
    momentum = [muon_momentum(step, 2000, 0.5) for step in range(2001)]
    assert momentum[:401] == pytest.approx([0.85 + 0.12 * i / 400 for i in range(401)])
    assert momentum[400:1001] == pytest.approx([0.97] * 601)
    assert momentum[1000:] == pytest.approx([0.97 - 0.07 * i / 1000 for i in range(1001)])


def test_short_run_never_warms_its_momentum_down():
    assert [muon_momentum(step, 300, 0.65) for step in (0, 200, 300)] == pytest.approx([0.85, 0.91, 0.94])


def test_momentum_without_warmdown_stays():
    assert [muon_momentum(step, 1000, 0.0) for step in (400, 999, 1000)] == [0.97] * 3


def test_weight_decay_falls_as_a_cosine_to_0():
    assert [weight_decay_multiplier(step, 80) for step in (0, 20, 40, 60, 80)] == pytest.approx(
        [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0], abs=1e-15)


def test_optimal_batch_is_the_nearest_power_of_two():
    assert optimal_batch_size(1e9, 1e9) == B_REF == 524288
    for factor in (0.001, 0.3, 0.9, 2.2, 5, 40, 1e4):
        batch, exact = optimal_batch_size(factor * 1e9, 1e9), B_REF * factor ** 0.383
        assert batch & (batch - 1) == 0 and batch / math.sqrt(2) <= exact <= batch * math.sqrt(2)
    # log2 of the factor times 0.383 is 3.485 and 3.524, on both sides of a boundary
    assert (optimal_batch_size(2 ** 9.1, 1), optimal_batch_size(2 ** 9.2, 1)) == (2 ** 22, 2 ** 23)


def test_rates_go_with_the_root_of_the_batch():
    assert (batch_lr_scale(B_REF), batch_lr_scale(4 * B_REF), batch_lr_scale(B_REF // 4)) == (1, 2, 0.5)


def test_scaled_decay_keeps_tau_whatever_batch_and_horizon():
    reference = ema_time_scale(B_REF, 0.02, 0.28, 1e9)
    assert reference == pytest.approx(524288 / (0.02 * 0.28 * 1e9))
    for batch in (2048, B_REF, 8 * B_REF):
        for tokens in (1e6, 1e9, 7e10):
            decay = scaled_weight_decay(0.28, batch, tokens, 1e9)
            assert ema_time_scale(batch, 0.02 * batch_lr_scale(batch), decay, tokens) == pytest.approx(reference)
    assert scaled_weight_decay(0.28, B_REF, 1e9, 1e9) == 0.28


def test_no_decay_has_no_time_scale():
    assert ema_time_scale(2048, 0.02, 0.0, 1e9) is None and ema_time_scale(2048, 0.02, 0.1, 0) is None
