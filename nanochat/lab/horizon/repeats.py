"""
How much of a corpus is text that stood in it before: copies would pass for correlations.

Example: a page that is stored 5,000 times. Every pair of tokens on it is seen 5,000 times. So its correlations stand
far above the sampling noise at every lag, and say nothing of the language. And the theory counts distinct tokens.

A window of tokens is repeated where the same tokens stood before. The share of tokens in repeated windows is what a
deduplication would take away: 0.5 for a corpus that is stored twice. A short text that stands in every document is
worse than its share, because all its copies say the same: with a header of 60 tokens before documents of 1,000, beta
of a known source comes out at 0.30 in place of 0.75. So it has a limit of its own.

Windows are compared by hashes of 64 bits. In a corpus of 2^25 tokens two different windows have one hash with a chance
of 3 in 100,000, and then one window too many is counted. Hashes are sorted a part at a time, so that memory is bounded.
"""

from dataclasses import dataclass

import numpy as np

from nanochat.lab.horizon.source import Refusal
from nanochat.lab.horizon.spool import Spool

WINDOW = 32  # tokens: a stock phrase is shorter
WINDOW_BITS = 192  # of a window, by the frequencies of its tokens: few tokens that repeat by chance hold fewer
LONGEST_WINDOW = 1024
# Measured: books 0.001, Wikipedia 0.003, the built-in corpus of source code 0.17, other source code 0.13 to 0.18.
MOST_REPEATED = 0.25
OFTEN, MOST_BOILERPLATE = 100, 0.02  # copies of one window; measured: books and Wikipedia 0, source code 0.002 to 0.011
WORTH_A_WARNING = 0.01
PART = 1 << 23  # hashes that are sorted at a time: 250 MB
SLICE = 1 << 16  # tokens that are hashed at a time, which fit the cache
MIX = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9], np.uint64)


@dataclass(frozen=True)
class Repeats:
    """window: tokens of a window. share: of all tokens, those in windows that stood before.

    boilerplate: the share of tokens in windows with OFTEN copies or more.
    """
    window: int
    share: float
    boilerplate: float

    def __str__(self):
        return (f"{self.share:.1%} of the tokens are in windows of {self.window} tokens that stood before, "
                f"{self.boilerplate:.1%} in windows that stand {OFTEN} times or more")


def measure_repeats(spool: Spool) -> Repeats:
    tokens, window = spool.tokens, window_of(spool.counts)
    again, often = (np.zeros(len(tokens), bool) for _ in range(2))  # does such a window start here?
    parts = -(-len(tokens) // PART)
    for part in range(parts):
        hashes, starts = _hashes_of(tokens, window, part, parts)
        order = np.argsort(hashes, kind="stable")  # equal hashes stay in the order of the text
        hashes, starts = hashes[order], starts[order]
        first = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[:len(hashes)])
        copies = np.diff(first, append=len(hashes))
        again[starts] = True
        again[starts[first]] = False
        often[starts[np.repeat(copies >= OFTEN, copies)]] = True
    return Repeats(window, _covered(again, window), _covered(often, window))


def refuse_repeated(repeats: Repeats):
    """Raise Refusal repeated_text where statistics would be those of the copies."""
    if repeats.share > MOST_REPEATED or repeats.boilerplate > MOST_BOILERPLATE:
        raise Refusal("repeated_text",
                      f"{repeats}: expected at most {MOST_REPEATED:.0%} and {MOST_BOILERPLATE:.0%}, because copies "
                      "pass for correlations; take duplicates and headers out of the corpus")


def window_of(counts) -> int:
    """Tokens of a window: a power of two, of which the tokens' own frequencies make WINDOW_BITS or more.

    >>> window_of(np.ones(1024)), window_of(np.ones(2))
    (32, 256)
    """
    p = counts[counts > 0] / counts.sum()
    bits = float(-p @ np.log2(p))
    window = WINDOW
    while window < LONGEST_WINDOW and window * bits < WINDOW_BITS:
        window *= 2
    return window


# -----------------------------------------------------------------------------
# Hashes

def _mixed(hashes):
    hashes ^= hashes >> np.uint64(32)
    hashes *= MIX[2]
    hashes ^= hashes >> np.uint64(29)
    return hashes


def window_hashes(tokens, window: int) -> np.ndarray:
    """A hash of every window [N - window + 1], window a power of two: each doubling joins two neighbours."""
    hashes = _mixed((tokens.astype(np.uint64) + np.uint64(1)) * MIX[0])
    step = 1
    while step < window:
        hashes = _mixed(hashes[:-step] * MIX[1] + hashes[step:])
        step *= 2
    return hashes


def _hashes_of(tokens, window: int, part: int, parts: int):
    """(hashes, starts of their windows) of the windows whose hash falls into this part; starts rise."""
    hashes, starts = [], []
    for at in range(0, len(tokens) - window + 1, SLICE):
        found = window_hashes(tokens[at:at + SLICE + window - 1], window)
        mine = np.flatnonzero(found % np.uint64(parts) == part)
        hashes.append(found[mine])
        starts.append(mine + at)
    return np.concatenate(hashes or [np.empty(0, np.uint64)]), np.concatenate(starts or [np.empty(0, np.intp)])


def _covered(starts, window: int) -> float:
    """The share of tokens that lie in a window which starts at a True."""
    total = 0
    for at in range(0, len(starts), SLICE):
        before = max(0, at - window + 1)
        count = np.concatenate(([0], np.cumsum(starts[before:at + SLICE])))
        last = np.arange(at - before, len(count) - 1) + 1
        total += np.count_nonzero(count[last] > count[np.maximum(last - window, 0)])
    return float(total / len(starts))
