"""
The obvious estimators together: the slope of a raw norm and that of counted entropies. Each is off in the direction
that makes alpha_D = gamma / (2 beta) larger, so they give many times the largest possible value. On the same text, the
estimators of this project do not.

python -m pytest tests/test_lane_b_traps.py -v
"""

import gzip
import json

import numpy as np
import pytest
from lane_b_case import SignOfGaussian, raw_beta, source_of
from ngram_case import plug_in_entropy

from nanochat.lab.horizon.decay import power_law
from nanochat.lab.horizon.gamma import fit_gamma
from nanochat.lab.horizon.ngram import ngram_curve
from nanochat.lab.horizon.stats import Gamma, Options, collect
from nanochat.tokenizer import RustBPETokenizer

NGRAM = Gamma("ngram", ngram_curve, fit_gamma)


def naive_alpha(tokens, contexts=5):
    n = np.arange(1, contexts + 1)
    gamma = -np.polyfit(np.log(n), np.log([plug_in_entropy(tokens, i) for i in n]), 1)[0]
    return gamma / (2 * raw_beta(tokens, np.arange(1, 65)))


def test_raw_norm_with_counted_entropies_gives_an_alpha_that_cannot_be_and_ours_is_refused():
    made = SignOfGaussian(0.88)
    tokens = made.tokens(300_000, seed=0)
    h_0 = -made.p @ np.log(made.p)
    beta = power_law(np.arange(1, 65), made.norm(np.arange(1, 65)))[0]
    # the past can tell no more than the sign, so H_1 / H_5 is below this
    most = np.log(h_0 / (h_0 - np.log(2))) / np.log(5) / (2 * beta)
    assert naive_alpha(tokens) > 20 * most
    facts = collect(source_of(tokens, vocab_size=1024), Options(max_lag=64), NGRAM)
    assert facts["beta"] == pytest.approx(beta, rel=0.2)
    assert facts["alpha_d"] is None and facts["error"]["code"] == "gamma_not_converged"


@pytest.mark.slow
def test_raw_norm_with_counted_entropies_of_books_gives_an_alpha_many_times_too_large(data_dir):
    with gzip.open(data_dir / "classic_books_60mb.jsonl.gz", "rt", encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f][::5]
    found = []
    for vocab_size in (8192, 512):
        tokenizer = RustBPETokenizer.train_from_iterator(iter(texts), vocab_size)
        rows = [np.array(row) for row in tokenizer.encode(texts)]
        facts = collect(source_of(*rows, vocab_size=vocab_size, documents=True), Options(max_seq_len=256), NGRAM)
        found.append((naive_alpha(np.concatenate(rows)[:2_000_000]), facts))
    (naive, facts), (naive_small, facts_small) = found
    assert naive > 2 and facts["alpha_d"] is None and facts["error"]["code"] == "gamma_not_converged"
    # the interval holds what floors of the entropy up to 1.7 nats give, and the naive value is above all of them
    assert naive_small > 4 * facts_small["alpha_d"] and naive_small > 1.2 * facts_small["alpha_d_ci95"][1]
    assert 0.1 < facts_small["alpha_d"] < 0.4  # TinyStories and WikiText-103 were reported at 0.185 and 0.141
