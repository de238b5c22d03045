"""
A corpus on disk: the tokens of a source one after another, how often each id occurs, where documents end.

A source may be text that is tokenized as it is read, which takes longer than everything after it. So the source is read
once. The frequencies (V integers) and 8 bytes a document stay in memory.
"""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from nanochat.common import temporary_folder
from nanochat.lab.horizon.source import Refusal, TokenSource

SLICE = 1 << 20  # tokens in memory at a time
MOST_IDS = 1 << 24  # of a vocabulary, whose frequencies are in memory; a larger id comes from a broken file


@dataclass(frozen=True)
class Spool:
    """tokens: all ids [N], a memory map. counts: how often each id occurs [V].

    ends: where each document ends in tokens [D], the last is N; a single end for a stream without documents.
    """
    tokens: np.ndarray
    ends: np.ndarray
    counts: np.ndarray
    documents: bool

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.ends, prepend=0)

    def source(self) -> TokenSource:
        """The same corpus to be read again, at the speed of the disk."""
        return TokenSource(self._read, len(self.counts), self.documents)

    def _read(self) -> Iterator[np.ndarray]:
        for start, end in zip(np.concatenate(([0], self.ends[:-1])), self.ends):
            step = SLICE if not self.documents else end - start
            yield from (np.asarray(self.tokens[at:min(at + step, end)]) for at in range(start, end, step))


def checked(tokens, vocab_size: int) -> np.ndarray:
    """The array of a source, 1-D integers in 0..vocab_size-1; ids_out_of_range where one is not."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (tokens.dtype.kind not in "iu" and tokens.size):
        raise ValueError(f"tokens of shape {tokens.shape} and type {tokens.dtype}: expected one dimension of integers")
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        bad = int(tokens.max()) if tokens.max() >= vocab_size else int(tokens.min())
        raise Refusal("ids_out_of_range",
                      f"token id {bad}: expected 0 to {vocab_size - 1}, the vocabulary of the tokenizer; these tokens "
                      "were made with another one")
    return tokens


@contextmanager
def spooled(source: TokenSource):
    """Read the source once, in one pass, and hand out its Spool.

    The temporary files (in TMPDIR) go when the block ends. Empty documents are left out. Raises Refusal: empty_stream,
    ids_out_of_range.
    """
    if source.vocab_size > MOST_IDS:
        raise Refusal("ids_out_of_range",
                      f"a vocabulary of {source.vocab_size}: expected at most {MOST_IDS}; is one id broken?")
    with temporary_folder("lane_b-") as folder:
        path, dtype = folder / "tokens", np.dtype(np.uint16 if source.vocab_size <= 1 << 16 else np.uint32)
        ends, total = array("q"), 0
        with open(path, "wb") as f:
            for tokens in source.read():
                tokens = checked(tokens, source.vocab_size)
                if len(tokens):
                    f.write(tokens.astype(dtype))
                    total += len(tokens)
                    ends.append(total)
        if not total:
            raise Refusal("empty_stream", "the source has no tokens")
        tokens = np.memmap(path, dtype, "r")
        counts = sum(np.bincount(tokens[at:at + SLICE], minlength=source.vocab_size) for at in range(0, total, SLICE))
        yield Spool(tokens, np.array(ends if source.documents else [total], dtype=np.int64), counts, source.documents)
