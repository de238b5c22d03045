"""
python -m pytest tests/test_blank_runs.py -q

Runs of blanks that would make the libraries panic: the tokens are those of the whole text.
"""

import random
import re

import pytest
import regex

from nanochat import blank_runs
from nanochat.tokenizer import SPLIT_PATTERN, RustBPETokenizer

TEXT = "low lower  lowest    over\n\n the   hill\t\t\tand 12 345  'll  so \u3000\u3000 it -- goes" * 4
# The characters that the parts of the split pattern tell apart, and those that Python and Rust take for blanks or not
ALPHABET = ["  ", "   ", " ", "\t", "\u3000", "\xa0", "\x85", "\x1c", "\u200b", "\n", "\r", "x", "é", "-", "7", "'s",
            "天"]
BLANKS = " \t\u3000\xa0\x85"


@pytest.fixture(scope="module")
def tokenizer():
    return RustBPETokenizer.train_from_iterator([TEXT], 300)


@pytest.fixture
def short(monkeypatch):
    """Runs of more than three blanks count as long."""
    monkeypatch.setattr(blank_runs, "LONGEST", 3)
    pattern = blank_runs._RUN.pattern.replace("900001", "4")
    monkeypatch.setattr(blank_runs, "_RUN", re.compile(pattern))


def random_texts(n):
    rng = random.Random(0)
    return ["".join(rng.choices(ALPHABET, weights=[4] * 5 + [1] * 12, k=rng.randrange(30))) for _ in range(n)]


def test_cut_texts_have_the_tokens_of_whole_texts(tokenizer, short):
    texts = random_texts(3000)
    whole = tokenizer.enc.encode_ordinary_batch(texts)
    assert tokenizer.encode(texts) == whole and [tokenizer.encode(text) for text in texts] == whole
    assert sum(bool(blank_runs.cut(text)) for text in texts) > 1000


def test_parts_are_whole_pieces_of_the_split_pattern(short):
    for text in random_texts(2000):
        if parts := blank_runs.cut(text):
            assert "".join(part for part, _ in parts) == text
            pieces = [[part] if is_piece else regex.findall(SPLIT_PATTERN, part) for part, is_piece in parts]
            assert sum(pieces, []) == regex.findall(SPLIT_PATTERN, text)


def test_the_trainer_counts_the_same_pieces(short):
    for text in random_texts(500):
        parts = list(blank_runs.for_training([text]))
        assert "".join(parts) == text and (len(parts) == 1 or blank_runs.cut(text))
        pieces = [p for part in parts for p in regex.findall(SPLIT_PATTERN, part)]
        assert max((len(p) for p in pieces if len(p) > 3 and not p.strip(BLANKS)), default=0) == 0


@pytest.mark.parametrize("blank", [" ", "\t", "\u3000"])
@pytest.mark.parametrize("rest", ["x", "", "\n", "\nx"])
def test_a_million_blanks_neither_panic_nor_get_lost(tokenizer, blank, rest):
    text = "low" + blank * 1_200_000 + rest
    ids = tokenizer.encode(text, prepend="<|bos|>")
    assert tokenizer.decode(ids[1:]) == text and tokenizer.encode(["low", text])[1] == ids[1:]


def test_a_tokenizer_trains_on_two_million_spaces():
    texts = [TEXT, "low" + " " * 2_000_000 + "lower"]
    tokenizer = RustBPETokenizer.train_from_iterator(iter(texts), 275)
    assert "  " in [tokenizer.id_to_token(i) for i in range(256, 266)]


def test_another_pattern_is_refused_in_one_line(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer.enc, "_pat_str", r"\S+|\s+")
    with pytest.raises(ValueError, match="more than 900,000 blanks in a row, and the split pattern of rustbpe cannot"):
        tokenizer.encode(" " * 1_000_001 + "x")
