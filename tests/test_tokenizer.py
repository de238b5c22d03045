"""
Tokenizer: ids, text of ids, conversations. Its files: tests/test_tokenizer_files.py. Run:

    python -m pytest tests/test_tokenizer.py

Golden figures were printed by upstream's RustBPETokenizer (karpathy/nanochat 92d63d4), trained on the same text.
"""

import json
import random

import pytest
import regex
import torch

from nanochat import common, tokenizer_files
from nanochat.tokenizer import (
    MIN_VOCAB_SIZE,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    RustBPETokenizer,
    StreamDecoder,
    crop_texts,
    get_token_bytes,
)

WORDS = ("the lantern over the old harbour swings 12 345 times; it's 北風 and naïve 🌊 waves\n\n\tdef f(x): "
         "return x+1\r\n").split(" ")
TEXT = " ".join(WORDS[(7 * i + i * i // 5) % len(WORDS)] for i in range(600))
PROBE = "The lantern swings 1234 times: it's over!\r\n\t北風🌊  naïve f(x)"
CHAT = {"messages": [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": [{"type": "text", "text": "so "}, {"type": "python", "text": "2+2"},
                                      {"type": "python_output", "text": "4"}, {"type": "text", "text": "4"}]},
    {"role": "user", "content": "the harbour"},
    {"role": "assistant", "content": "old"},
]}
GOLDEN_ID = "ca8d7f91c748a22a33418ff6cb641e83d32ed681f2b8002d11dbcdbf66d15282"  # of the content of upstream's pickle
GOLDEN_PROBE = [311, 84, 256, 308, 32, 115, 119, 105, 110, 103, 115, 32, 281, 51, 52, 32, 116, 105, 109, 101, 115, 58,
                274, 273, 278, 260, 114, 33, 13, 10, 9, 229, 262, 264, 240, 285, 32, 294, 32, 102, 40, 120, 41, 5]
GOLDEN_CHAT = [311, 312, 66, 101, 32, 98, 114, 105, 283, 46, 277, 50, 43, 50, 63, 313, 314, 115, 111, 32, 316, 50, 43,
               50, 317, 318, 52, 319, 52, 315, 312, 257, 309, 313, 314, 111, 306, 315]
GOLDEN_MASK = [0] * 17 + [1] * 8 + [0] * 3 + [1] * 2 + [0] * 5 + [1] * 3


def train(vocab_size=320):
    return RustBPETokenizer.train_from_iterator(iter([TEXT[:1000], TEXT[1000:], "lantern light, harbour light"]),
                                                vocab_size)


@pytest.fixture(scope="module")
def tokenizer():
    return train()


def random_texts(n, seed=0):
    """Text of every plane but the surrogates, mixed with words that the tokenizer has merges for."""
    rng = random.Random(seed)
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return ["".join(rng.choice(WORDS) if rng.random() < 0.4 else chr(rng.randrange(*rng.choice(planes)))
                    for _ in range(rng.randrange(40))) for _ in range(n)]


# -----------------------------------------------------------------------------
# Ids

def test_merges_by_hand():
    # "low", " lower", " lowest": (l o) and (o w) occur 3 times each and the smaller pair goes first: lo, then
    # (lo w) = low. (space low) and (low e) are left with 2 each, and 32 < 101.
    tokenizer = RustBPETokenizer.train_from_iterator(["low lower lowest"], 259 + len(SPECIAL_TOKENS))
    assert [tokenizer.id_to_token(i) for i in (256, 257, 258)] == ["lo", "low", " low"]
    assert tokenizer.encode("slow lowest") == [115, 257, 258, 101, 115, 116]


def test_ids_and_identity_are_upstreams(tokenizer):
    assert tokenizer.encode(PROBE, prepend="<|bos|>", append=5) == GOLDEN_PROBE
    assert common.hash_json(tokenizer_files.encoding_content(tokenizer.enc)) == GOLDEN_ID


def test_special_tokens_follow_the_merges(tokenizer):
    assert tokenizer.get_vocab_size() == 320 and tokenizer.get_bos_token_id() == 311
    assert [tokenizer.encode_special(name) for name in SPECIAL_TOKENS] == list(range(311, 320))
    assert tokenizer.get_special_tokens() == set(SPECIAL_TOKENS)


def test_special_names_in_text_are_text(tokenizer):
    assert max(tokenizer.encode("<|bos|> <|user_end|>")) < 311


def naive_encode(tokenizer, text):
    """Split, then merge the adjacent pair whose bytes have the lowest rank until no pair has a rank."""
    ids = []
    for piece in regex.findall(SPLIT_PATTERN, text):
        parts = [bytes([b]) for b in piece.encode("utf-8")]
        ranks = tokenizer.enc._mergeable_ranks
        while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
                        if a + b in ranks]:
            _, i = min(pairs)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def test_encode_equals_naive_bpe(tokenizer):
    for text in [TEXT[:600], PROBE, *random_texts(100)]:
        assert tokenizer.encode(text) == naive_encode(tokenizer, text)


