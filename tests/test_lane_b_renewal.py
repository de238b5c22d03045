"""
Held-out Kneser-Ney on renewal processes, whose entropies are known: P(gap > k) = (k/3 + 1)^-t between the ones.

python -m pytest tests/test_lane_b_renewal.py
"""

import numpy as np
import pytest
from ngram_case import renewal_entropy, renewal_loss, renewal_tokens

from nanochat.lab.horizon.kneser_ney import held_out


def renewal_losses(num_tokens, t, seed):
    """(held-out L_n, losses of an observer that knows the law on the same tokens, exact H_n), for n = 0..10."""
    tokens = renewal_tokens(num_tokens, t, np.random.default_rng(seed)).astype(np.int32)
    depth, train = np.minimum(np.arange(num_tokens), 10), num_tokens * 6 // 10
    at = np.arange(train, num_tokens)
    losses = np.array([-np.log(p).mean() for _, _, p in held_out(tokens, depth, [train], at, 10, 2)])
    ideal, exact = np.array([(renewal_loss(tokens, at, n, t), renewal_entropy(n, t)) for n in range(11)]).T
    return losses, ideal, exact


def check_renewal(num_tokens, t, seed):
    losses, ideal, exact = renewal_losses(num_tokens, t, seed)
    assert exact[0] - exact[10] > 0.02
    assert np.abs(losses - losses[0] - (exact - exact[0])).max() < 0.006
    assert np.abs(losses - ideal).max() < 0.001 + 2000 / num_tokens


def test_losses_follow_the_exact_entropies_of_a_renewal_process():
    check_renewal(1_000_000, 2.5, seed=0)


def test_losses_follow_the_sample_where_gaps_have_no_variance():
    """At t 1.5 a text is not like the ensemble, and it is the text that is estimated: the ideal loss is as far from H_n
    as ours."""
    losses, ideal, exact = renewal_losses(1_000_000, 1.5, seed=1)
    assert np.abs(losses - ideal).max() < 0.003
    assert np.abs(ideal - ideal[0] - (exact - exact[0])).max() > 0.006


@pytest.mark.slow
@pytest.mark.parametrize("t", [2.0, 2.5, 3.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_follow_the_exact_entropies_of_renewal_processes(t, seed):
    check_renewal(4_000_000, t, seed)
