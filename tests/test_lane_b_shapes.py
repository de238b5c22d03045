"""
Sums of exponentials are told from power laws: on exact curves, on tokens with known correlations, on stored shapes of
natural text.

python -m pytest tests/test_lane_b_shapes.py -v
"""

import gzip
import json

import numpy as np
import pytest
from lane_b_case import SignOf, SignOfGaussian, correlation_curve, source_of
from test_lane_b_decay import curve_of, refused

from nanochat.lab.horizon import stats
from nanochat.lab.horizon.correlation import lag_grid
from nanochat.lab.horizon.decay import fit_decay
from nanochat.lab.horizon.shapes import best_sum, sum_of_exponentials
from nanochat.tokenizer import RustBPETokenizer

MIXTURES = {"2, 60": ((0.8, 2), (0.2, 60)), "3, 30": ((0.7, 3), (0.3, 30)), "5, 100": ((0.7, 5), (0.3, 100)),
            "8, 80": ((0.6, 8), (0.4, 80)), "4, 200": ((0.8, 4), (0.2, 200)),
            "2, 20, 200": ((0.7, 2), (0.2, 20), (0.1, 200)), "3, 15, 90": ((0.6, 3), (0.25, 15), (0.15, 90))}
BOOKS = (1.4, 15.0, 800.0)  # scales that describe the decay in books over lags 1..512


def mixture(*parts):
    return lambda n: sum(weight * np.exp(-np.asarray(n, float) / scale) for weight, scale in parts)


def curve_of_tokens(correlation, seed, n=2_000_000):
    tokens = SignOf(correlation).tokens(n, seed)
    return correlation_curve(source_of(tokens, vocab_size=1024))


def test_best_sum_finds_the_parts_that_a_curve_was_made_of():
    lags = np.array(lag_grid(128), float)
    basis = np.exp(-lags / np.array([1, 2, 4, 8, 16, 32, 64, 128])[:, None])
    norm = 3 * basis[1] + 0.5 * basis[5]
    chi2, rows, sizes = best_sum(basis, norm, np.full(len(lags), 0.01), 2)
    assert chi2 < 1e-9 and rows.tolist() == [1, 5] and sizes == pytest.approx([3, 0.5], rel=1e-6)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_curve_of_two_or_three_exponentials_is_no_power_law(name):
    law = mixture(*MIXTURES[name])
    lags = np.array(lag_grid(int(2 * MIXTURES[name][-1][1])))
    found = sum_of_exponentials(lags, law(lags), np.full(len(lags), 0.003))
    assert found.refuted and found.scales[-1] == pytest.approx(MIXTURES[name][-1][1], rel=0.25)
    assert refused(curve_of(law, max_lag=int(lags[-1]))) == "not_power_law"


@pytest.mark.parametrize("law", [lambda n: n ** -0.5, lambda n: n ** -1.3, lambda n: (n + 3) ** -0.9,
                                 lambda n: n ** -1.2 * np.maximum(1, n / 40) ** 0.9, lambda n: n ** -1.4 + 0.02])
def test_power_laws_in_four_forms_stay(law):
    lags = np.array(lag_grid(256), float)
    found = sum_of_exponentials(lags, law(lags), np.full(len(lags), 0.003))
    assert not found.refuted and found.ahead < 0
    assert "exponential_mixture" not in fit_decay(curve_of(law, max_lag=256)).warnings


def test_a_sum_that_does_not_end_within_the_range_is_said_and_not_refused():
    """The shape of books: its slowest part is longer than any lag that was seen."""
    law = mixture(*zip((0.8, 0.12, 0.03), BOOKS))
    decay = fit_decay(curve_of(law))
    assert {"broken_power_law", "exponential_mixture"} <= set(decay.warnings)
    assert not sum_of_exponentials(np.array(lag_grid(512)), law(np.array(lag_grid(512))), np.full(25, 0.01)).refuted


def test_too_few_lags_decide_nothing():
    assert sum_of_exponentials(np.arange(1, 6), np.arange(1.0, 6) ** -1, np.full(5, 0.01)) is None


@pytest.mark.parametrize("name, seed", [("3, 30", 0), ("2, 20, 200", 0)])
def test_tokens_of_a_mixture_are_refused(name, seed):
    assert refused(curve_of_tokens(mixture(*MIXTURES[name]), seed)) == "not_power_law"


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_tokens_of_a_mixture_are_refused_or_said_whatever_the_seed(name):
    codes = []
    for seed in range(1, 6):
        curve = curve_of_tokens(mixture(*MIXTURES[name]), seed)
        try:
            codes.append(fit_decay(curve).warnings)
        except ValueError as e:
            codes.append(e.code)
    assert codes.count("not_power_law") >= 4
    assert all("exponential_mixture" in warnings for warnings in codes if warnings != "not_power_law")


@pytest.mark.slow
@pytest.mark.parametrize("b", (0.5, 0.88, 1.3))
def test_no_power_law_is_refused_or_doubted_in_twelve_seeds(b):
    for seed in range(12):
        curve = correlation_curve(source_of(SignOfGaussian(b).tokens(2_000_000, seed), vocab_size=1024))
        assert "exponential_mixture" not in fit_decay(curve).warnings


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", (320, 512))
def test_no_power_law_of_books_is_refused_with_a_small_vocabulary(data_dir, vocab_size):
    """Here the sum of exponentials is ahead by 17 to 78, and its slowest part about as long as the range."""
    with gzip.open(data_dir / "classic_books_60mb.jsonl.gz", "rt", encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f]
    tokenizer = RustBPETokenizer.train_from_iterator(iter(texts[::5]), vocab_size)
    for part in (0, 2):
        rows = [np.array(row) for row in tokenizer.encode(texts[part::5])]
        decay = fit_decay(correlation_curve(source_of(*rows, vocab_size=vocab_size, documents=True)), max_seq_len=256)
        assert "broken_power_law" in decay.warnings and decay.ci95[0] > 0


def test_beta_whose_interval_holds_0_is_refused_and_its_windows_stay(monkeypatch):
    """A steep decay at short lags and a plateau: the windows of lags disagree by more than beta itself."""
    curve = curve_of(lambda n: n ** -1.5 + 0.08)
    decay = fit_decay(curve)
    assert decay.beta > 0 > decay.ci95[0]
    monkeypatch.setattr(stats, "measure_spool", lambda *args: curve)
    tokens = np.random.default_rng(0).integers(0, 1024, 200_000)
    facts = stats.collect(source_of(tokens, vocab_size=1024), stats.Options())
    assert facts["error"]["code"] == "beta_nonpositive" and "holds 0" in facts["error"]["message"]
    assert facts["beta"] is facts["beta_ci95"] is facts["alpha_d"] is None and "broken_power_law" in facts["warnings"]
    assert [w["beta"] for w in facts["beta_windows"]] == [w.beta for w in decay.windows] and facts["n_break"]
