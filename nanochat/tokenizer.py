"""
Byte-level BPE in the style of GPT-4: rustbpe trains it, tiktoken runs it.

Split pattern, special tokens and ids are upstream's (karpathy/nanochat, nanochat/tokenizer.py), so equal text gives
equal ids. The files are ours, see nanochat/tokenizer_files.py. torch is imported only where a tensor is written or
returned.

>>> tokenizer = RustBPETokenizer.train_from_iterator(["low lower lowest"], vocab_size=268)
>>> tokenizer.encode("lowest", prepend="<|bos|>"), tokenizer.id_to_token(257)
([259, 257, 101, 115, 116], 'low')
"""

import codecs
import logging
import time
from pathlib import Path

import tiktoken

from nanochat import blank_runs
from nanochat import tokenizer_files as files
from nanochat.common import get_base_dir, to_paste
from nanochat.machine import usable_cores
from nanochat.tokenizer_files import BOS

# All but the first are used only to render conversations
SPECIAL_TOKENS = [BOS, "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>",
                  "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"]
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)

# GPT-4's pattern but for \p{N}{1,2}, where GPT-4 has {1,3}. With {1,3} small vocabularies would spend too many tokens
# on numbers. Upstream measured 2 as the best of 1, 2 and 3 at a vocabulary of 32K.
SPLIT_PATTERN = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
                 r"|\s*[\r\n]|\s+(?!\S)|\s+")

# Threads of a batch encode. On 2 cores and documents of 1,000 characters, 8 threads took twice the CPU time of 1 and
# were no faster: passing a document to a thread takes long beside tiktoken's work on it.
NUM_THREADS = min(usable_cores(), 4)

# Part of an assistant message -> (token before it, token after it, 1 if the model learns to write it)
ASSISTANT_PARTS = {"text": (None, None, 1), "python": ("<|python_start|>", "<|python_end|>", 1),
                   "python_output": ("<|output_start|>", "<|output_end|>", 0)}


