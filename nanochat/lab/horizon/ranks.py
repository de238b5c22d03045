"""
The corpus as the counting of pairs reads it: a file of frequency ranks, cut into blocks, with gaps after documents.

Example, with top_k 2 and gaps of 2: the documents [2, 2] and [1, 0, 1] of one block become 1 1 3 3 0 2 0 3 3. Token 1
has rank 0 and token 2 rank 1. Token 0 is not among the top 2 and has rank 2; a gap is rank 3.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat.lab.horizon.source import Refusal
from nanochat.lab.horizon.spool import SLICE, Spool


@dataclass(frozen=True)
class Ranked:
    """A file of frequency ranks (uint16): 0..K-1 the frequent tokens, K any other, K+1 in the gaps after each piece.

    A piece is a document, or the part of a document that lies in one block. Gaps are as long as the largest lag. So
    pairs are counted across the end of a piece without looking where it is, and the pairs with rank K+1 are thrown
    away. starts, lengths: of the pieces in the file [P]; first: index of each block's first piece, and P [B+1].
    """
    path: Path
    top_k: int
    starts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    gap: int

    @property
    def width(self) -> int:
        return self.top_k + 2

    def block(self, b: int) -> slice:
        last = self.first[b + 1] - 1
        return slice(int(self.starts[self.first[b]]), int(self.starts[last] + self.lengths[last] + self.gap))


def block_bounds(ends, blocks: int) -> np.ndarray:
    """Where blocks start and end [B+1].

    A bound is the end of the document nearest to an equal share. Where that end is more than a quarter of a block away,
    the bound is the equal share itself, inside a document.
    """
    equal = np.arange(blocks + 1) * ends[-1] // blocks
    after = np.minimum(np.searchsorted(ends, equal), len(ends) - 1)
    before = np.maximum(after - 1, 0)
    near = np.where(ends[after] - equal < equal - ends[before], ends[after], ends[before])
    bounds = np.where(np.abs(near - equal) <= ends[-1] // (4 * blocks), near, equal)
    bounds[0] = 0
    return bounds


def frequent_ranks(counts, top_k: int) -> np.ndarray:
    """Rank by frequency of each id, ties by id, uint16 [V].

    An id that is not among the top_k, or never occurs, has rank top_k.
    """
    order = np.argsort(-counts, kind="stable")[:top_k]
    order = order[counts[order] > 0]
    ranks = np.full(len(counts), top_k, np.uint16)
    ranks[order] = np.arange(len(order))
    return ranks


def write_ranked(spool: Spool, top_k: int, blocks: int, gap: int, path) -> Ranked:
    bounds = block_bounds(spool.ends, blocks)
    ends = np.union1d(spool.ends, bounds[1:])
    starts = np.concatenate(([0], ends[:-1]))
    ranks, void = frequent_ranks(spool.counts, top_k), np.full(gap, top_k + 1, np.uint16)
    with open(path, "wb") as f:
        for start, end in zip(starts, ends):
            for at in range(start, end, SLICE):
                f.write(ranks[spool.tokens[at:min(at + SLICE, end)]])
            f.write(void)
    return Ranked(Path(path), top_k, starts + gap * np.arange(len(starts)), ends - starts,
                  np.searchsorted(starts, bounds), gap)


def require_pairs(ranked: Ranked, lag: int):
    """Raise Refusal too_few_valid_lags for a block without a pair at this lag: its documents are all shorter."""
    pairs = np.add.reduceat(np.maximum(ranked.lengths - lag, 0), ranked.first[:-1])
    if not pairs.all():
        raise Refusal("too_few_valid_lags",
                      f"block {pairs.argmin()} of {len(pairs)} has no two tokens {lag} apart in one document; lower "
                      "--max-lag or --blocks")
