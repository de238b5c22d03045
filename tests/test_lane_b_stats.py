"""
The JSON of a corpus: complete whatever was refused, alpha_D with both errors in it; the command over tokens, texts and
datasets; real text where it is there.

python -m pytest tests/test_lane_b_stats.py -v
"""

import gzip
import json
import math
import struct

import matplotlib.pyplot as plt
import numpy as np
import pytest
from lane_b_case import SignOfGaussian, correlation_curve, draw, source_of, zipf
from tiny_base import make_tiny_base

from nanochat.lab.horizon import plot
from nanochat.lab.horizon.decay import fit_decay
from nanochat.lab.horizon.entropy import EntropyCurve, GammaFit
from nanochat.lab.horizon.source import Refusal
from nanochat.lab.horizon.stats import KEYS, Gamma, Options, collect
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer
from scripts import lane_b_stats

SPECIFIED = """beta beta_ci95 beta_windows beta_short beta_long n_break curve gamma gamma_ci95 gamma_source h_curve_nats h_inf_nats
    h_inf_identified n_star_tokens n_star_censored alpha_d alpha_d_ci95 num_tokens num_docs bytes_per_token vocab_size top_k top_k_mass
    tokenizer_id dataset_id seed elapsed_sec tokens_per_sec warnings schema_version""".split()
LOSSES = EntropyCurve("ngram", np.arange(4), np.array([6.0, 5.0, 4.5, 4.3]), np.full(4, 0.01), np.array([6.0, 4.8, np.nan, np.nan]),
                      np.array([np.nan, 0.4, 0.3, np.nan]))
FOUND = GammaFit(0.3, (0.24, 0.36), 0.0, False, (1, 3), ("gamma_window_sensitive",))
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
    beta, half = facts["beta"], (facts["beta_ci95"][1] - facts["beta_ci95"][0]) / 2
    assert facts["alpha_d"] == pytest.approx(0.3 / (2 * beta))
    factor = math.exp(math.hypot(0.06 / 0.3, half / beta))
    assert facts["alpha_d_ci95"] == pytest.approx([facts["alpha_d"] / factor, facts["alpha_d"] * factor])
    rng = np.random.default_rng(0)  # the same by sampling: both positive, so lognormal of the same relative spread
    draws = (0.3 * np.exp(0.2 / 1.96 * rng.normal(size=200_000))) / (2 * beta * np.exp(half / beta / 1.96 * rng.normal(size=200_000)))
    assert np.quantile(draws, (0.025, 0.975)) == pytest.approx(facts["alpha_d_ci95"], rel=0.01)


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
    facts = collect(source_of(iid(), vocab_size=1024), Options(max_lag=4), given(curve=Refusal("gamma_unavailable", "")))
    assert facts["error"]["code"] == "no_signal" and facts["warnings"] == ["gamma_unavailable"]


def test_without_gamma_there_is_beta_and_no_error(tokens):
    facts = collect(source_of(tokens, vocab_size=1024), Options(max_lag=64, max_seq_len=16))
    assert facts["beta"] > 0 and facts["alpha_d"] is facts["gamma_source"] is facts["error"] is None
    assert facts["beta_window"]["hi"] == 6 and facts["warnings"].count("horizon_exceeds_context") == 1


def test_gamma_reads_the_same_documents():
    documents, seen = np.split(iid(), range(400, 220_000, 400)), []
    gamma = Gamma("ngram", lambda source: seen.append((source.documents, [*source.read()])) or LOSSES, lambda curve: FOUND)
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
# The command

def stats_of(tmp_path, *argv):
    """(exit code, JSON or None)"""
    path = tmp_path / "stats.json"
    path.unlink(missing_ok=True)
    code = lane_b_stats.main([*map(str, argv), f"--output-json={path}"])
    return code, json.loads(path.read_text()) if path.exists() else None


