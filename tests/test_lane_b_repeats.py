"""
Repeated text: counted as a naive loop counts it, refused before there are statistics of it, and rare in real text.

python -m pytest tests/test_lane_b_repeats.py -v
"""

import gzip
import json

import numpy as np
import pytest
from lane_b_case import SignOfGaussian, draw, source_of, spool_of, two_state_chain, zipf

from nanochat.lab.horizon import repeats
from nanochat.lab.horizon.repeats import measure_repeats, window_hashes, window_of
from nanochat.lab.horizon.stats import Options, collect
from nanochat.tokenizer import RustBPETokenizer
from scripts.lane_b_stats import describe


def documents(count, length, seed=0):
    return np.split(SignOfGaussian(0.88).tokens(count * length, seed), count)


def facts_of(arrays, vocab_size=1024):
    return collect(source_of(*arrays, vocab_size=vocab_size, documents=True), Options(max_lag=64))


def naive(tokens, window, often):
    """(share, boilerplate) with a dictionary of windows."""
    places = {}
    for i in range(len(tokens) - window + 1):
        places.setdefault(tokens[i:i + window].tobytes(), []).append(i)
    shares = []
    for starts in ([i for where in places.values() for i in where[1:]],
                   [i for where in places.values() if len(where) >= often for i in where]):
        covered = np.zeros(len(tokens), bool)
        for i in starts:
            covered[i:i + window] = True
        shares.append(covered.mean())
    return tuple(shares)


def test_shares_are_those_of_a_naive_count_whatever_the_parts_and_slices(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(repeats, "OFTEN", 3)
    for _ in range(25):
        tokens = rng.integers(0, 300, 2000).astype(np.uint16)
        for _ in range(6):
            (to, start), length = rng.integers(0, 1900, 2), rng.integers(1, 100)
            tokens[to:to + length] = tokens[start:start + length].copy()
        monkeypatch.setattr(repeats, "SLICE", int(rng.integers(40, 900)))
        monkeypatch.setattr(repeats, "PART", int(rng.integers(100, 4000)))
        found = measure_repeats(spool_of([tokens], 300))
        assert (found.share, found.boilerplate) == pytest.approx(naive(tokens, found.window, 3), abs=1e-12)


def test_hashes_differ_where_windows_do():
    """Windows that differ in one token, in two tokens that change places, and by a shift."""
    tokens = np.tile(np.arange(64), 3)
    for other in (np.where(np.arange(192) == 70, 99, tokens), np.r_[tokens[:70], tokens[[71, 70]], tokens[72:]]):
        same = window_hashes(tokens, 32) == window_hashes(other, 32)
        assert same.sum() == 161 - (32 + (other[71] != tokens[71]))
    assert len(set(window_hashes(tokens, 32).tolist())) == 64


def test_windows_of_few_kinds_of_tokens_are_longer():
    assert [window_of(np.ones(v)) for v in (1, 2, 256, 8192)] == [1024, 256, 32, 32]
    chain = two_state_chain(300_000)
    assert measure_repeats(spool_of([chain], 2)).share < 0.01 < measure_repeats(spool_of([chain], 2)).window


COPIES = {
    "one document 5,000 times": lambda: documents(1, 500) * 5000,
    "documents 5 times each": lambda: [d for d in documents(100, 1000) for _ in range(5)],
    "a shard twice": lambda: documents(300, 1000) * 2,
    "a long header": lambda: [np.r_[draw(np.cumsum(zipf(1024)), np.random.default_rng(9), 400), d]
                              for d in documents(300, 1000)],
    "a short header": lambda: [np.r_[draw(np.cumsum(zipf(1024)), np.random.default_rng(9), 60), d]
                               for d in documents(300, 1000)]}


@pytest.mark.parametrize("name, share, boilerplate", [
    ("one document 5,000 times", 0.9998, 1), ("documents 5 times each", 0.8, 0), ("a shard twice", 0.5, 0),
    ("a long header", 400 / 1400 * 299 / 300, 400 / 1400), ("a short header", 60 / 1060 * 299 / 300, 60 / 1060)])
def test_copies_are_refused_by_name_before_there_are_statistics(name, share, boilerplate):
    facts = facts_of(COPIES[name]())
    assert facts["error"]["code"] == "repeated_text" and "duplicates and headers" in facts["error"]["message"]
    assert (facts["repeated_share"], facts["boilerplate_share"]) == pytest.approx((share, boilerplate), abs=0.003)
    assert facts["beta"] is facts["curve"] is facts["alpha_d"] is None and facts["repeat_window_tokens"] == 32


def test_some_copies_are_a_warning_with_their_share_and_none_are_no_warning():
    made = documents(400, 1000)
    facts = facts_of(made + made[:40])
    assert facts["beta"] and facts["error"] is None and "repeated_text" in facts["warnings"]
    assert facts["repeated_share"] == pytest.approx(40 / 440, abs=1e-3) and "9.1% of the tokens" in describe(facts)
    facts = facts_of(made)
    assert facts["repeated_share"] < 1e-4 and "repeated_text" not in facts["warnings"]


@pytest.mark.slow
def test_real_text_repeats_little(data_dir):
    texts = {"books": [], "wikitext": [], "shakespeare": [(data_dir / "tinyshakespeare.txt").read_text()]}
    with gzip.open(data_dir / "classic_books_60mb.jsonl.gz") as f:
        texts["books"] = [json.loads(line)["text"] for line in f][::8]
    texts["wikitext"] = [(data_dir / f"wikitext2_{part}.txt").read_text() for part in ("valid", "test")]
    for name, written in texts.items():
        tokenizer = RustBPETokenizer.train_from_iterator(iter(written), 1024)
        found = measure_repeats(spool_of([np.array(tokenizer.encode(text), np.uint16) for text in written], 1024))
        assert found.share < 0.005 and found.boilerplate < 0.001, name