class RustBPETokenizer:
    """Upstream's interface over a tiktoken.Encoding."""

    def __init__(self, enc: tiktoken.Encoding, bos_token: str):
        self.enc = enc
        self.bos_token_id = self.encode_special(bos_token)

    @classmethod
    def train_from_iterator(cls, text_iterator, vocab_size: int):
        """Train on an iterator of strings; the result does not depend on the number of threads.

        vocab_size counts the special tokens. Text with too few pairs to merge gives a smaller vocabulary.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(f"--vocab-size={vocab_size}: expected at least {MIN_VOCAB_SIZE} "
                             f"(256 bytes and {len(SPECIAL_TOKENS)} special tokens)")
        import rustbpe  # a trained tokenizer does without it
        logging.getLogger("rustbpe").setLevel(logging.WARNING)  # it logs each percent of its merges
        trainer = rustbpe.Tokenizer()
        texts = blank_runs.for_training(text_iterator)
        trainer.train_from_iterator(texts, vocab_size - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN)
        ranks = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])]
        special_tokens = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        return cls(files.build_encoding(SPLIT_PATTERN, ranks, special_tokens, "rustbpe"), BOS)

    @classmethod
    def from_directory(cls, tokenizer_dir):
        return cls(files.content_encoding(files.read_tokenizer_json(tokenizer_dir), tokenizer_dir), BOS)

    @classmethod
    def from_pretrained(cls, tiktoken_name: str):
        """A published vocabulary (tiktoken downloads it). Its <|endoftext|> takes the place of BOS."""
        return cls(tiktoken.get_encoding(tiktoken_name), "<|endoftext|>")

    def get_vocab_size(self) -> int:
        return self.enc.n_vocab

    def get_special_tokens(self) -> set[str]:
        return self.enc.special_tokens_set

    def id_to_token(self, id: int) -> str:
        return self.enc.decode([id])

    def encode_special(self, text: str) -> int:
        return self.enc.encode_single_token(text)

    def get_bos_token_id(self) -> int:
        return self.bos_token_id

    def encode(self, text, prepend=None, append=None, num_threads=NUM_THREADS):
        """str -> list of ids; list of str -> list of lists. Names of special tokens in the text are plain text.

        prepend, append: id or name of a special token, put around every row.
        """
        if isinstance(text, str):
            rows = [self._encode_cut(parts) if (parts := blank_runs.cut(text)) else self.enc.encode_ordinary(text)]
        elif isinstance(text, list):
            parts = {i: cut for i, one in enumerate(text) if (cut := blank_runs.cut(one))}
            rows = self.enc.encode_ordinary_batch(["" if i in parts else one for i, one in enumerate(text)]
                                                  if parts else text, num_threads=num_threads)
            for i, cut in parts.items():
                rows[i] = self._encode_cut(cut)
        else:
            raise ValueError(f"text of type {type(text).__name__}: expected a string or a list of strings")
        before, after = ([] if token is None else [token if isinstance(token, int) else self.encode_special(token)]
                         for token in (prepend, append))
        if before or after:
            rows = [before + row + after for row in rows]
        return rows[0] if isinstance(text, str) else rows

    def _encode_cut(self, parts) -> list[int]:
        """Ids of a text that blank_runs.cut took apart, equal to those of the whole text."""
        if self.enc._pat_str != SPLIT_PATTERN:
            raise ValueError(f"a text has more than {blank_runs.LONGEST:,} blanks in a row, and the split pattern of "
                             f"{self.enc.name} cannot take them in; shorten the run")
        return [token for part, is_piece in parts
                for token in (self.enc._encode_single_piece(part) if is_piece else self.enc.encode_ordinary(part))]

    def __call__(self, *args, **kwargs):
        return self.encode(*args, **kwargs)

    def decode(self, ids) -> str:
        """Text of ids. Bytes that are not UTF-8 become U+FFFD. StreamDecoder is for ids that come one at a time."""
        return self.enc.decode(ids)

    def decode_single_token_bytes(self, token_id: int) -> bytes:
        return self.enc.decode_single_token_bytes(token_id)

    def save(self, tokenizer_dir):
        files.save_encoding(self.enc, tokenizer_dir)

    def render_conversation(self, conversation: dict, max_tokens=2048) -> tuple[list[int], list[int]]:
        """(ids, mask) of a chat, both cut to max_tokens; mask is 1 where the assistant is trained.

        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]} becomes
        <|bos|><|user_start|>2+2?<|user_end|><|assistant_start|>4<|assistant_end|>, mask 1 from the 4 on.
        """
        ids, mask = [self.bos_token_id], [0]
        for i, message in enumerate(_merge_system_message(conversation["messages"])):
            expected = ("user", "assistant")[i % 2]
            if message["role"] != expected:
                raise ValueError(f"message {i} is from {message['role']!r}: expected {expected!r} (the two take turns)")
            for text, is_special, supervised in _message_pieces(message):
                piece = [self.encode_special(text)] if is_special else self.encode(text)
                ids += piece
                mask += [supervised] * len(piece)
        return ids[:max_tokens], mask[:max_tokens]

    def visualize_tokenization(self, ids, mask, with_token_id=False) -> str:
        """The tokens of render_conversation for a terminal: green where supervised, red where not."""
        red, green, gray, reset = "\033[91m", "\033[92m", "\033[90m", "\033[0m"
        pieces = []
        for token_id, supervised in zip(ids, mask, strict=True):
            pieces.append(f"{green if supervised == 1 else red}{self.decode([token_id])}{reset}")
            if with_token_id:
                pieces.append(f"{gray}({token_id}){reset}")
        return "|".join(pieces)

    def render_for_completion(self, conversation: dict) -> list[int]:
        """Ids of a chat without the assistant's last message, up to the token that opens that message."""
        messages = conversation["messages"]
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError("the last message must be from the assistant: it is the one to be completed")
        ids, _ = self.render_conversation({**conversation, "messages": messages[:-1]})
        return [*ids, self.encode_special("<|assistant_start|>")]


def _merge_system_message(messages: list) -> list:
    """A leading system message becomes the head of the user's first message; the input stays as it is."""
    if not messages:
        raise ValueError("the conversation has no messages")
    if messages[0]["role"] != "system":
        return messages
    if len(messages) < 2 or messages[1]["role"] != "user":
        raise ValueError("a system message must be followed by a user message")
    system, user = messages[:2]
    return [{**user, "content": system["content"] + "\n\n" + user["content"]}, *messages[2:]]


