"""
Held-out Kneser-Ney and its ladder: against dictionaries, against sources whose entropies are known, and against the
usual traps.

python -m pytest tests/test_lane_b_ngram.py
"""

import gzip
import json

import numpy as np
import pytest
from ngram_case import (
    NaiveKneserNey,
    make_words,
    plug_in_entropy,
    word_entropy,
    word_tokens,
    word_weights,
)

from nanochat.lab.horizon import ngram
from nanochat.lab.horizon.entropy import EntropyCurve
from nanochat.lab.horizon.gamma import fit_gamma
from nanochat.lab.horizon.kneser_ney import discounts, empty_context, extend, held_out
from nanochat.lab.horizon.ngram import (
    extrapolated_curve,
    ladder_losses,
    make_ladder,
    ngram_curve,
    sample_pieces,
    to_infinity,
)
from nanochat.lab.horizon.source import Refusal, TokenSource


def flat(pieces):
    return np.concatenate(pieces).astype(np.int32), np.concatenate([np.arange(len(p)) for p in pieces])


def some_pieces(rng, vocab_size, count=30, longest=40):
    return [rng.choice(vocab_size, size=rng.integers(1, longest), p=word_weights(vocab_size)) for _ in range(count)]


def stream(tokens, vocab_size, cuts=()):
    return TokenSource(lambda: iter(np.split(tokens, cuts)), vocab_size, documents=False)


# -----------------------------------------------------------------------------
# Kneser-Ney

@pytest.mark.parametrize("vocab_size, seed", [(2, 0), (7, 1), (40, 2)])
def test_probabilities_equal_those_of_dictionaries(vocab_size, seed):
    rng, n_max = np.random.default_rng(seed), 4
    pieces = some_pieces(rng, vocab_size)
    # drawn unlike the training text, so that some contexts were never seen
    held = [rng.integers(vocab_size, size=20) for _ in range(4)]
    tokens, depth = flat(pieces + held)
    rungs = [sum(map(len, pieces[:15])), sum(map(len, pieces))]
    at = rungs[1] + np.flatnonzero(depth[rungs[1]:] >= n_max)
    seen = 0
    for n, r, p in held_out(tokens, depth, rungs, at, n_max, vocab_size):
        naive = NaiveKneserNey([tuple(x.tolist()) for x in pieces[:(15, 30)[r]]], n, vocab_size)
        expected = [naive.p(tuple(tokens[i - n:i].tolist()), int(tokens[i])) for i in at]
        np.testing.assert_allclose(p, expected, rtol=1e-12)
        seen += 1
    assert seen == 2 * (n_max + 1)


def test_probabilities_sum_to_one_over_the_vocabulary():
    rng, vocab_size, n_max = np.random.default_rng(3), 11, 3
    pieces = some_pieces(rng, vocab_size)
    contexts = [tuple(pieces[0][:3])] + [tuple(rng.integers(vocab_size, size=3)) for _ in range(8)]
    tokens, depth = flat(pieces + [np.array(c + (w,)) for c in contexts for w in range(vocab_size)])
    num_train = sum(map(len, pieces))
    at = num_train + np.flatnonzero(depth[num_train:] == n_max)
    for _, _, p in held_out(tokens, depth, [num_train], at, n_max, vocab_size):
        np.testing.assert_allclose(p.reshape(len(contexts), vocab_size).sum(axis=1), 1, rtol=1e-12)
        assert (p > 0).all()


def test_ngrams_have_exact_ids_by_first_occurrence():
    pieces = some_pieces(np.random.default_rng(4), 5)
    tokens, depth = flat(pieces)
    grams = empty_context(len(tokens))
    for m in range(1, 6):
        grams = extend(grams, tokens, depth, m)
        known = {}
        for i in range(len(tokens)):
            expected = known.setdefault(tuple(tokens[i - m + 1:i + 1].tolist()),
                                        len(known)) if depth[i] >= m - 1 else -1
            assert grams.ids[i] == expected
        assert len(grams.first) == len(known) and (np.diff(grams.first) > 0).all()