def test_tokens_of_a_file_with_picture(tokens, tmp_path, capsys):
    np.save(tmp_path / "x.npy", tokens.astype(np.uint16))
    where, picture = f"--tokens={tmp_path / 'x.npy'}", f"--plot={tmp_path / 'x.png'}"
    code, facts = stats_of(tmp_path, where, "--gamma-source=none", "--max-lag=64", picture)
    assert code == 0 and facts["beta"] == fit_decay(correlation_curve(source_of(tokens, vocab_size=1024), max_lag=64)).beta
    assert facts["vocab_size"] == tokens.max() + 1 and (tmp_path / "x.png").exists()
    out = capsys.readouterr().out
    assert "lag 64 of 64" in out and f"beta {facts['beta']:.3f}, 95 %" in out and "headline" in out
    assert "warning: broken_power_law: two slopes" in out


def test_a_refusal_is_exit_2_with_its_code_and_the_json(tokens, tmp_path, capsys):
    np.save(tmp_path / "x.npy", tokens)
    where = f"--tokens={tmp_path / 'x.npy'}"
    code, facts = stats_of(tmp_path, where, "--gamma-source=none", "--vocab-size=1000")
    assert code == 2 and facts["error"]["code"] == "ids_out_of_range" and "ids_out_of_range" in capsys.readouterr().err
    code, facts = stats_of(tmp_path, where, "--gamma-source=none", "--max-tokens=150000")
    assert code == 2 and facts["error"]["code"] == "corpus_too_short" and facts["num_tokens"] == 150_000


@pytest.mark.parametrize("argv, message", [
    (["--fit-window=32:1"], "LO:HI"), (["--bootstrap=5"], "--bootstrap=5"), (["--workers=0"], "--workers=0"),
    (["--blocks=2"], "--blocks=2"), (["--gamma-source=positional"], "--model-tag"),
    (["--model-tag=d2", "--gamma-source=ngram"], "positional"),
    (["--centering=document"], "one stream"), (["--model-tag=d2"], "same corpus")])
def test_impossible_options_are_named(tmp_path, capsys, argv, message):
    np.save(tmp_path / "x.npy", np.zeros(10, int))
    try:
        code = lane_b_stats.main([f"--tokens={tmp_path / 'x.npy'}", *argv])
    except SystemExit as e:
        code = e.code
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("array", [np.zeros((3, 3), int), np.zeros(3)])
def test_a_file_of_something_else_is_named(tmp_path, capsys, array):
    np.save(tmp_path / "x.npy", array)
    assert lane_b_stats.main([f"--tokens={tmp_path / 'x.npy'}"]) == 2 and "expected integers in one dimension" in capsys.readouterr().err


def test_an_empty_file_and_one_of_several_arrays_are_named(tmp_path, capsys):
    (tmp_path / "x.npy").touch()
    assert lane_b_stats.main([f"--tokens={tmp_path / 'x.npy'}"]) == 2 and "is empty" in capsys.readouterr().err
    np.savez(tmp_path / "x.npz", a=np.zeros(3, int))
    assert lane_b_stats.main([f"--tokens={tmp_path / 'x.npz'}"]) == 2 and "several arrays" in capsys.readouterr().err


@pytest.fixture
def base(base_dir):
    return make_tiny_base(base_dir, sequence_len=16)


def test_dataset_is_read_by_documents_without_bos(base, tmp_path):
    from nanochat.dataset import get_dataset_id, iter_texts
    rows = {split: get_tokenizer().encode(list(iter_texts(split))) for split in ("train", "val")}
    for split in rows:
        code, facts = stats_of(tmp_path, f"--split={split}", "--gamma-source=none")
        assert code == 2 and facts["error"]["code"] == "corpus_too_short"
        assert (facts["num_docs"], facts["num_tokens"]) == (len(rows[split]), sum(map(len, rows[split])))
    size = sum(len(text.encode()) for text in iter_texts("val"))
    assert facts["bytes_per_token"] == pytest.approx(size / facts["num_tokens"])
    assert facts["dataset_id"] == get_dataset_id() and len(facts["tokenizer_id"]) == 64 and facts["vocab_size"] == 320


