"""
The measured correlations: against brute force and closed forms, and the same bits however they were computed.
test_lane_b_correlation_input.py tests the ranks, blocks and lags behind them, test_lane_b_decay.py the fits to them.

python -m pytest tests/test_lane_b_correlation.py -v
"""

import itertools
import tracemalloc

import numpy as np
import pytest
from lane_b_case import SignOfGaussian, brute_force, correlation_curve, drifting, source_of, spool_of, two_kinds

from nanochat.lab.horizon import correlation
from nanochat.lab.horizon.correlation import pair_counts, permuted_pairs, resampled_squares
from nanochat.lab.horizon.ranks import block_bounds, frequent_ranks, write_ranked
from nanochat.lab.horizon.source import TokenSource

N = 240_000
FIELDS = ("lags", "pairs", "grams", "op", "op_floor")


def rng(seed=0):
    return np.random.default_rng(seed)


def same_bits(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ranks"


# -----------------------------------------------------------------------------
# Against brute force

def test_stream_equals_dense_brute_force():
    tokens, blocks = drifting(N, 50), 8
    curve = correlation_curve(source_of(tokens, vocab_size=50), max_lag=3, blocks=blocks)
    order = np.argsort(-np.bincount(tokens, minlength=50), kind="stable")
    for i, lag in enumerate((1, 2, 3)):
        parts = [brute_force(part, lag, 50) for part in np.split(tokens, blocks)]
        rows = np.array([c[np.ix_(order, order)].ravel() for c, _ in parts])
        assert np.allclose(curve.grams[i], rows @ rows.T, rtol=1e-9, atol=1e-15)
        assert curve.pairs[i] == sum(n for _, n in parts) == N - blocks * lag
        norm = np.linalg.norm(rows.mean(axis=0).reshape(50, 50), 2)  # equal blocks: the pooled C is the plain mean
        assert curve.op[i] == pytest.approx(norm, rel=1e-9)


def test_documents_equal_brute_force_over_pairs_inside_them():
    tokens, lengths = drifting(N, 30), rng().integers(300, 900, 1000)
    ends = np.cumsum(lengths)[np.cumsum(lengths) < N - 300]
    documents = np.split(tokens, ends)
    curve = correlation_curve(source_of(*documents, vocab_size=30, documents=True), max_lag=2, blocks=8)
    bounds = block_bounds(np.append(ends, N), 8)
    rows, pairs = [], 0
    for start, end in itertools.pairwise(bounds):
        joint, at = np.zeros((30, 30)), 0
        for document in documents:
            if start <= at < end:
                np.add.at(joint, (document[:-2], document[2:]), 1)
            at += len(document)
        pairs += joint.sum()
        joint /= joint.sum()
        rows.append((joint - np.outer(joint.sum(1), joint.sum(0))).ravel())
    assert curve.pairs[1] == pairs
    assert np.allclose(curve.grams[1], np.array(rows) @ np.array(rows).T, rtol=1e-9, atol=1e-15)


def test_rare_tokens_count_in_pairs_and_marginals_but_not_in_the_norm():
    tokens = drifting(N, 50)
    curve = correlation_curve(source_of(tokens, vocab_size=50), top_k=10, max_lag=1, blocks=8)
    top = np.argsort(-np.bincount(tokens, minlength=50), kind="stable")[:10]
    rows = np.array([brute_force(part, 1, 50)[0][np.ix_(top, top)].ravel() for part in np.split(tokens, 8)])
    assert np.allclose(curve.grams[0], rows @ rows.T, rtol=1e-9, atol=1e-15)
    assert curve.top_k == 10 and curve.top_k_mass == pytest.approx(np.isin(tokens, top).mean())


def test_permutation_mean_is_the_mean_over_all_orders(folder):
    documents = [np.array(d) for d in ([0, 1, 1, 2, 0], [3, 3, 3], [1], [4, 0, 2, 4], [0, 1])]
    ranked = write_ranked(spool_of(documents, 5), 5, 1, 2, folder)
    rank = frequent_ranks(np.bincount(np.concatenate(documents)), 5)
    for lag in (1, 2):
        mean = np.zeros((5, 5))
        for document in documents:
            orders = list(itertools.permutations(rank[document]))
            for order in orders:
                for u, v in zip(order, order[lag:]):
                    mean[u, v] += 1 / len(orders)
        assert np.allclose(permuted_pairs(np.fromfile(folder, np.uint16), ranked, 0, lag), mean)


def test_permutation_mean_does_not_depend_on_how_documents_are_grouped(folder, monkeypatch):
    documents = np.split(drifting(20_000, 20), np.cumsum(rng().integers(2, 60, 500))[:400])
    ranked = write_ranked(spool_of(documents, 20), 8, 8, 3, folder)
    tokens = np.fromfile(folder, np.uint16)
    one = [permuted_pairs(tokens, ranked, b, 2) for b in range(8)]
    monkeypatch.setattr(correlation, "PAIR_SLICE", 50)
    assert np.allclose(one, [permuted_pairs(tokens, ranked, b, 2) for b in range(8)])


def test_pair_counts_of_many_slices(monkeypatch):
    monkeypatch.setattr(correlation, "PAIR_SLICE", 64)
    tokens, expected = rng().integers(0, 6, 5000).astype(np.uint16), np.zeros((6, 6), int)
    for u, v in zip(tokens, tokens[7:]):
        expected[u, v] += 1
    assert np.array_equal(pair_counts(tokens, 7, 6), expected)
    assert pair_counts(tokens[:3], 7, 6).sum() == 0


def test_resampling_drops_a_block_times_itself():
    gram = rng().normal(size=(3, 3))
    picks = [0, 0, 2]
    pairs = [(a, b) for a, b in itertools.product(picks, picks) if a != b]
    expected = np.mean([gram[a, b] for a, b in pairs])
    assert resampled_squares(gram[None], np.array([[2, 0, 1]]))[0, 0] == pytest.approx(expected)


# -----------------------------------------------------------------------------
# Against closed forms

def test_cross_block_norm_agrees_with_the_analytic_correction():
    """The other unbiased estimator: the raw square of everything, less its expected noise."""
    made = SignOfGaussian(0.88)
    tokens = made.tokens(500_000, seed=3)
    curve = correlation_curve(source_of(tokens, vocab_size=1024), top_k=128, max_lag=64)
    p = np.sort(np.bincount(tokens, minlength=1024) / len(tokens))[::-1][:128]
    ranks = frequent_ranks(np.bincount(tokens, minlength=1024), 128)[tokens]
    noise = np.sum(p * (1 - p)) ** 2
    draws = rng().multinomial(16, np.full(16, 1 / 16), size=500)
    se = resampled_squares(curve.grams, draws).std(axis=0)
    for i, lag in enumerate(curve.lags):
        joint = pair_counts(ranks, lag, 129) / (len(tokens) - lag)
        raw = np.sum((joint - np.outer(joint.sum(1), joint.sum(0)))[:128, :128] ** 2)
        assert abs(curve.squares[i] - (raw - noise / (len(tokens) - lag))) < 3 * se[i], lag


def test_two_kinds_of_documents_show_their_plateau_and_document_centring_removes_it():
    source, plateau = two_kinds(documents=1600, length=1000)
    curve = correlation_curve(source, top_k=64, max_lag=20)
    assert np.sqrt(curve.squares) == pytest.approx(np.full(len(curve.lags), plateau), rel=0.05)
    centred = correlation_curve(source, top_k=64, max_lag=20, centering="document")
    assert centred.lags[-1] == 20 and np.abs(centred.squares).max() < 0.01 * plateau ** 2


# -----------------------------------------------------------------------------
# The same bits

def test_any_cutting_of_a_stream_gives_the_same_bits():
    tokens = drifting(N, 300)
    whole = correlation_curve(source_of(tokens, vocab_size=300), top_k=64, max_lag=8)
    for size in (1, 7):
        pieces = np.split(tokens, np.sort(rng(size).integers(0, N, 500 * size)))  # some are empty
        assert same_bits(whole, correlation_curve(source_of(*pieces, vocab_size=300), top_k=64, max_lag=8))


def test_any_number_of_workers_gives_the_same_bits():
    documents = np.split(drifting(N, 300), range(1000, N, 1000))
    for centering in correlation.CENTERINGS:
        one, two = (correlation_curve(source_of(*documents, vocab_size=300, documents=True), top_k=64, max_lag=8,
                                      centering=centering, workers=workers) for workers in (1, 2))
        assert same_bits(one, two)


def test_width_of_the_ids_changes_no_bit():
    tokens = drifting(N, 300)
    narrow, wide = (correlation_curve(source_of(tokens, vocab_size=size), top_k=64, max_lag=4)
                    for size in (300, 1 << 17))
    assert same_bits(narrow, wide)


def test_memory_does_not_grow_with_the_corpus_or_the_lags():
    def peak(pieces, max_lag):
        source = TokenSource(lambda: (drifting(1 << 18, 500, seed=i) for i in range(pieces)), 500, documents=False)
        tracemalloc.start()
        correlation_curve(source, top_k=32, max_lag=max_lag)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found
    small = peak(8, 2)  # a slice is full already
    assert peak(24, 2) < 1.05 * small and peak(8, 16) < 1.05 * small
