"""
How strongly tokens n apart depend on each other, without a noise floor: the cross-block Frobenius norm.

C(n)[u, v] = P(X_i = u, X_{i+n} = v) - P(u) P(v), over the K most frequent tokens. The squared norm of a measured C(n)
is the true squared norm plus the sampling noise. At large lags nearly all of it is noise, and a slope fitted to it
comes out at half its value. So the corpus is cut into B blocks, and each block gives a C_b of its own. The squared norm
is the mean inner product <C_a, C_b> of DIFFERENT blocks: their noise is independent, so its mean product is 0. The
estimate is unbiased up to O(C / pairs of a block), and it comes out negative at times where there is no correlation.
The operator norm of arXiv:2602.07488 is measured beside it, raw, with its noise floor. It says how far correlations can
be seen (n*), not how they decay.

Lags are measured one at a time, so memory is blocks x K^2, whatever the corpus and the number of lags. Counts are
integers, and the floating-point part belongs to one lag. So neither the cuts of the source nor the number of workers
changes a bit.
"""

import functools
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat.lab.horizon.ranks import Ranked, require_pairs, write_ranked
from nanochat.lab.horizon.source import Refusal
from nanochat.lab.horizon.spool import Spool

TOP_K, MAX_LAG = 256, 512
LEAST_TOKENS = 200_000
CENTERINGS = ("block", "document")
FEWEST_BLOCKS = 8  # a bootstrap over fewer blocks says little
BLOCKS, BLOCKS_OF_MANY, MANY_TOKENS = 16, 32, 10_000_000
# Bytes. A machine that trains has that much memory; with larger tables most pairs of tokens occur never or once.
LARGEST_ROWS = 8 << 30
PAIR_SLICE = 1 << 18  # pairs counted at a time: measured fastest of 2^14 to 2^20 at K = 256
VISIBLE = 1.5  # an operator norm above this many times its floor is not noise


@dataclass(frozen=True)
class Curve:
    """The measured correlations.

    lags, pairs, op, op_floor: [m]. grams: [m, B, B], inner products of the blocks' C_b at a lag. count_sec: seconds of
    the counting, without the reading.
    """
    lags: np.ndarray
    pairs: np.ndarray
    grams: np.ndarray
    op: np.ndarray
    op_floor: np.ndarray
    num_tokens: int
    top_k: int
    top_k_mass: float
    warnings: tuple[str, ...]
    count_sec: float

    @property
    def squares(self) -> np.ndarray:
        """F^2(n) [m]: mean inner product of two different blocks; may be negative."""
        return resampled_squares(self.grams, np.ones((1, self.grams.shape[1])))[0]

    @property
    def op_visible(self) -> np.ndarray:
        return self.op > VISIBLE * self.op_floor


def resampled_squares(grams, draws) -> np.ndarray:
    """F^2 [R, m] of R resamplings of the blocks. grams: [m, B, B]; draws: how often each block was drawn [R, B].

    The mean is over ordered pairs of draws of different original blocks. A block times itself is left out, because it
    has the noise that this estimator exists to avoid.
    """
    across = grams * (1 - np.eye(grams.shape[1]))
    return np.einsum("rb,mbc,rc->rm", draws, across, draws,
                     optimize=True) / (draws.sum(1) ** 2 - (draws ** 2).sum(1))[:, None]


def lag_grid(largest: int) -> list[int]:
    """Three lags an octave: with all integers the large lags would outweigh the others in a fit.

    >>> lag_grid(20)
    [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20]
    """
    steps = range(3 * max(largest, 1).bit_length() + 1)
    return sorted({lag for lag in (round(2 ** (k / 3)) for k in steps) if lag <= largest})