def _message_pieces(message: dict):
    """Yield (text, is it the name of a special token, mask) in order."""
    role, content = message["role"], message["content"]
    trained = int(role == "assistant")
    yield f"<|{role}_start|>", True, 0
    if isinstance(content, str):
        yield content, False, trained
    elif isinstance(content, list) and trained:
        for part in content:
            if part["type"] not in ASSISTANT_PARTS:
                raise ValueError(f"unknown part type {part['type']!r}: expected one of {', '.join(ASSISTANT_PARTS)}")
            before, after, supervised = ASSISTANT_PARTS[part["type"]]
            if before:
                yield before, True, supervised
            yield part["text"], False, supervised
            if after:
                yield after, True, supervised
    else:
        raise ValueError(f"content of a message from the {role} is a {type(content).__name__}: expected a string"
                         + (" or a list of parts" if trained else ""))
    yield f"<|{role}_end|>", True, trained


class StreamDecoder:
    """Text of ids that come one at a time, never half a character: an emoji in two tokens gives '' and the emoji.

    The texts of all pushes and of the flush, joined, are tokenizer.decode(ids). Special tokens show as their names.
    """

    def __init__(self, tokenizer: RustBPETokenizer):
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self.decoder.decode(self.tokenizer.decode_single_token_bytes(token_id))

    def flush(self) -> str:
        """U+FFFD where the text ends in an unfinished character, else "". Afterwards another text may begin."""
        return self.decoder.decode(b"", final=True)


# -----------------------------------------------------------------------------
# The tokenizer of a base directory

def get_tokenizer_dir(base_dir=None) -> Path:
    return Path(base_dir or get_base_dir()) / "tokenizer"


def get_tokenizer(base_dir=None) -> RustBPETokenizer:
    return RustBPETokenizer.from_directory(get_tokenizer_dir(base_dir))


def get_tokenizer_id(base_dir=None) -> str:
    """Content hash of pattern, ranks and special tokens, from tokenizer.json, whose content is checked against it."""
    return files.read_tokenizer_json(get_tokenizer_dir(base_dir))["tokenizer_id"]


def get_token_bytes(device="cpu", base_dir=None):
    """int32 tensor [vocab_size]: bytes per token, 0 for specials; counted from tokenizer.json, so it always fits."""
    import torch
    content = files.read_tokenizer_json(get_tokenizer_dir(base_dir))
    return torch.tensor(files.count_token_bytes(content), dtype=torch.int32, device=device)


def import_tokenizer(path, base_dir=None) -> RustBPETokenizer:
    """Make upstream's tokenizer.pkl at `path` the tokenizer of a base directory."""
    tokenizer = RustBPETokenizer(files.read_pickle(path), BOS)
    tokenizer.save(get_tokenizer_dir(base_dir))
    return tokenizer


def crop_texts(texts, max_chars: int, doc_cap: int):
    """Documents cut to doc_cap characters. The last is the document with which their sum exceeds max_chars."""
    num_chars = 0
    for text in texts:
        text = text[:doc_cap]
        num_chars += len(text)
        yield text
        if num_chars > max_chars:
            return


def train_tokenizer(base_dir, vocab_size: int, max_chars: int, doc_cap: int) -> RustBPETokenizer:
    """Train on a base directory's training shards and save there. ValueError when the text is too small."""
    from nanochat.manifest import get_data_dir
    from nanochat.shards import iter_texts  # pyarrow, which loading a tokenizer does without
    for name, value in (("--max-chars", max_chars), ("--doc-cap", doc_cap)):
        if value <= 0:
            raise ValueError(f"{name}={value}: expected a positive number of characters")
    t0 = time.time()
    tokenizer = RustBPETokenizer.train_from_iterator(
        crop_texts(iter_texts("train", get_data_dir(base_dir)), max_chars, doc_cap), vocab_size)
    print(f"Training time: {time.time() - t0:.2f}s")
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(_too_small(tokenizer.get_vocab_size(), vocab_size, get_data_dir(base_dir)))
    tokenizer.save(get_tokenizer_dir(base_dir))
    return tokenizer


def _too_small(found: int, vocab_size: int, data_dir) -> str:
    more = to_paste("make more shards: python -m nanochat.dataset --help")
    if found == MIN_VOCAB_SIZE:
        return f"the training shards in {data_dir} hold no text to train a tokenizer on; {more}"
    return (f"--vocab-size={vocab_size}: the text is too small, it yields only {found} tokens; "
            f"ask for --vocab-size={found} "
            f"or less, raise --max-chars or --doc-cap, or {more}")
