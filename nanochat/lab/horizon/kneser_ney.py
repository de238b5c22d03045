"""
Interpolated modified Kneser-Ney over token ids, held out: the loss of every context length in one pass over the orders.

p_n(w|c) = max(0, k(cw) - D(k(cw))) / k(c.) + (sum of the discounts taken off c) / k(c.) * p_{n-1}(w|c minus its first
token), Chen and Goodman 1998. Each order has three discounts, from its counts of counts. k is the raw count at the
longest context. Below it, k is the number of different tokens to the left. So the lower orders serve every longer
model, and L_0..L_n come from one recursion.

N-grams have exact ids, made order by order as ranks of (id of the n-gram one shorter, token). A hash instead would
merge contexts, and its loss would be that of no model. Ids go by first occurrence. So the n-grams of a prefix of the
text are the first so many ids, and a ladder of prefixes costs no more sorting than its longest prefix.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Used where counts of counts are missing: there are few kinds of tokens, each seen often, and the value hardly matters.
UNKNOWN_DISCOUNT = 0.5
LEAST_DISCOUNT = 1e-3  # a token never seen must keep some probability


class Grams(NamedTuple):
    """All n-grams of one length m in a text of N tokens.

    ids [N] int32: of the n-gram that ends here, -1 where its piece began too late. first [different n-grams]: where
    each ends first, ascending, because ids go by it.
    """
    ids: np.ndarray
    first: np.ndarray


def empty_context(num_tokens: int) -> Grams:
    return Grams(np.zeros(num_tokens, dtype=np.int32), np.zeros(1, dtype=np.int64))


def extend(grams: Grams, tokens: np.ndarray, depth: np.ndarray, m: int) -> Grams:
    """The n-grams of length m from those of length m - 1.

    tokens [N]: ids. depth [N]: tokens before this one in its piece; an n-gram of length m ends only where
    depth >= m - 1. If the context of an n-gram occurs once, so does the n-gram. So only the others are sorted.
    """
    at = np.flatnonzero(depth >= m - 1)
    context = grams.ids[at - 1]
    common = np.bincount(context, minlength=len(grams.first))[context] > 1
    shared, context = at[common], context[common]
    head = np.arange(len(tokens), dtype=np.int32)  # where the n-gram that ends here ended first
    if len(shared):
        order, starts = grouped(context, tokens[shared])
        head[shared[order]] = np.repeat(shared[order[starts]], np.diff(starts, append=len(order)))
    is_first = np.zeros(len(tokens), dtype=bool)
    is_first[head[at]] = True
    ids = np.cumsum(is_first, dtype=np.int32)
    ids -= 1
    ids = ids[head]
    ids[depth < m - 1] = -1
    return Grams(ids, np.flatnonzero(is_first))


def most_tokens(vocab_size: int) -> int:
    """The longest text whose n-grams `grouped` can sort: two numbers below it and a token fit into 64 bits.

    >>> most_tokens(8192) == 2**25, most_tokens(32768) == 2**24
    (True, True)
    """
    return 2 ** ((64 - (vocab_size - 1).bit_length()) // 2)


def grouped(context: np.ndarray, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order, starts): indices sorted so that equal pairs stand together, and where each group starts.

    Indices ascend in each group. Pair and index are packed into one 64-bit word, because NumPy sorts words ten times
    faster than it finds a sorting order.
    """
    low = int(len(token) - 1).bit_length()
    middle = int(token.max()).bit_length()
    assert int(context.max()).bit_length() + middle + low <= 64, f"{len(token)} tokens: see most_tokens"
    key = context.astype(np.uint64) << np.uint64(middle + low)
    key |= token.astype(np.uint64) << np.uint64(low)
    key |= np.arange(len(token), dtype=np.uint64)
    key.sort()
    order = (key & np.uint64((1 << low) - 1)).astype(np.int64)
    key >>= np.uint64(low)
    return order, np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))


# -----------------------------------------------------------------------------
# Probabilities