def test_discounts_are_those_of_the_paper():
    counts = np.repeat([0, 1, 2, 3, 4, 9], [7, 100, 40, 20, 10, 5])
    y = 100 / (100 + 2 * 40)
    np.testing.assert_allclose(discounts(counts), [0, 1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 3 - 4 * y * 0.5])
    assert discounts(np.array([5, 9])).tolist() == [0, 0.5, 0.5, 0.5]


# -----------------------------------------------------------------------------
# The traps

@pytest.fixture(scope="module")
def spelled():
    """300,000 letters of words from a dictionary, their exact entropies and their curve."""
    rng = np.random.default_rng(0)
    words = make_words(2000, 12, rng)
    tokens = word_tokens(300_000, words, rng)
    return tokens, np.array([word_entropy(n, words) for n in range(11)]), ngram_curve(stream(tokens, 13))


def test_held_out_losses_bound_the_entropy_and_their_extrapolation_meets_it(spelled):
    _, exact, curve = spelled
    assert (curve.loss > exact - 3 * curve.se).all()
    accepted = np.flatnonzero(np.isfinite(curve.h_extrapolated))
    assert accepted.tolist() == [0, 1, 2, 3]
    error = np.abs(curve.h_extrapolated - exact)[accepted]
    assert (error < 3 * np.hypot(curve.se, curve.h_error)[accepted]).all()
    assert curve.loss[3] - exact[3] > 0.03  # the gap that the extrapolation closes


def test_plug_in_entropy_of_hashed_contexts_collapses_where_the_held_out_loss_does_not(spelled):
    tokens, exact, curve = spelled
    assert plug_in_entropy(tokens, 1) == pytest.approx(exact[1], abs=0.02)  # a fair start
    assert plug_in_entropy(tokens, 10) < 0.5 * exact[10]
    assert exact[10] < curve.loss[10] < 1.15 * exact[10]