def test_random_unicode_round_trips(tokenizer):
    texts = random_texts(300, seed=1)
    assert [tokenizer.decode(ids) for ids in tokenizer(texts)] == texts


def test_batch_rows_equal_single_texts(tokenizer):
    texts = ["", "the old harbour", PROBE]
    rows = tokenizer.encode(texts, prepend="<|bos|>", append="<|user_end|>", num_threads=3)
    assert rows == [[311, *tokenizer.encode(text), 313] for text in texts]
    with pytest.raises(ValueError, match="int: expected a string or a list"):
        tokenizer.encode(5)


def test_token_bytes_sum_to_the_utf8_length(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    token_bytes = get_token_bytes(base_dir=tmp_path)
    assert token_bytes.dtype == torch.int32 and token_bytes.shape == (320,)
    assert token_bytes[311:].tolist() == [0] * 9
    for text in random_texts(50, seed=2):
        assert token_bytes[torch.tensor(tokenizer.encode(text, prepend=311))].sum() == len(text.encode("utf-8"))


def test_crop_cuts_documents_and_stops_after_max_chars():
    assert list(crop_texts(["abcdef", "gh", "ijk", "never"], max_chars=7, doc_cap=3)) == ["abc", "gh", "ijk"]
    # upstream's rule too
    assert list(crop_texts(["abc", "def", "x", "never"], max_chars=6, doc_cap=3)) == ["abc", "def", "x"]


# -----------------------------------------------------------------------------
# One id at a time

def test_stream_decoder_never_emits_half_a_character(tokenizer):
    plain = RustBPETokenizer.train_from_iterator(["x"], MIN_VOCAB_SIZE)  # bytes only: every emoji is four tokens
    stream = StreamDecoder(plain)
    assert [stream.push(i) for i in plain.encode("a🌊é")] == ["a", "", "", "", "🌊", "", "é"]
    for text in random_texts(50, seed=3):
        stream = StreamDecoder(tokenizer)
        pieces = [stream.push(i) for i in tokenizer.encode(text)]
        assert "".join(pieces) == text and stream.flush() == ""


def test_stream_decoder_agrees_with_decode_on_any_ids(tokenizer):
    rng = random.Random(4)
    stream = StreamDecoder(tokenizer)
    for _ in range(200):
        ids = [rng.randrange(320) for _ in range(30)]
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


# -----------------------------------------------------------------------------
# Conversations

def test_conversation_ids_and_mask_are_upstreams(tokenizer):
    before = json.dumps(CHAT)
    assert tokenizer.render_conversation(CHAT) == (GOLDEN_CHAT, GOLDEN_MASK)
    assert tokenizer.render_conversation(CHAT, max_tokens=20) == (GOLDEN_CHAT[:20], GOLDEN_MASK[:20])
    assert tokenizer.render_for_completion(CHAT) == GOLDEN_CHAT[:35]
    assert json.dumps(CHAT) == before  # the caller's messages are left alone


def test_visualization_is_upstreams(tokenizer):
    shown = tokenizer.visualize_tokenization([311, 66], [0, 1], with_token_id=True)
    assert shown == "\x1b[91m<|bos|>\x1b[0m|\x1b[90m(311)\x1b[0m|\x1b[92mB\x1b[0m|\x1b[90m(66)\x1b[0m"


@pytest.mark.parametrize("messages, complaint", [
    ([], "no messages"),
    ([("system", "x")], "followed by a user"),
    ([("user", "x"), ("user", "y")], "message 1 is from 'user': expected 'assistant'"),
    ([("user", ["x"])], "from the user is a list: expected a string"),
    ([("user", "x"), ("assistant", 5)], "a int: expected a string or a list of parts"),
    ([("user", "x"), ("assistant", [{"type": "image", "text": "y"}])], "unknown part type 'image'"),
])
def test_bad_conversation_is_refused(tokenizer, messages, complaint):
    with pytest.raises(ValueError, match=complaint):
        tokenizer.render_conversation({"messages": [{"role": r, "content": c} for r, c in messages]})


def test_completion_needs_a_last_message_of_the_assistant(tokenizer):
    with pytest.raises(ValueError, match="must be from the assistant"):
        tokenizer.render_for_completion({"messages": CHAT["messages"][:2]})
