"""
The files of a tokenizer: round trips, refusals of foreign pickles, and the rules of replacement. Run:

    python -m pytest tests/test_tokenizer_files.py
"""

import json
import os
import pickle
import subprocess
import sys

import pytest
import tiktoken
import torch

from nanochat import common, tokenizer_files
from nanochat.tokenizer import (
    MIN_VOCAB_SIZE,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    RustBPETokenizer,
    get_token_bytes,
    get_tokenizer,
    get_tokenizer_id,
    import_tokenizer,
)

PROBE = "The lantern swings 1234 times: it's over!\r\n\t北風🌊  naïve f(x)"
TEXT = "the lantern over the old harbour swings 12 times; it's 北風 and naïve 🌊 waves\n\n\tdef f(x): return x+1\r\n" * 9


def train(vocab_size=300):
    return RustBPETokenizer.train_from_iterator([TEXT], vocab_size)


@pytest.fixture(scope="module")
def tokenizer():
    return train()


@pytest.fixture(scope="module")
def tokenizer_id(tokenizer):
    return common.hash_json(tokenizer_files.encoding_content(tokenizer.enc))


@pytest.fixture
def base_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return common.get_base_dir()


def write_checkpoint(base_dir, meta, tag="d4"):
    folder = base_dir / "base_checkpoints" / tag
    folder.mkdir(parents=True)
    (folder / "meta_000060.json").write_text(json.dumps(meta))


# -----------------------------------------------------------------------------
# Files

def test_saved_tokenizer_loads_here_and_in_upstream(tokenizer, tokenizer_id, base_dir):
    tokenizer.save(base_dir / "tokenizer")
    ours = get_tokenizer()
    with open(base_dir / "tokenizer" / "tokenizer.pkl", "rb") as f:
        upstreams = RustBPETokenizer(pickle.load(f), "<|bos|>")  # this is how upstream loads it
    assert upstreams.enc.name == "rustbpe"
    for text in (TEXT, PROBE):
        assert ours.encode(text) == upstreams.encode(text) == tokenizer.encode(text)
    assert torch.equal(torch.load(base_dir / "tokenizer" / "token_bytes.pt", weights_only=True), get_token_bytes())
    assert get_tokenizer_id() == get_tokenizer_id(base_dir) == tokenizer_id


def test_identity_depends_on_the_content_alone(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "a" / "tokenizer")
    train().save(tmp_path / "b" / "tokenizer")
    train(290).save(tmp_path / "c" / "tokenizer")
    a, b, c = (get_tokenizer_id(tmp_path / name) for name in "abc")
    assert a == b != c


def test_identity_needs_no_torch(tokenizer, tokenizer_id, base_dir):
    tokenizer.save(base_dir / "tokenizer")
    code = ("import sys, nanochat.tokenizer as t; print(t.get_tokenizer_id()); "
            "assert not {'torch', 'pyarrow'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=common.REPO_ROOT)
    assert done.stdout.strip() == tokenizer_id, done.stderr


def test_json_is_renamed_last(tokenizer, base_dir, monkeypatch):
    names, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (names.append(b.name), replace(a, b)))
    tokenizer.save(base_dir / "tokenizer")
    assert len(names) == 3 and names[-1] == "tokenizer.json"


def test_full_disk_leaves_the_old_tokenizer_whole(tokenizer, base_dir, monkeypatch):
    tokenizer.save(base_dir / "tokenizer")
    before = {p.name: p.read_bytes() for p in (base_dir / "tokenizer").iterdir()}

    def no_space(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(OSError, match="No space"):
        train(290).save(base_dir / "tokenizer")
    assert {p.name: p.read_bytes() for p in (base_dir / "tokenizer").iterdir()} == before


def test_missing_tokenizer_names_the_command(base_dir):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*; make it: \S*python -m scripts\.tok_train"):
        get_tokenizer()


def test_foreign_pickle_is_not_loaded_but_named(tokenizer, base_dir):
    (base_dir / "tokenizer").mkdir()
    (base_dir / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(tokenizer.enc))
    for call in (get_tokenizer, get_tokenizer_id, get_token_bytes):
        with pytest.raises(FileNotFoundError, match=r"--import-pkl .*tokenizer\.pkl"):
            call()


@pytest.mark.parametrize("damage", [
    lambda text: text[:500],
    lambda text: text.replace("AQ==", "AQE="),
    lambda text: "[]",
    lambda text: "{}",
])
def test_damaged_json_is_named(tokenizer, tokenizer_id, base_dir, damage):
    tokenizer.save(base_dir / "tokenizer")
    path = base_dir / "tokenizer" / "tokenizer.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        get_tokenizer()
    import_tokenizer(path.with_name("tokenizer.pkl"))  # what the message advises
    assert get_tokenizer_id() == tokenizer_id


def test_json_of_another_version_is_named(tokenizer, base_dir):
    tokenizer.save(base_dir / "tokenizer")
    path = base_dir / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version 99: expected 1"):
        get_tokenizer()


def test_published_vocabulary_is_not_saved_as_ours(base_dir):
    ranks = {bytes([b]): b for b in range(256)}
    enc = tiktoken.Encoding("other", pat_str=".", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256})
    with pytest.raises(ValueError, match=r"<\|bos\|> among them"):
        RustBPETokenizer(enc, "<|endoftext|>").save(base_dir / "tokenizer")


# -----------------------------------------------------------------------------
# Import of upstream's pickle