def two_authors(rng, num_tokens=600_000):
    """A corpus whose second half has another dictionary, as books by two authors."""
    return np.concatenate([word_tokens(num_tokens // 2, make_words(600, 12, rng), rng) for _ in range(2)])


def prefix_ladder(tokens, num_held):
    """The naive ladder: rungs are prefixes of the corpus as it stands, and its end is held out."""
    train = len(tokens) - num_held
    depth = np.minimum(np.arange(len(tokens)), 10).astype(np.uint8)
    return ngram.Ladder(tokens.astype(np.int32), depth, train // 2 ** np.arange(ngram.RUNGS - 1, -1, -1),
                        np.arange(train, len(tokens)))


def test_ladder_over_prefixes_of_two_books_is_not_converged_and_over_shuffled_pieces_it_is():
    tokens = two_authors(np.random.default_rng(1))
    pieces, prefixes = (extrapolated_curve(ladder.rungs, ladder_losses(ladder, 13, max_context=3)) for ladder in (
        make_ladder(*sample_pieces(stream(tokens, 13), 10**9, seed=0), seed=0), prefix_ladder(tokens, 60_000)))
    assert np.isfinite(pieces.h_extrapolated).all() and fit_gamma(pieces).gamma > 0
    assert not np.isfinite(prefixes.h_extrapolated[1:]).all()
    with pytest.raises(Refusal, match="gamma_not_converged"):
        fit_gamma(prefixes)


# -----------------------------------------------------------------------------
# Pieces and rungs

def test_the_curve_does_not_depend_on_how_the_stream_was_cut(spelled, monkeypatch):
    monkeypatch.setattr(ngram, "MAX_CONTEXT", 3)
    tokens = spelled[0][:220_001]
    whole, cut = (sample_pieces(stream(tokens, 13, cuts), 10**9, seed=5)
                  for cuts in ((), (1, 2, 70_001, 70_001, 219_000)))
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole[0], tokens)


def test_pieces_end_with_their_documents_and_contexts_stay_inside_them():
    lengths = [300, 1, 256, 700, 513] * 150
    tokens = np.arange(sum(lengths)) % 1000
    source = TokenSource(lambda: iter(np.split(tokens, np.cumsum(lengths)[:-1])), 1000)
    found, ends = sample_pieces(source, 10**9, seed=0)
    assert set(np.cumsum(lengths)) <= set(ends) and np.diff(ends, prepend=0).max() == ngram.PIECE
    np.testing.assert_array_equal(found, tokens)
    ladder = make_ladder(found, ends, seed=0)
    assert sorted(ladder.tokens.tolist()) == sorted(tokens.tolist())
    follows = np.diff(ladder.tokens) % 1000 == 1
    assert follows[ladder.depth[1:] > 0].all()  # a token with context stands after the token that it stood after
    assert (ladder.depth[ladder.held] == ngram.MAX_CONTEXT).all() and ladder.held.min() >= ladder.rungs[-1]
    np.testing.assert_allclose(ladder.rungs[1:] / ladder.rungs[:-1], 2, rtol=0.1)
    assert (ladder.depth[ladder.rungs] == 0).all()  # each rung ends with a piece


def test_part_of_a_large_corpus_is_a_random_sample_of_its_pieces():
    tokens = np.arange(1_000_000) // 1000
    found, ends = sample_pieces(stream(tokens, 1000, range(0, 1_000_000, 77_777)), 250_000, seed=0)
    assert 249_000 < len(found) <= 250_000 and ends[-1] == len(found)
    assert len(np.unique(found)) > 600 and (np.diff(found) >= 0).all()  # of 1000 stretches, a quarter kept
    np.testing.assert_array_equal(found, sample_pieces(stream(tokens, 1000), 250_000, seed=0)[0])
    assert not np.array_equal(found, sample_pieces(stream(tokens, 1000), 250_000, seed=1)[0][:len(found)])


@pytest.mark.parametrize("source, code", [
    (TokenSource(lambda: iter([]), 10), "empty_stream"),
    (stream(np.zeros(5000, dtype=int), 10), "corpus_too_short"),
    # documents of 5 tokens: none has 10 tokens of context
    (TokenSource(lambda: iter([np.zeros(5, dtype=int)] * 50_000), 10), "corpus_too_short"),
    (stream(np.full(300_000, 10), 10), "ids_out_of_range"), (stream(np.full(300_000, -1), 10), "ids_out_of_range")])
def test_corpus_that_cannot_be_used_is_refused_by_name(source, code):
    with pytest.raises(Refusal) as caught:
        ngram_curve(source)
    assert caught.value.code == code


def test_progress_is_said_for_every_context(spelled):
    lines = []
    ngram_curve(stream(spelled[0][:200_000], 13), say=lines.append)
    assert len(lines) == ngram.MAX_CONTEXT + 1 and lines[3].startswith("3 tokens of context: ")


# -----------------------------------------------------------------------------
# P = infinity

RUNGS = 30_000 * 2 ** np.arange(6)


@pytest.mark.parametrize("h, a, d", [(2.0, 40.0, 0.3), (3.5, 900.0, 0.8), (0.5, 3.0, 0.1)])
def test_exact_law_is_carried_to_infinity(h, a, d):
    assert to_infinity(RUNGS, h + a * RUNGS ** -d) == pytest.approx((h, d), rel=1e-3)


def test_loss_that_rises_with_the_tokens_is_no_law():
    assert to_infinity(RUNGS, 3 - RUNGS ** -0.5)[0] == -np.inf


def ladder_of(h, gain, d, rng, noise=0.001, blocks=32):
    """Block losses [rungs, contexts, blocks]: h_n + gain_n (P/P_max)^-d_n, blocks harder or easier by 3 %."""
    mean = np.array(h) + np.array(gain) * (RUNGS[:, None] / RUNGS[-1]) ** -np.array(d)
    return (mean[..., None] * (1 + 0.03 * rng.standard_normal(blocks))
            + noise * rng.standard_normal((*mean.shape, blocks)))


def test_contexts_are_accepted_until_the_ladder_is_too_slow():
    h = [6.0, 5.0, 4.1, 3.6, 3.3]
    losses = ladder_of(h, [0.0, 0.05, 0.2, 0.3, 0.4], [1.0, 0.6, 0.4, 0.3, 0.15], np.random.default_rng(0))
    curve = extrapolated_curve(RUNGS, losses)
    assert np.isfinite(curve.h_extrapolated).tolist() == [True] * 4 + [False]
    assert np.abs(curve.h_extrapolated[1:4] - h[1:4]).max() < 0.1
    assert (np.isnan(curve.delta[0]) and curve.delta[1:4] == pytest.approx([0.6, 0.4, 0.3], abs=0.05)
            and curve.delta[4] < 0.25)
    np.testing.assert_allclose(curve.blocks[:, :4].mean(axis=0), curve.h_extrapolated[:4], rtol=1e-9)
    for n in (1, 2):
        assert np.corrcoef(curve.blocks[:, n], losses[-1, n])[0, 1] > 0.9  # a hard block is hard at infinity too
        assert 0.5 < curve.blocks[:, n].std() / losses[-1, n].std() < 2


def test_contexts_that_the_corpus_does_not_know_are_not_accepted_as_a_floor():
    """From n = 3 on the losses are those of n = 3: the exponent is steep enough, and still H_4 is not known."""
    h, gain, d = [6.0, 5.0, 4.1, 3.6, 3.58], [0.0, 0.05, 0.2, 0.3, 0.318], [1.0, 0.6, 0.4, 0.3, 0.3]
    curve = extrapolated_curve(RUNGS, ladder_of(h, gain, d, np.random.default_rng(1), noise=1e-5))
    assert curve.delta[4] > 0.25 and np.isfinite(curve.h_extrapolated).tolist() == [True] * 4 + [False]


def test_a_unigram_loss_that_rises_with_the_tokens_takes_no_context_with_it():
    h, gain, d = [6.0, 5.0, 4.1, 3.6], [-0.05, 0.05, 0.2, 0.3], [1.0, 0.6, 0.4, 0.3]
    curve = extrapolated_curve(RUNGS, ladder_of(h, gain, d, np.random.default_rng(3), noise=1e-5))
    assert np.isfinite(curve.h_extrapolated).tolist() == [False, True, True, True]


def test_entropies_that_rise_with_the_context_are_not_accepted():
    h, gain, d = [6.0, 5.0, 4.1, 3.6, 3.65], [0.0, 0.05, 0.2, 0.3, 0.26], [1.0, 0.6, 0.4, 0.3, 0.3]
    curve = extrapolated_curve(RUNGS, ladder_of(h, gain, d, np.random.default_rng(2), noise=1e-5))
    assert np.isfinite(curve.h_extrapolated).tolist() == [True] * 4 + [False]


# -----------------------------------------------------------------------------
# Real text

def token_source(texts, vocab_size):
    from nanochat.tokenizer import RustBPETokenizer
    tokenizer = RustBPETokenizer.train_from_iterator(iter(texts), vocab_size)
    rows = [np.array(row, dtype=np.int32) for row in tokenizer.encode(texts)]
    return TokenSource(lambda: iter(rows), vocab_size)


@pytest.mark.slow
def test_books_in_a_small_vocabulary_give_a_gamma_and_the_naive_curves_do_not(data_dir):
    with gzip.open(data_dir / "classic_books_60mb.jsonl.gz", "rt", encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f][::5]
    source = token_source(texts, 512)
    curve = ngram_curve(source)
    fit = fit_gamma(curve)
    assert 0.38 < fit.gamma < 0.52 and fit.gamma - fit.ci95[0] < 0.14 and not fit.h_inf_identified
    assert fit.ci95[1] > 1 and fit.h_inf_ci95[1] > 1.5  # three contexts say little of the floor
    # a finite corpus shows no more than so much context, like a blind model
    with pytest.raises(Refusal, match="gamma_not_converged"):
        fit_gamma(EntropyCurve("positional", curve.context, curve.loss, curve.se), (1, 10))
    tokens = np.concatenate(list(source.read()))[:2_000_000]
    contexts = np.arange(1, 7)
    slope = -np.polyfit(np.log(contexts), np.log([plug_in_entropy(tokens, n) for n in contexts]), 1)[0]
    assert slope > 2.5 * fit.gamma  # the trap


@pytest.mark.slow
def test_wikitext_is_too_small_for_its_vocabulary_and_is_refused(data_dir):
    text = "".join((data_dir / f"wikitext2_{part}.txt").read_text(encoding="utf-8") for part in ("valid", "test"))
    text = text.replace("<unk>", "\u2423")
    source = token_source([text[i:i + 20_000] for i in range(0, len(text), 20_000)], 8192)
    with pytest.raises(Refusal, match="gamma_not_converged"):
        fit_gamma(ngram_curve(source))
