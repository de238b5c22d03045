"""References for the tests of lab/horizon/ngram.py: Kneser-Ney with dictionaries, and sources whose H_n is known."""

from collections import Counter

import numpy as np
from scipy.special import zeta


class NaiveKneserNey:
    """Interpolated modified Kneser-Ney of one context length n, by the formulas, from dictionaries over tuples."""

    def __init__(self, pieces, n: int, vocab_size: int):
        self.n, self.vocab_size = n, vocab_size
        grams = {m: Counter(tuple(p[i:i + m]) for p in pieces for i in range(len(p) - m + 1)) for m in range(1, n + 2)}
        self.counts = {n: grams[n + 1]}
        for k in range(n):
            self.counts[k] = Counter(gram[1:] for gram in grams[k + 2])
        self.discounts = {k: self.three_discounts(Counter(c.values())) for k, c in self.counts.items()}

    @staticmethod
    def three_discounts(n):
        if not n[1] or not n[2]:
            return [0.5, 0.5, 0.5]
        y = n[1] / (n[1] + 2 * n[2])
        return [min(max(1 - 2 * y * n[2] / n[1], 1e-3), 1), min(max(2 - 3 * y * n[3] / n[2], 1e-3), 2),
                min(max(3 - 4 * y * n[4] / n[3], 1e-3), 3) if n[3] else 0.5]

    def p(self, context: tuple, w: int, k: int | None = None) -> float:
        k = self.n if k is None else k
        if k < 0:
            return 1 / self.vocab_size
        context = tuple(context)[len(context) - k:]
        followers = {g[-1]: c for g, c in self.counts[k].items() if g[:-1] == context}
        lower = self.p(context[1:], w, k - 1)
        if not followers:
            return lower
        d, total = self.discounts[k], sum(followers.values())
        c = followers.get(w, 0)
        return ((c - d[min(c, 3) - 1] if c else 0) + sum(d[min(c, 3) - 1] for c in followers.values()) * lower) / total


# -----------------------------------------------------------------------------
# A renewal process: a 1, then zeros; P(gap > k) = (k/3 + 1)^-t

def renewal_tokens(num_tokens: int, t: float, rng) -> np.ndarray:
    gaps = 1 + np.floor(3 * (rng.random(num_tokens) ** (-1 / t) - 1)).astype(np.int64).clip(max=num_tokens)
    at = np.cumsum(gaps)
    tokens = np.zeros(num_tokens, dtype=np.int64)
    tokens[at[at < num_tokens]] = 1
    return tokens


def renewal_law(n: int, t: float):
    """(weight [n + 1], chance [n + 1]) of the states that n tokens of the past can tell apart.

    A state is the number of zeros since the last 1, or that there were n. weight: how often each state occurs; chance:
    that a 1 follows. With s_j = P(gap > j) the weights are s_j / mean gap, and a 1 follows j zeros with chance 1 -
    s_{j+1} / s_j; sums of s over the tail are Hurwitz zeta values.
    """
    s = (np.arange(n + 1) / 3 + 1) ** -t
    everything, tail = 3 ** t * zeta(t, np.array([3.0, n + 3.0]))  # sum of s over all j, and over j >= n
    return np.append(s[:-1], tail) / everything, np.append(1 - s[1:] / s[:-1], s[-1] / tail)


def renewal_entropy(n: int, t: float) -> float:
    """H_n in nats, exactly."""
    weight, p = renewal_law(n, t)
    return float(weight @ (-p * np.log(p) - (1 - p) * np.log1p(-p)))


def renewal_loss(tokens: np.ndarray, at: np.ndarray, n: int, t: float) -> float:
    """Mean loss in nats at the positions `at` of an observer that knows the law and sees n tokens."""
    last = np.maximum.accumulate(np.where(tokens == 1, np.arange(len(tokens)), -n - 1))
    p = renewal_law(n, t)[1][np.minimum(at - 1 - last[at - 1], n)]
    return float(-np.log(np.where(tokens[at] == 1, p, 1 - p)).mean())


# -----------------------------------------------------------------------------
# Words: independent draws from a dictionary, spelled in letters and closed by a space (token 0)

def make_words(count: int, letters: int, rng) -> list[tuple]:
    words = {tuple(rng.integers(1, letters + 1, size=rng.integers(2, 8))) for _ in range(count)}
    return sorted(words)


def word_tokens(num_tokens: int, words, rng) -> np.ndarray:
    chosen = rng.choice(len(words), size=num_tokens // 3, p=word_weights(len(words)))
    spelled = [np.array(w + (0,)) for w in words]
    return np.concatenate([spelled[i] for i in chosen])[:num_tokens]


def word_weights(count: int) -> np.ndarray:
    p = 1 / np.arange(1, count + 1)
    return p / p.sum()


def word_entropy(n: int, words) -> float:
    """H_n in nats by enumeration.

    The state is the letters since the last space, or the last n letters where none of them was a space.
    """
    nexts: dict[tuple, Counter] = {}
    for word, weight in zip(words, word_weights(len(words))):
        spelled = word + (0,)
        for i, token in enumerate(spelled):
            past = (0,) + word[:i]
            nexts.setdefault(past[-n:] if n else (), Counter())[token] += weight
    mass = np.array([sum(c.values()) for c in nexts.values()])
    entropy = [-sum(v / m * np.log(v / m) for v in c.values()) for c, m in zip(nexts.values(), mass)]
    return float(np.sum(mass * entropy) / mass.sum())


def plug_in_entropy(tokens: np.ndarray, n: int, buckets: int = 2**24) -> float:
    """The trap: entropy of the next token from the counts of the text itself, contexts hashed into buckets."""
    h = np.zeros(len(tokens) - n, dtype=np.uint64)
    for i in range(n):
        h = (h * np.uint64(1_000_003) + tokens[i:len(tokens) - n + i].astype(np.uint64)
             + np.uint64(1)) % np.uint64(2**31 - 1)
    h %= np.uint64(buckets)
    _, pair = np.unique(h * np.uint64(tokens.max() + 1) + tokens[n:].astype(np.uint64), return_counts=True)
    _, context = np.unique(h, return_counts=True)
    return float((np.sum(context * np.log(context)) - np.sum(pair * np.log(pair))) / len(h))