def test_import_takes_over_upstreams_pickle(tokenizer, tokenizer_id, base_dir):
    path = base_dir / "tokenizer" / "tokenizer.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(tokenizer.enc))  # as upstream writes it, and where
    import_tokenizer(path)
    assert get_tokenizer_id() == tokenizer_id and get_tokenizer().encode(PROBE) == tokenizer.encode(PROBE)


class Shell:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def encoding_pickle(**changes):
    """The pickle of an Encoding whose state is changed; without a change it is a good one."""
    state = {"name": "rustbpe", "pat_str": SPLIT_PATTERN, "mergeable_ranks": {bytes([b]): b for b in range(256)},
             "special_tokens": {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)}, **changes}
    enc = tiktoken.Encoding("plain", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={})
    enc.__class__ = type("Encoding", (tiktoken.Encoding,),
                         {"__getstate__": lambda self: state, "__module__": "tiktoken.core"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken.core, "Encoding", type(enc))  # pickle checks that the name leads to the class
        return pickle.dumps(enc)


@pytest.mark.parametrize("function, name",
                         [(os.system, "system"), (eval, "builtins.eval"), (__import__, "builtins.__import__")])
@pytest.mark.parametrize("nested", [False, True])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, function, name, nested):
    marker = tmp_path / "was_run"
    command = {"system": f"touch {marker}", "builtins.eval": f"open({str(marker)!r}, 'w')"}.get(name, "antigravity")
    payload = Shell(function, command)
    (tmp_path / "bad.pkl").write_bytes(encoding_pickle(name=payload) if nested else pickle.dumps(payload))
    with pytest.raises(ValueError, match=rf"bad\.pkl: refused .*{name}; only tiktoken\.core\.Encoding is admitted"):
        import_tokenizer(tmp_path / "bad.pkl", tmp_path)
    assert not marker.exists() and not (tmp_path / "tokenizer").exists() and "antigravity" not in sys.modules


@pytest.mark.parametrize("content, complaint", [
    (b"", "refused"),
    (b"no pickle at all", "refused"),
    (pickle.dumps([1, 2]), "got list"),
    (encoding_pickle()[:400], "refused"),
    (encoding_pickle(pat_str=7), "expected a pattern"),
    (encoding_pickle(mergeable_ranks=[1]), "tables of tokens"),
    (encoding_pickle(mergeable_ranks={b"a": 0}), "all 256 single bytes"),
    (encoding_pickle(mergeable_ranks={bytes([b]): b * 2 for b in range(256)}), "ranks 0 to 255"),
    (encoding_pickle(special_tokens={"<|bos|>": 300}), "ids from 256 on"),
    (encoding_pickle(special_tokens={"<|endoftext|>": 256}), "among them"),
])
def test_pickle_of_something_else_is_refused(tmp_path, content, complaint):
    (tmp_path / "odd.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        import_tokenizer(tmp_path / "odd.pkl", tmp_path)


def test_good_pickle_made_the_same_way_is_imported(tmp_path):
    (tmp_path / "good.pkl").write_bytes(encoding_pickle())  # so that the refusals above are not of the test's making
    assert import_tokenizer(tmp_path / "good.pkl", tmp_path).get_vocab_size() == MIN_VOCAB_SIZE


def test_published_encoding_by_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: pytest.fail("went looking for a published vocabulary"))
    enc = tiktoken.Encoding("gpt2", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "gpt2", enc)  # then it pickles as its mere name
    (tmp_path / "gpt2.pkl").write_bytes(pickle.dumps(enc))
    with pytest.raises(ValueError, match="got gpt2"):
        import_tokenizer(tmp_path / "gpt2.pkl", tmp_path)


# -----------------------------------------------------------------------------
# Replacing a tokenizer

def test_tokenizer_of_a_checkpoint_is_not_replaced(tokenizer, tokenizer_id, base_dir):
    tokenizer.save(base_dir / "tokenizer")
    write_checkpoint(base_dir, {"step": 60, "tokenizer_id": tokenizer_id})
    with pytest.raises(ValueError, match=r"belongs to the checkpoint .*meta_000060\.json .*NANOCHAT_BASE_DIR"):
        train(290).save(base_dir / "tokenizer")
    assert get_tokenizer_id() == tokenizer_id
    tokenizer.save(base_dir / "tokenizer")  # the same one again is no replacement


def test_upstreams_checkpoint_names_no_tokenizer_and_protects_what_is_there(tokenizer, base_dir):
    tokenizer.save(base_dir / "tokenizer")
    write_checkpoint(base_dir, {"step": 60})
    with pytest.raises(ValueError, match="belongs to the checkpoint"):
        train(290).save(base_dir / "tokenizer")


def test_tokenizer_that_no_checkpoint_names_is_replaced(tokenizer, base_dir):
    tokenizer.save(base_dir / "tokenizer")
    write_checkpoint(base_dir, {"step": 60, "tokenizer_id": "of another tokenizer"})
    (base_dir / "base_checkpoints" / "d4" / "meta_000061.json").write_text('{"torn')
    train(290).save(base_dir / "tokenizer")
    assert get_tokenizer().get_vocab_size() == 290


def test_foreign_pickle_is_not_overwritten(tokenizer, base_dir):
    path = base_dir / "tokenizer" / "tokenizer.pkl"
    path.parent.mkdir()
    for content in (pickle.dumps(tokenizer.enc), pickle.dumps(["something else"])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not written here, and would be overwritten"):
            train(290).save(base_dir / "tokenizer")
        assert path.read_bytes() == content
