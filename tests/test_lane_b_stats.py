"""
The JSON of a corpus, complete whatever was refused, with both errors in alpha_D; its picture; and beta of real text.

Real text is tested where it is stored. test_lane_b_stats_command.py tests the command.

python -m pytest tests/test_lane_b_stats.py -v
"""

import gzip
import json
import math
import struct

import matplotlib.pyplot as plt
import numpy as np
import pytest
from lane_b_case import FOUND, LOSSES, SignOfGaussian, correlation_curve, draw, source_of, zipf

from nanochat.lab.horizon import plot
from nanochat.lab.horizon.decay import fit_decay
from nanochat.lab.horizon.source import Refusal
from nanochat.lab.horizon.stats import KEYS, Gamma, Options, collect, exponent
from nanochat.tokenizer import RustBPETokenizer

SPECIFIED = """beta beta_ci95 beta_windows beta_short beta_long n_break curve gamma gamma_ci95 gamma_source h_curve_nats
    h_inf_nats h_inf_identified n_star_tokens n_star_censored alpha_d alpha_d_ci95 num_tokens num_docs bytes_per_token
    vocab_size top_k top_k_mass tokenizer_id dataset_id seed elapsed_sec tokens_per_sec warnings
    schema_version""".split()
OPTIONS = Options(max_lag=64)


def given(curve=LOSSES, fit=FOUND):
    """A Gamma that measures nothing; an exception is raised instead of returned."""
    def give(value):
        def function(_):
            if isinstance(value, Exception):
                raise value
            return value
        return function
    return Gamma("ngram", give(curve), give(fit))


@pytest.fixture(scope="module")
def tokens():
    return SignOfGaussian(0.88).tokens(300_000, seed=0)


@pytest.fixture(scope="module")
def facts(tokens):
    return collect(source_of(tokens, vocab_size=1024), OPTIONS, given(), token_bytes=np.arange(1024))


def iid(n=220_000):
    return draw(np.cumsum(zipf(1024)), np.random.default_rng(0), n)


# -----------------------------------------------------------------------------
# The JSON

def test_every_key_is_there_and_the_numbers_are_those_of_the_fits(facts, tokens):
    assert list(facts) == KEYS and set(SPECIFIED) <= set(KEYS)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    curve = correlation_curve(source_of(tokens, vocab_size=1024), max_lag=64)
    decay = fit_decay(curve)
    assert (facts["beta"], facts["beta_ci95"]) == (decay.beta, list(decay.ci95))
    assert [row["lag"] for row in facts["curve"]] == curve.lags.tolist()
    assert facts["curve"][0]["fro"] ** 2 == pytest.approx(curve.squares[0])
    assert facts["curve"][0]["fro_se"] == pytest.approx(decay.noise.square_se[0] / 2 / math.sqrt(curve.squares[0]))
    assert [row["valid"] for row in facts["curve"]] == decay.noise.valid.tolist()
    assert all((row["fro"] is None) == (square <= 0) for row, square in zip(facts["curve"], curve.squares))
    assert [w["hi"] for w in facts["beta_windows"]] == [16, 32, 64, 200]
    assert facts["num_tokens"] == len(tokens) and facts["num_docs"] is None
    assert facts["bytes_per_token"] == pytest.approx(tokens.mean())  # id i has i bytes here
    assert facts["error"] is None


def test_alpha_carries_the_errors_of_both(facts):
    """Gamma and beta are positive, so their errors are those of logarithms, on each side for itself."""
    beta, alpha, (low, high) = facts["beta"], facts["alpha_d"], facts["beta_ci95"]
    assert alpha == pytest.approx(0.3 / (2 * beta))
    down = math.exp(math.hypot(math.log(0.3 / 0.24), math.log(high / beta)))
    up = math.exp(math.hypot(math.log(0.36 / 0.3), math.log(beta / low)))
    assert facts["alpha_d_ci95"] == pytest.approx([alpha / down, alpha * up])
    rng = np.random.default_rng(0)  # the same by sampling, where both sides are alike
    draws = 0.3 * np.exp(math.log(1.25) / 1.96 * rng.normal(size=200_000)) / (
        2 * beta * np.exp(math.log(1.3) / 1.96 * rng.normal(size=200_000)))
    _, found = exponent(0.3, (0.3 / 1.25, 0.3 * 1.25), beta, (beta / 1.3, beta * 1.3))
    assert np.quantile(draws, (0.025, 0.975)) == pytest.approx(found, rel=0.01)


def test_alpha_of_a_gamma_whose_floor_is_not_identified_reaches_up_as_far():
    _, (low, high) = exponent(0.22, (0.2, 0.45), 0.9, (0.89, 0.91))
    assert low < 0.2 / 1.8 and 0.45 / 1.8 < high < 0.46 / 1.8


def test_losses_are_rows_with_null_where_nothing_was_extrapolated(facts):
    assert facts["h_curve_nats"][1] == dict(context=1, loss=5.0, se=0.01, h_extrapolated=4.8, delta=0.4)
    assert facts["h_curve_nats"][2] == dict(context=2, loss=4.5, se=0.01, h_extrapolated=None, delta=0.3)
    assert (facts["gamma_source"], facts["gamma"], facts["h_inf_identified"]) == ("ngram", 0.3, False)
    assert "gamma_window_sensitive" in facts["warnings"]


