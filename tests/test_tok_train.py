"""
scripts.tok_train: what it writes, what it prints, what it refuses. Run:

    python -m pytest tests/test_tok_train.py
"""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import regex

from nanochat import common
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer_id, train_tokenizer
from scripts import tok_train

TEXTS = ["the old harbour " * 40, "the lantern over the old harbour; it's 北風 🌊\n" * 20]


@pytest.fixture
def base_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return common.get_base_dir()


def write_shards(base_dir, texts):
    """A training shard with `texts`, and the validation shard that comes last."""
    folder = base_dir / "base_data_climbmix"
    folder.mkdir(parents=True)
    for name, column in (("shard_00000", texts), ("shard_00001", ["held out lantern"])):
        pq.write_table(pa.table({"text": pa.array(column, pa.string())}), folder / f"{name}.parquet")


def test_tok_train_writes_the_tokenizer(base_dir, capsys):
    write_shards(base_dir, TEXTS)
    tok_train.main(["--vocab_size", "300", "--max-chars=100000"])
    out = capsys.readouterr().out
    assert out.startswith("max_chars: 100,000\ndoc_cap: 10,000\nvocab_size: 300\nTraining time: ")
    assert "Saved tokenizer encoding to " in out and "Saved token_bytes to " in out
    assert f"Saved tokenizer {get_tokenizer_id()[:12]} (300 tokens)" in out


def test_train_tokenizer_uses_the_training_split_only(base_dir):
    write_shards(base_dir, TEXTS)
    tokenizer = train_tokenizer(base_dir, 300, max_chars=10 ** 9, doc_cap=10 ** 4)
    assert tokenizer.enc._mergeable_ranks == RustBPETokenizer.train_from_iterator(TEXTS, 300).enc._mergeable_ranks


@pytest.mark.parametrize("texts, argv, complaint", [
    (TEXTS, ["--vocab-size=264"], "--vocab-size=264: expected at least 265"),
    (TEXTS, ["--vocab-size=300", "--doc-cap=0"], "--doc-cap=0: expected a positive"),
    (["abab cdcd"], ["--vocab-size=300"], r"yields only \d+ tokens; ask for --vocab-size=\d+ or less"),
    (["", ""], ["--vocab-size=300"], "hold no text"),
    (None, ["--vocab-size=300"], "nanochat.dataset"),
    (TEXTS, ["--import-pkl=nowhere.pkl"], "No such file.*nowhere.pkl"),
])
def test_tok_train_user_error_is_one_line_and_status_2(base_dir, capsys, texts, argv, complaint):
    if texts is not None:
        write_shards(base_dir, texts)
    with pytest.raises(SystemExit) as stop:
        tok_train.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("tok_train: error: ") and error.count("\n") == 1
    assert regex.search(complaint, error), error
    assert not (base_dir / "tokenizer" / "tokenizer.json").exists()


def test_tok_train_does_not_replace_the_tokenizer_of_a_checkpoint(base_dir, capsys):
    write_shards(base_dir, TEXTS)
    tok_train.main(["--vocab-size=300"])
    checkpoints = base_dir / "base_checkpoints" / "d4"
    checkpoints.mkdir(parents=True)
    (checkpoints / "meta_000060.json").write_text(json.dumps({"tokenizer_id": get_tokenizer_id()}))
    tok_train.main(["--vocab-size=300"])  # gives the same one: nothing is replaced
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        tok_train.main(["--vocab-size=290"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("tok_train: error: ") and error.count("\n") == 1
    assert str(checkpoints / "meta_000060.json") in error and "NANOCHAT_BASE_DIR" in error


def test_tok_train_imports_a_pickle(base_dir, capsys):
    tokenizer = RustBPETokenizer.train_from_iterator(TEXTS, 300)
    (base_dir / "upstreams.pkl").write_bytes(pickle.dumps(tokenizer.enc))
    tok_train.main([f"--import_pkl={base_dir / 'upstreams.pkl'}"])
    assert f"Saved tokenizer {get_tokenizer_id()[:12]} (300 tokens)" in capsys.readouterr().out