def discounts(count: np.ndarray) -> np.ndarray:
    """[0, D1, D2, D3+] of an order, from the numbers of n-grams with count 1, 2, 3 and 4. Chen and Goodman 1998,
    equation 26.

    An n-gram that occurs k times in training text occurs about k - D times in other text of that size. The discounts
    take D off, and the n-grams that were never seen share what was taken off.
    """
    n = np.bincount(np.minimum(count, 5), minlength=6)[:5].astype(np.float64)
    if not n[1] or not n[2]:
        return np.array([0.0] + 3 * [UNKNOWN_DISCOUNT])
    y = n[1] / (n[1] + 2 * n[2])
    d = [i - (i + 1) * y * n[i + 1] / n[i] if n[i] else UNKNOWN_DISCOUNT for i in (1, 2, 3)]
    return np.concatenate([[0.0], np.clip(d, LEAST_DISCOUNT, (1, 2, 3))])


def interpolate(count, context_of, num_contexts, gram, context, lower):
    """p [held-out positions]: one order of the recursion.

    count, context_of [n-grams of the training text]: k and the id of the context. gram, context [held-out positions]:
    ids; those >= len(count) and >= num_contexts were never seen. lower: p of the context one shorter.
    """
    d = discounts(count)
    off = d[np.minimum(count, 3)]
    total = np.bincount(context_of, weights=count, minlength=num_contexts)
    taken = np.bincount(context_of, weights=off, minlength=num_contexts)
    known = np.flatnonzero(context < num_contexts)
    known = known[total[context[known]] > 0]
    seen = known[gram[known] < len(count)]
    p = lower.copy()
    p[known] *= taken[context[known]] / total[context[known]]
    p[seen] += (count[gram[seen]] - off[gram[seen]]) / total[context[seen]]
    return p


class Counts(NamedTuple):
    """The counts of the n-grams of one length on a rung, which is a prefix of the text."""
    raw: np.ndarray
    context_of: np.ndarray
    num_contexts: int


def counted(grams: Grams, contexts: Grams, m: int, num_tokens: int) -> Counts:
    first = grams.first[:np.searchsorted(grams.first, num_tokens)]
    ids = grams.ids[:num_tokens]
    num_contexts = 1 if m == 1 else int(np.searchsorted(contexts.first, num_tokens))
    return Counts(np.bincount(ids[ids >= 0], minlength=len(first)), contexts.ids[first - 1], num_contexts)


def left_neighbours(longer: Grams, grams: Grams, num_tokens: int) -> np.ndarray:
    """How many different tokens stand to the left of each n-gram of the first num_tokens tokens."""
    first = longer.first[:np.searchsorted(longer.first, num_tokens)]
    return np.bincount(grams.ids[first], minlength=int(np.searchsorted(grams.first, num_tokens)))


def held_out(tokens, depth, rungs, held, max_context: int, vocab_size: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (context n, index of the rung, p [held]) for n = 0..max_context and every rung.

    tokens [N]: training text, then held-out text. depth [N]: tokens before each in its piece; no context is longer.
    rungs: increasing numbers of training tokens, each a prefix of `tokens` that ends with a piece. held: positions to
    predict, at or after rungs[-1], each with depth >= max_context.
    """
    contexts = empty_context(len(tokens))
    grams = extend(contexts, tokens, depth, 1)
    lower = [np.full(len(held), 1 / vocab_size) for _ in rungs]
    for n in range(max_context + 1):
        longer = extend(grams, tokens, depth, n + 2) if n < max_context else None
        context, gram = contexts.ids[held - 1], grams.ids[held]
        for r, num_tokens in enumerate(rungs):
            counts = counted(grams, contexts, n + 1, num_tokens)
            yield n, r, interpolate(*counts, gram, context, lower[r])
            if longer is not None:
                left = left_neighbours(longer, grams, num_tokens)
                lower[r] = interpolate(left, counts.context_of, counts.num_contexts, gram, context, lower[r])
        contexts, grams = grams, longer