def test_a_refusal_leaves_every_key_and_what_was_measured():
    facts = collect(source_of(iid(), vocab_size=1024), Options(max_lag=4, max_seq_len=128), given())
    assert list(facts) == KEYS and facts["error"]["code"] == "no_signal" and "lag 1" in facts["error"]["message"]
    assert (facts["beta"], facts["alpha_d"], facts["gamma"]) == (None, None, 0.3) and len(facts["curve"]) == 4
    facts = collect(source_of(iid(1000), vocab_size=1024), OPTIONS)
    assert facts["error"]["code"] == "corpus_too_short" and facts["num_tokens"] == 1000 and facts["curve"] is None
    facts = collect(source_of(vocab_size=1024), OPTIONS, given())
    assert facts["error"]["code"] == "empty_stream" and list(facts) == KEYS and facts["warnings"] == []


def test_gamma_that_is_refused_leaves_beta_and_the_losses(tokens):
    facts = collect(source_of(tokens, vocab_size=1024), OPTIONS, given(fit=Refusal("gamma_not_converged", "why")))
    assert facts["error"] == dict(code="gamma_not_converged", message="gamma_not_converged: why")
    assert facts["beta"] > 0 and facts["alpha_d"] is None and len(facts["h_curve_nats"]) == 4


def test_of_two_refusals_the_first_is_the_error():
    facts = collect(source_of(iid(), vocab_size=1024), Options(max_lag=4),
                    given(curve=Refusal("gamma_unavailable", "")))
    assert facts["error"]["code"] == "no_signal" and facts["warnings"] == ["gamma_unavailable"]


def test_without_gamma_there_is_beta_and_no_error(tokens):
    facts = collect(source_of(tokens, vocab_size=1024), Options(max_lag=64, max_seq_len=16))
    assert facts["beta"] > 0 and facts["alpha_d"] is facts["gamma_source"] is facts["error"] is None
    assert facts["beta_window"]["hi"] == 6 and facts["warnings"].count("horizon_exceeds_context") == 1


def test_gamma_reads_the_same_documents():
    documents, seen = np.split(iid(), range(400, 220_000, 400)), []
    gamma = Gamma("ngram", lambda source: seen.append((source.documents, [*source.read()])) or LOSSES,
                  lambda curve: FOUND)
    collect(source_of(*documents, vocab_size=1024, documents=True), Options(max_lag=4), gamma)
    assert seen[0][0] and all(np.array_equal(a, b) for a, b in zip(seen[0][1], documents, strict=True))


# -----------------------------------------------------------------------------
# The picture

def test_picture_has_a_panel_for_what_there_is(facts, tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda fig: None)
    plot.draw_stats(tmp_path / "x.png", facts)
    assert struct.unpack(">II", (tmp_path / "x.png").read_bytes()[16:24]) == (1300, 550)
    left, right = plt.gcf().axes
    fit = next(line for line in left.lines if line.get_label().startswith("n^-"))
    slope = np.diff(np.log(fit.get_ydata())) / np.diff(np.log(fit.get_xdata()))
    assert -slope[0] == pytest.approx(facts["beta_window"]["beta"])
    assert next(line for line in right.lines if line.get_label().startswith("n^-0.30")).get_xdata().tolist() == [1, 3]
    monkeypatch.undo()
    plt.close("all")


def test_picture_of_a_refusal_shows_the_curve(tmp_path):
    facts = collect(source_of(iid(), vocab_size=1024), Options(max_lag=4))
    plot.draw_stats(tmp_path / "x.png", facts)
    assert struct.unpack(">II", (tmp_path / "x.png").read_bytes()[16:24]) == (800, 550)


# -----------------------------------------------------------------------------
# Real text

def beta_to_32(arrays, documents):
    facts = collect(source_of(*arrays, vocab_size=8192, documents=documents), Options())
    return facts, next(w["beta"] for w in facts["beta_windows"] if w["hi"] == 32)


@pytest.mark.slow
def test_beta_of_wikitext(data_dir):
    text = "".join((data_dir / f"wikitext2_{part}.txt").read_text()
                   for part in ("valid", "test")).replace("<unk>", "\N{WHITE SQUARE}")
    tokenizer = RustBPETokenizer.train_from_iterator([text], 8192)
    _, beta = beta_to_32([np.array(tokenizer.encode(text))], documents=False)
    assert 0.78 < beta < 1.10


@pytest.mark.slow
def test_beta_of_books_is_a_broken_power_law(data_dir):
    with gzip.open(data_dir / "classic_books_60mb.jsonl.gz") as f:
        texts = [json.loads(line)["text"] for line in f]
    tokenizer = RustBPETokenizer.train_from_iterator((text[:200_000] for text in texts), 8192)
    facts, beta = beta_to_32([np.array(tokenizer.encode(text), np.uint16) for text in texts], documents=True)
    assert 0.85 < beta < 1.15 and "broken_power_law" in facts["warnings"]
