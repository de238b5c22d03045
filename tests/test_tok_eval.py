"""
scripts.tok_eval: the table, with and without the published vocabularies. Run:

    python -m pytest tests/test_tok_eval.py
"""

import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import regex
import requests
import tiktoken

from nanochat import common
from nanochat.tokenizer import SPLIT_PATTERN, RustBPETokenizer
from scripts import tok_eval

TEXT = "the lantern over the old harbour; it's 北風 🌊\n" * 20


@pytest.fixture
def tokenizer():
    return RustBPETokenizer.train_from_iterator([TEXT], 290)


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


def offline(*args, **kwargs):
    raise requests.ConnectionError("Name or service not known")


@pytest.fixture
def no_vocabularies(monkeypatch):
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken's word for no cache
    monkeypatch.setattr(requests, "get", offline)


def test_tok_eval_offline_says_so_once_and_goes_on(base_dir, tokenizer, capsys, no_vocabularies):
    write_shards(base_dir, [TEXT])
    tokenizer.save(base_dir / "tokenizer")
    tok_eval.main([])
    out = capsys.readouterr().out
    assert out.count("Left out: GPT-2 and GPT-4, which tiktoken could not download (ConnectionError)") == 1
    assert "\x1b" not in out
    row = next(line for line in out.splitlines() if line.startswith("data-val")).split()
    tokens = len(tokenizer.encode("held out lantern"))
    assert row == ["data-val", "16", str(tokens), f"{16 / tokens:.2f}"]


def test_hanging_download_is_given_up(no_vocabularies, monkeypatch, capsys):
    release = threading.Event()

    def hang(*args, **kwargs):
        release.wait(10)
        offline()
    monkeypatch.setattr(requests, "get", hang)
    assert tok_eval.load_published(timeout_sec=0.05) == {}
    assert "no answer in 0.05 s" in capsys.readouterr().out
    release.set()


def test_tok_eval_compares_with_what_could_be_had(base_dir, tokenizer, capsys, monkeypatch):
    write_shards(base_dir, [TEXT])
    tokenizer.save(base_dir / "tokenizer")
    ranks = {bytes([b]): b for b in range(256)}
    plain = tiktoken.Encoding("plain", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks,
                              special_tokens={"<|endoftext|>": 256})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: plain if name == "gpt2" else offline())
    tok_eval.main([])
    out = capsys.readouterr().out
    assert "Vocab sizes:\nGPT-2: 257\nOurs: 290\n" in out and "Left out: GPT-4," in out
    row = next(line for line in out.splitlines() if line.startswith("data-val")).split()
    tokens = len(tokenizer.encode("held out lantern"))  # the baseline has one token a byte
    assert row == ["data-val", "16", "16", "1.00", str(tokens), f"{16 / tokens:.2f}", f"{(16 - tokens) / 16:+.1%}",
                   "Ours"]


def test_table_has_colors_only_when_asked():
    texts, ours, theirs = {"a": "xxxx", "b": "xxxx"}, {"a": 1, "b": 2}, {"a": 2, "b": 1}
    plain = tok_eval.format_table(texts, ours, "GPT-2", theirs)
    assert "\x1b" not in plain
    colored = tok_eval.format_table(texts, ours, "GPT-2", theirs, color=True)
    assert colored.count("\x1b[92m") == colored.count("\x1b[91m") == 1
    assert regex.sub(r"\x1b\[\d+m", "", colored) == plain


def test_tok_eval_without_tokenizer_names_the_command(base_dir, capsys):
    with pytest.raises(SystemExit) as stop:
        tok_eval.main([])
    assert stop.value.code == 2 and "python -m scripts.tok_train" in capsys.readouterr().err
