"""
The entropy curve of a corpus without a model: held-out Kneser-Ney losses L_n(P), carried to P = infinity.

L_n(P) = H_n + A_n P^-d_n over a ladder of doubling P. The text is cut into pieces, and the pieces are shuffled. Reason:
a prefix of a corpus of books is one author, the text after it is another, and losses over such prefixes are no power
law. The held-out part is the same for every rung and every n, and each of its targets has the longest context. So rungs
and contexts are compared on equal text.

H_n is accepted, from n = 1 on, while three things hold. The ladder falls fast enough to be carried on. Its first rung
hardly matters. A fair share of the worth of the n-th token has been measured, not only carried on. The third rule is
for contexts that the corpus is too small to know: without it they pass with the exponent of shorter contexts, as a
floor H_inf that is not there. A corpus that is too small for its vocabulary has few accepted n, and then fit_gamma
refuses it.

Nine contexts in ten are carried too far down, the longer ones more, so gamma comes out high: by 0.05 on average over 40
ladders of sources with known H_n, inside its interval.

    fit_gamma(ngram_curve(source))
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from nanochat.lab.horizon.entropy import EntropyCurve
from nanochat.lab.horizon.kneser_ney import held_out, most_tokens
from nanochat.lab.horizon.source import Refusal, TokenSource
from nanochat.lab.horizon.spool import checked

MAX_CONTEXT = 10
PIECE = 256  # tokens; small against the first rung, large against the context that the start of a piece lacks
RUNGS = 6
HELD_SHARE, MOST_HELD = 0.1, 2**20
BLOCKS = 32
LEAST_TOKENS = 200_000
MOST_TOKENS = 2**24  # memory: about 120 bytes a token
LEAST_DELTA, MOST_SHIFT = 0.25, 0.03
LEAST_MEASURED = 1 / 3  # least worth of the n-th token at the last rung, as a share of its worth at P = infinity
DELTA_RANGE = (0.02, 3.0)
# Error of H_n as a share of the way from L_n to H_n: the rms over 113 contexts of sources with known H_n. Nine in ten
# of them were carried too far.
CARRIED_ERROR = 0.5


class Ladder(NamedTuple):
    """tokens, depth [N] and held as in kneser_ney.held_out; rungs [RUNGS]: P of each, in tokens."""
    tokens: np.ndarray
    depth: np.ndarray
    rungs: np.ndarray
    held: np.ndarray


def ngram_curve(source: TokenSource, seed: int = 0, say=None) -> EntropyCurve:
    """L_n of the largest rung and H_n where it is accepted (nan elsewhere), for n = 0..MAX_CONTEXT.

    Reads the source twice. Of a corpus above MOST_TOKENS a random sample of its pieces is taken. say: called
    with a line of progress for each n. Raises Refusal: empty_stream, corpus_too_short, ids_out_of_range.
    """
    cap = min(MOST_TOKENS, most_tokens(source.vocab_size))
    ladder = make_ladder(*sample_pieces(source, cap, seed), seed)
    losses = ladder_losses(ladder, source.vocab_size, say=say)
    return extrapolated_curve(ladder.rungs, losses)


# -----------------------------------------------------------------------------
# The text

def sample_pieces(source: TokenSource, max_tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [N] int32 in the order of the source, ends of their pieces). No piece crosses the end of a document."""
    lengths = np.array([len(array) for array in source.read()], dtype=np.int64)
    total = int(lengths.sum())
    if total == 0:
        raise Refusal("empty_stream", "the corpus has no tokens")
    ends = piece_ends(lengths if source.documents else np.array([total]))
    sizes = np.diff(ends, prepend=0)
    order = np.random.default_rng([seed, 0]).permutation(len(ends))
    chosen = np.zeros(len(ends), dtype=bool)
    chosen[order[np.cumsum(sizes[order]) <= max_tokens]] = True
    kept, at = [], 0
    for array in source.read():
        piece = np.searchsorted(ends, np.arange(at, at + len(array)), side="right")
        kept.append(checked(array[chosen[piece]], source.vocab_size).astype(np.int32))
        at += len(array)
    ends = np.cumsum(sizes[chosen])
    if len(ends) == 0 or ends[-1] < LEAST_TOKENS:
        raise Refusal("corpus_too_short",
                      f"{0 if len(ends) == 0 else ends[-1]} tokens: expected at least {LEAST_TOKENS} for a ladder")
    return np.concatenate(kept), ends


