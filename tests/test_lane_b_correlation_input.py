"""
The input of a correlation: the ranks of the tokens, the blocks of the corpus, the lags, and the refusals by name.

python -m pytest tests/test_lane_b_correlation_input.py -v
"""

import re

import numpy as np
import pytest
from lane_b_case import correlation_curve, drifting, source_of, spool_of

from nanochat.lab.horizon import correlation
from nanochat.lab.horizon.correlation import lag_grid
from nanochat.lab.horizon.ranks import Ranked, block_bounds, frequent_ranks, write_ranked
from nanochat.lab.horizon.source import Refusal, TokenSource
from nanochat.lab.horizon.spool import spooled
from nanochat.lab.horizon.stats import Options, collect

N = 240_000


# -----------------------------------------------------------------------------
# Ranks, blocks, lags

def test_ranks_go_by_frequency_then_id():
    assert frequent_ranks(np.array([5, 9, 5, 0, 2]), 3).tolist() == [1, 0, 2, 3, 3]
    assert frequent_ranks(np.array([5, 9, 5, 0, 2]), 5).tolist() == [1, 0, 2, 5, 3]  # what never occurs has no rank


def test_blocks_end_with_documents_where_these_are_short_enough():
    assert block_bounds(np.arange(10, 1001, 10), 3).tolist() == [0, 330, 670, 1000]
    assert block_bounds(np.array([100, 900, 1000]), 4).tolist() == [0, 250, 500, 750, 1000]
    assert block_bounds(np.array([200, 760, 1000]), 4).tolist() == [0, 200, 500, 760, 1000]


def test_file_of_ranks_has_gaps_after_documents_and_cuts(tmp_path):
    folder = tmp_path / "ranks"
    ranked = write_ranked(spool_of([np.array([2, 2]), np.array([1, 0, 1, 2, 1, 1])], 3), 2, 2, 2, folder)
    assert np.fromfile(folder, np.uint16).tolist() == [1, 1, 3, 3, 0, 2, 3, 3, 0, 1, 0, 0, 3, 3]
    assert isinstance(ranked, Ranked) and [ranked.block(b) for b in range(2)] == [slice(0, 8), slice(8, 14)]


def test_lags_are_three_an_octave():
    assert lag_grid(512) == [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 51, 64, 81, 102, 128, 161, 203, 256, 323,
                             406, 512]
    assert lag_grid(1) == [1] and lag_grid(0) == [] and lag_grid(7) == [1, 2, 3, 4, 5, 6]


def test_lags_stop_at_a_quarter_of_the_median_document():
    documents = np.split(drifting(N, 20), range(200, N, 200))
    source = source_of(*documents, vocab_size=20, documents=True)
    assert correlation_curve(source).lags[-1] == 40 and correlation_curve(source, max_lag=9).lags[-1] == 8
    centred = correlation_curve(source, centering="document")
    assert centred.lags[-1] == 4 and centred.warnings == ("short_documents_document_centering",)


# -----------------------------------------------------------------------------
# Refusals

@pytest.mark.parametrize("code, arrays, options", [
    ("empty_stream", [], {}),
    ("empty_stream", [np.array([])], {}),
    ("ids_out_of_range", [np.array([0, 20])], {}),
    ("ids_out_of_range", [np.array([0, -1])], {}),
    ("corpus_too_short", [np.zeros(199_999, int)], {}),
    ("corpus_too_short", [drifting(N, 20)], dict(max_lag=1300)),
    ("too_few_valid_lags", [np.zeros(3, int)] * 67_000, {}),
    ("too_few_valid_lags", [np.zeros(40, int)] * 6_000, dict(centering="document"))])
def test_refusals_have_their_code(code, arrays, options):
    with pytest.raises(Refusal, match=code) as e:
        correlation_curve(source_of(*arrays, vocab_size=20, documents=True), **options)
    assert e.value.code == code


@pytest.mark.parametrize("options", [dict(top_k=0), dict(max_lag=0), dict(blocks=7), dict(centering="row"),
                                     dict(centering="document")])
def test_impossible_options_are_named(options):
    with pytest.raises(ValueError, match="--" + next(iter(options)).replace("_", "-")):
        correlation_curve(source_of(np.zeros(N, int), vocab_size=20), **options)


def test_a_top_k_that_no_memory_holds_is_refused_before_anything_is_read():
    unread = TokenSource(lambda: pytest.fail("read"), 1 << 15, documents=False)
    for top_k, blocks, what in ((1 << 15, None, "32 blocks x 32768^2 x 8 bytes are 256.0 GiB"),
                                (8193, 16, "16 blocks x 8193^2")):
        with pytest.raises(ValueError,
                           match=rf"--top-k={top_k}: {re.escape(what)} .* "
                                 rf"give --top-k={5792 if blocks is None else 8192} or"):
            collect(unread, Options(top_k=top_k, blocks=blocks))
    correlation.check(5792, 1, None, "block", False, vocab_size=1 << 15)
    correlation.check(1 << 15, 1, None, "block", False, vocab_size=1024)  # a table is as wide as the vocabulary


def test_tokens_must_be_integers():
    with pytest.raises(ValueError, match="float64"):
        correlation_curve(source_of(np.zeros(10), vocab_size=20))


def test_a_broken_id_is_a_refusal_and_not_a_table_of_its_size():
    with pytest.raises(Refusal, match="ids_out_of_range"):
        correlation_curve(source_of(np.array([1, 1 << 50]), vocab_size=(1 << 50) + 1))


def test_a_block_without_pairs_is_a_refusal_that_names_it():
    long, short = [np.arange(1000) % 20] * 300, [np.arange(50) % 20] * 290
    source = source_of(*long, *short, vocab_size=20, documents=True)  # the end is short documents only
    assert correlation_curve(source, max_lag=64, blocks=8).pairs.min() > 0
    for workers in (1, 2):
        with pytest.raises(Refusal, match="too_few_valid_lags: block 3.. of 400 has no two tokens 51 apart"):
            correlation_curve(source, max_lag=51, blocks=400, workers=workers)


def test_spool_is_a_source_of_the_same_documents():
    documents = [drifting(n, 20) for n in (5, 1, 800)]
    with spooled(source_of(documents[0], np.array([], int), *documents[1:], vocab_size=20, documents=True)) as spool:
        again = spool.source()
        assert again.documents and again.vocab_size == 20 and spool.lengths.tolist() == [5, 1, 800]
        assert all(np.array_equal(a, b) for a, b in zip(again.read(), documents, strict=True))
        assert np.array_equal(spool.counts, np.bincount(np.concatenate(documents), minlength=20))