def test_a_text_is_a_stream_and_jsonl_has_documents(base, tmp_path, capsys):
    texts = ["the lantern <unk> of <unk> house", "hung over <|endoftext|> <unk>"]
    (tmp_path / "x.txt").write_text("\n\n".join(texts))
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as f:
        f.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    _, facts = stats_of(tmp_path, f"--text={tmp_path / 'x.txt'}", "--gamma-source=none")
    assert facts["num_docs"] is None and facts["num_tokens"] == len(get_tokenizer().encode("\n\n".join(texts)))
    assert facts["dataset_id"] is None and facts["warnings"] == ["split_special_token"]
    assert "into ordinary ones: <unk> <|endoftext|>" in capsys.readouterr().out
    _, facts = stats_of(tmp_path, f"--text={tmp_path / 'x.jsonl.gz'}", "--gamma-source=none")
    assert facts["num_docs"] == 2
    (tmp_path / "y.txt").write_text("the lantern of house 7 hung over <b>the</b> harbour " * 10)
    assert stats_of(tmp_path, f"--text={tmp_path / 'y.txt'}", "--gamma-source=none")[1]["warnings"] == []
    assert stats_of(tmp_path, f"--text={tmp_path}")[0] == 2 and "expected a file" in capsys.readouterr().err


def test_a_special_token_that_is_rare_is_no_warning(base):
    texts = lane_b_stats.Texts(get_tokenizer(), lambda: ["<s> a", "b"])
    assert sum(map(len, texts.arrays())) > 2 and texts.special == {"<s>": 1}
    assert texts.split_special(20_000) == [] and texts.split_special(5_000) == ["<s>"]


def test_positional_gamma_names_the_command_or_reads_its_file(base, tmp_path, capsys):
    code, facts = stats_of(tmp_path, "--model-tag=d2")
    assert code == 2 and facts["warnings"] == ["gamma_unavailable"] and facts["gamma_source"] == "positional"
    path = lane_b_stats.positions_path("d2")
    assert f"scripts.base_loss --model-tag=d2 --split=val --per-position={path}" in capsys.readouterr().out
    ids = {key: facts[key] for key in ("tokenizer_id", "dataset_id")}
    path.parent.mkdir()
    two = dict(schema_version=1, contexts=[0, 1], loss_nats=[6, 5], se_nats=[0.1, 0.1], block_loss_nats=[[6, 5]])
    path.write_text(json.dumps(two | ids))
    code, facts = stats_of(tmp_path, "--model-tag=d2")
    assert [row["loss"] for row in facts["h_curve_nats"]] == [6, 5] and facts["warnings"] == ["gamma_unavailable"]  # two contexts
    path.write_text(json.dumps(two))
    assert lane_b_stats.main(["--model-tag=d2"]) == 2 and "tokenizer_id None" in capsys.readouterr().err
    path.write_text(json.dumps(two | ids).replace(ids["tokenizer_id"], "another"))
    assert lane_b_stats.main(["--model-tag=d2"]) == 2 and "tokenizer_id another" in capsys.readouterr().err


def test_ngram_is_the_source_without_a_model(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(lane_b_stats, "ngram_curve", lambda source, seed, say: LOSSES)
    monkeypatch.setattr(lane_b_stats, "fit_gamma", lambda curve, seed: FOUND)
    np.save(tmp_path / "x.npy", tokens)
    code, facts = stats_of(tmp_path, f"--tokens={tmp_path / 'x.npy'}", "--max-lag=64")
    assert code == 0 and facts["gamma_source"] == "ngram" and facts["alpha_d"] == pytest.approx(0.3 / 2 / facts["beta"])


# -----------------------------------------------------------------------------
# Real text

def beta_to_32(arrays, documents):
    facts = collect(source_of(*arrays, vocab_size=8192, documents=documents), Options())
    return facts, next(w["beta"] for w in facts["beta_windows"] if w["hi"] == 32)


@pytest.mark.slow
def test_beta_of_wikitext(data_dir):
    text = "".join((data_dir / f"wikitext2_{part}.txt").read_text() for part in ("valid", "test")).replace("<unk>", "\N{WHITE SQUARE}")
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