def piece_ends(lengths: np.ndarray) -> np.ndarray:
    """Ends of the pieces of documents of these lengths: every PIECE tokens, and where a document ends.

    >>> piece_ends(np.array([300, 0, 256])).tolist()
    [256, 300, 556]
    """
    count = -(-lengths // PIECE)  # rounded up
    document = np.repeat(np.arange(len(lengths)), count)
    within = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    start = np.cumsum(lengths) - lengths
    return start[document] + np.minimum((within + 1) * PIECE, lengths[document])


def make_ladder(tokens: np.ndarray, ends: np.ndarray, seed: int, max_context: int = MAX_CONTEXT) -> Ladder:
    """Training pieces in random order, then the held-out pieces in the order of the corpus.

    Each rung has twice the tokens of the rung before.
    """
    starts, sizes = np.append(0, ends[:-1]), np.diff(ends, prepend=0)
    order = np.random.default_rng([seed, 1]).permutation(len(ends))
    num_held = int(np.searchsorted(np.cumsum(sizes[order]), min(MOST_HELD, HELD_SHARE * ends[-1]))) + 1
    order = np.concatenate([order[num_held:], np.sort(order[:num_held])])
    sizes = sizes[order]
    new_ends = np.cumsum(sizes)
    depth = np.arange(len(tokens)) - np.repeat(new_ends - sizes, sizes)
    train_ends = new_ends[:-num_held]
    rungs = train_ends[np.searchsorted(train_ends, train_ends[-1] / 2.0 ** np.arange(RUNGS - 1, -1, -1))]
    held = train_ends[-1] + np.flatnonzero(depth[train_ends[-1]:] >= max_context)
    if len(held) < BLOCKS:
        raise Refusal("corpus_too_short",
                      f"{len(held)} held-out tokens have {max_context} tokens of context in their document: expected "
                      f"{BLOCKS} or more; longer documents, or one stream, are needed")
    depth = np.minimum(depth, max_context).astype(np.uint8)
    return Ladder(tokens[np.repeat(starts[order], sizes) + np.arange(len(tokens)) - np.repeat(new_ends - sizes, sizes)],
                  depth, rungs, held)


def ladder_losses(ladder: Ladder, vocab_size: int, max_context: int = MAX_CONTEXT, blocks: int = BLOCKS,
                  say=None) -> np.ndarray:
    """Mean loss in nats [rungs, contexts, blocks].

    A block is a contiguous part of the held-out text; sizes of blocks differ by a token at most.
    """
    count = len(ladder.held)
    starts = np.arange(blocks) * count // blocks
    sizes = np.diff(starts, append=count)
    losses = np.empty((len(ladder.rungs), max_context + 1, blocks))
    for n, r, p in held_out(ladder.tokens, ladder.depth, ladder.rungs, ladder.held, max_context, vocab_size):
        losses[r, n] = np.add.reduceat(-np.log(p), starts) / sizes
        if say and r == len(ladder.rungs) - 1:
            say(f"{n} tokens of context: {losses[r, n].mean():.4f} nats, {losses[0, n].mean():.4f} at "
                f"{ladder.rungs[0]:,} tokens")
    return losses


# -----------------------------------------------------------------------------
# P = infinity

def extrapolated_curve(rungs: np.ndarray, losses: np.ndarray) -> EntropyCurve:
    """The curve of losses [rungs, contexts, blocks]: H_n, d_n, and the rules that accept H_n; see the top of this file.

    H_n is not a mean over blocks, so its block values are jackknife pseudo-values. Block b has
    H_n + (B - 1) (mean of the H_n without one block - H_n without b), and their spread is that of H_n's error.
    """
    _, contexts, blocks = losses.shape
    mean, last = losses.mean(axis=-1), losses[-1]
    se = last.std(axis=-1, ddof=1) / np.sqrt(blocks)
    h, delta, error = (np.full(contexts, np.nan) for _ in range(3))
    pseudo = np.full((blocks, contexts), np.nan)
    without = (losses.sum(axis=-1, keepdims=True) - losses) / (blocks - 1)  # the mean with one block left out
    flats = [is_flat(losses[:, n]) for n in range(contexts)]
    fits = [to_infinity(rungs, mean[:, n], flat) for n, flat in enumerate(flats)]
    accepting = True
    for n, (flat, (h_n, delta_n)) in enumerate(zip(flats, fits, strict=True)):
        shift_n = abs(to_infinity(rungs[1:], mean[1:, n], flat)[0] - h_n)
        delta[n] = delta_n
        good = h_n > 0 and shift_n < MOST_SHIFT * h_n and (flat or delta_n >= LEAST_DELTA)
        if n:  # no power of n is fitted to n = 0, so it may fail
            before = fits[n - 1][0] if n > 1 or np.isfinite(fits[0][0]) else mean[-1, 0]
            worth, measured = before - h_n, mean[-1, n - 1] - mean[-1, n]
            accepting &= good and worth >= 0 and measured >= LEAST_MEASURED * worth  # no entropy rises with the context
        if good and accepting:
            h[n], error[n] = h_n, max(shift_n, CARRIED_ERROR * abs(mean[-1, n] - h_n))
            left_out = np.array([to_infinity(rungs, without[:, n, b], flat)[0] for b in range(blocks)])
            pseudo[:, n] = h_n + (blocks - 1) * (left_out.mean() - left_out)
    return EntropyCurve("ngram", np.arange(contexts), mean[-1], se, h, delta, error, pseudo)


def is_flat(losses: np.ndarray) -> bool:
    """True where the last rung [rungs, blocks] is no better than the first by more than twice the error: nothing is
    left to learn."""
    gain = losses[0] - losses[-1]
    return bool(abs(gain.mean()) < 2 * gain.std(ddof=1) / np.sqrt(len(gain)))


def to_infinity(rungs: np.ndarray, loss: np.ndarray, flat: bool = False) -> tuple[float, float]:
    """(H, d) of the least-squares fit loss = H + A rungs^-d, with d within DELTA_RANGE.

    For a flat ladder it is (loss of the last rung, nan). H is -inf where the loss rises with the tokens, which the law
    cannot describe.
    """
    if flat:
        return float(loss[-1]), np.nan

    def solve(d):
        power = (rungs / rungs[-1]) ** -d
        slope = np.cov(power, loss)[0, 1] / np.var(power, ddof=1)
        h = loss.mean() - slope * power.mean()
        return h, slope, float(np.sum((loss - h - slope * power) ** 2))

    best = minimize_scalar(lambda log_d: solve(np.exp(log_d))[2], bounds=np.log(DELTA_RANGE), method="bounded",
                           options={"xatol": 1e-7})
    d = float(np.exp(best.x))
    h, slope, _ = solve(d)
    return (float(h) if slope > 0 else -np.inf), d