def choose_lags(spool: Spool, max_lag: int, centering: str) -> tuple[list[int], tuple[str, ...]]:
    """(lags, warnings).

    Lags end at a quarter of the median document: beyond it only the long documents have pairs, and these are another
    corpus. With document centring they end at a fiftieth: beyond it, the mean that is subtracted is itself correlation.

    Raises Refusal: corpus_too_short, too_few_valid_lags.
    """
    if len(spool.tokens) < LEAST_TOKENS:
        raise Refusal("corpus_too_short",
                      f"{len(spool.tokens):,} tokens: expected at least {LEAST_TOKENS:,}; use more text")
    median = float(np.median(spool.lengths))
    usual = lag_grid(min(max_lag, int(median / 4)))
    lags = lag_grid(min(max_lag, int(median / 50))) if centering == "document" else usual
    if not lags:
        raise Refusal("too_few_valid_lags",
                      f"the median document has {median:g} tokens, too few for any lag with --centering={centering}; "
                      "use longer documents" + (", or --centering=block" if centering == "document" else ""))
    if len(spool.tokens) < 200 * lags[-1]:
        raise Refusal("corpus_too_short",
                      f"{len(spool.tokens):,} tokens: expected at least 200 times the largest lag, {lags[-1]}; use "
                      f"more text, or --max-lag={len(spool.tokens) // 200}")
    return lags, ("short_documents_document_centering",) if len(lags) < len(usual) else ()


# -----------------------------------------------------------------------------
# One lag

def pair_counts(tokens, lag: int, width: int) -> np.ndarray:
    """How often (tokens[i], tokens[i + lag]) is (u, v): int64 [width, width]. tokens: integers below width."""
    table, step = np.zeros(width * width, np.int64), max(PAIR_SLICE, width * width)
    for at in range(0, len(tokens) - lag, step):
        second = tokens[at + lag:at + lag + step]
        pair = tokens[at:at + len(second)].astype(np.intp)
        pair *= width
        pair += second
        table += np.bincount(pair, minlength=width * width)
    return table.reshape(width, width)


def document_groups(ranked: Ranked, b: int):
    """(first, last) pieces of a block, a few at a time, so that their counts stay small.

    The groups are the same for every lag, so sums come out the same.
    """
    first, stop = ranked.first[b], ranked.first[b + 1]
    while first < stop:
        last = np.searchsorted(ranked.starts, ranked.starts[first] + PAIR_SLICE)
        last = int(np.clip(last, first + 1, min(stop, first + 1024)))
        yield first, last
        first = last


def permuted_pairs(tokens, ranked: Ranked, b: int, lag: int) -> np.ndarray:
    """Mean number of pairs [K, K] at this lag over all orders of the tokens within each document of a block.

    For a document of L tokens with counts c it is exactly (c c' - diag(c)) (L - lag) / (L (L - 1)). Reason: in a random
    order each of the L - lag places holds any of the L (L - 1) ordered pairs of different tokens with the same chance.
    """
    K, width = ranked.top_k, ranked.width
    total = np.zeros((K, K))
    for first, last in document_groups(ranked, b):
        lengths = ranked.lengths[first:last]
        document = np.repeat(np.arange(last - first), lengths + ranked.gap)
        part = tokens[ranked.starts[first]:ranked.starts[first] + len(document)]
        counts = np.bincount(document * width + part,
                             minlength=width * (last - first)).reshape(-1, width)[:, :K].astype(float)
        weight = np.maximum(lengths - lag, 0) / np.maximum(lengths * (lengths - 1), 1)
        total += (counts * weight[:, None]).T @ counts
        total[np.diag_indices(K)] -= weight @ counts
    return total


