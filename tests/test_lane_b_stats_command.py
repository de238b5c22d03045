"""
The command scripts.lane_b_stats over tokens, texts and datasets: its result, its refusals, its sources of gamma.

python -m pytest tests/test_lane_b_stats_command.py -v
"""

import gzip
import json

import numpy as np
import pytest
from lane_b_case import FOUND, LOSSES, SignOfGaussian, correlation_curve, source_of
from tiny_base import make_tiny_base

from nanochat.lab.horizon.decay import fit_decay
from nanochat.tokenizer import get_tokenizer
from scripts import lane_b_stats


@pytest.fixture(scope="module")
def tokens():
    return SignOfGaussian(0.88).tokens(300_000, seed=0)


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
    assert (code == 0
            and facts["beta"] == fit_decay(correlation_curve(source_of(tokens, vocab_size=1024), max_lag=64)).beta)
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
    assert (lane_b_stats.main([f"--tokens={tmp_path / 'x.npy'}"]) == 2
            and "expected integers in one dimension" in capsys.readouterr().err)


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
    # the file has two contexts, too few for a fit
    assert [row["loss"] for row in facts["h_curve_nats"]] == [6, 5] and facts["warnings"] == ["gamma_unavailable"]
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