def measure_lag(ranked: Ranked, centering: str, lag: int) -> tuple:
    """(pairs, gram [B, B], operator norm, its floor) at one lag."""
    tokens, K, blocks = np.memmap(ranked.path, np.uint16, "r"), ranked.top_k, len(ranked.first) - 1
    rows, pairs, marginals = np.empty((blocks, K * K)), np.empty(blocks), np.zeros((2, K))
    for b in range(blocks):
        table = pair_counts(tokens[ranked.block(b)], lag, ranked.width)[:K + 1, :K + 1]
        p, q, table, pairs[b] = table.sum(1)[:K], table.sum(0)[:K], table[:K, :K], table.sum()
        expected = permuted_pairs(tokens, ranked, b, lag) if centering == "document" else np.outer(p, q) / pairs[b]
        own = np.subtract(table, expected, out=rows[b].reshape(K, K))
        own /= pairs[b]
        marginals += p, q
    total = pairs.sum()
    pooled = (pairs @ rows / total).reshape(K, K)
    # The operator norm of pure noise: sqrt(p_max / N) + sqrt(q_max / N). In counts p = marginal / total and N = total.
    floor = np.sqrt(marginals.max(axis=1)).sum() / total
    return int(total), rows @ rows.T, float(np.sqrt(np.linalg.eigvalsh(pooled @ pooled.T)[-1])), float(floor)


# -----------------------------------------------------------------------------
# All lags

def check(top_k: int, max_lag: int, blocks: int | None, centering: str, documents: bool, vocab_size: int):
    for name, value, low, high in (("--top-k", top_k, 1, 1 << 15), ("--max-lag", max_lag, 1, 1 << 20),
                                   ("--blocks", blocks or FEWEST_BLOCKS, FEWEST_BLOCKS, 1024)):
        if not low <= value <= high:
            raise ValueError(f"{name}={value}: expected {low} to {high}")
    blocks, K = blocks or BLOCKS_OF_MANY, min(top_k, vocab_size)
    if blocks * K * K * 8 > LARGEST_ROWS:
        raise ValueError(f"--top-k={top_k}: {blocks} blocks x {K}^2 x 8 bytes are {blocks * K * K / (1 << 27):.1f} GiB "
                         f"of memory: expected at most {LARGEST_ROWS >> 30}; give "
                         f"--top-k={math.isqrt(LARGEST_ROWS // (8 * blocks))} or less")
    if centering not in CENTERINGS:
        raise ValueError(f"--centering={centering}: expected {' or '.join(CENTERINGS)}")
    if centering == "document" and not documents:
        raise ValueError("--centering=document: this source is one stream without documents; use --centering=block")


# Seven parameters: the options of scripts.lane_b_stats that this measurement has.
def measure_spool(spool: Spool, top_k=TOP_K, max_lag=MAX_LAG, blocks=None, centering="block", workers=1,
                  say=None) -> Curve:
    """Measure C(n) at three lags an octave.

    blocks: None = 16, 32 from 10 million tokens. workers: processes, over lags. say: called with a line of progress.
    Raises Refusal: corpus_too_short, too_few_valid_lags; ValueError for options that are out of range.
    """
    check(top_k, max_lag, blocks, centering, spool.documents, len(spool.counts))
    start, top_k = time.perf_counter(), min(top_k, len(spool.counts))
    lags, warnings = choose_lags(spool, max_lag, centering)
    blocks = blocks or (BLOCKS_OF_MANY if len(spool.tokens) >= MANY_TOKENS else BLOCKS)
    path = Path(spool.tokens.filename).with_name("ranks")
    ranked = write_ranked(spool, top_k, blocks, lags[-1], path)
    require_pairs(ranked, lags[-1])
    found = list(_each_lag(functools.partial(measure_lag, ranked, centering), lags, workers,
                           say or (lambda text: None)))
    pairs, grams, op, floor = map(np.array, zip(*found))
    mass = np.sort(spool.counts)[-top_k:].sum() / len(spool.tokens)
    return Curve(np.array(lags), pairs, grams, op, floor, len(spool.tokens), top_k, float(mass), warnings,
                 time.perf_counter() - start)


def _each_lag(measure, lags, workers: int, say):
    """Results in the order of the lags, as they come."""
    pool = ProcessPoolExecutor(min(workers, len(lags)), multiprocessing.get_context("spawn")) if workers > 1 else None
    try:
        for lag, found in zip(lags, (pool.map if pool else map)(measure, lags)):
            say(f"lag {lag} of {lags[-1]}: {found[0]:,} pairs")
            yield found
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
