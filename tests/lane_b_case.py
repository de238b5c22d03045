"""Made-up sources whose correlations are known exactly, for the tests of Lane B."""

import numpy as np

from nanochat.lab.horizon.correlation import Curve, measure_spool, pair_counts
from nanochat.lab.horizon.decay import power_law
from nanochat.lab.horizon.entropy import EntropyCurve
from nanochat.lab.horizon.gamma import GammaFit
from nanochat.lab.horizon.ranks import frequent_ranks
from nanochat.lab.horizon.source import TokenSource
from nanochat.lab.horizon.spool import Spool, spooled

LOSSES = EntropyCurve("ngram", np.arange(4), np.array([6.0, 5.0, 4.5, 4.3]), np.full(4, 0.01),
                      np.array([6.0, 4.8, np.nan, np.nan]), np.array([np.nan, 0.4, 0.3, np.nan]))
FOUND = GammaFit(0.3, (0.24, 0.36), 0.0, False, (1, 3), ("gamma_window_sensitive",))


def source_of(*arrays, vocab_size, documents=False):
    return TokenSource(lambda: iter(arrays), vocab_size, documents)


def correlation_curve(source, **options) -> Curve:
    with spooled(source) as spool:
        return measure_spool(spool, **options)


def spool_of(arrays, vocab_size):
    tokens = np.concatenate(arrays)
    return Spool(tokens, np.cumsum([len(a) for a in arrays]), np.bincount(tokens, minlength=vocab_size), True)


def zipf(vocab_size):
    p = 1 / np.arange(1, vocab_size + 1)
    return p / p.sum()


def draw(cumulative, rng, size):
    """Indices with the probabilities whose cumulative sum is given."""
    return np.minimum(np.searchsorted(cumulative, rng.random(size), side="right"), len(cumulative) - 1)


def drifting(n, vocab_size, seed=0):
    """Tokens that depend on the one before: u is followed by u, u + 1 or u + 2."""
    steps = np.random.default_rng(seed).choice(3, n, p=[0.5, 0.3, 0.2])
    x = np.cumsum(steps) + draw(np.cumsum(zipf(7)), np.random.default_rng(seed + 1), n)
    return (x % vocab_size).astype(np.int64)


class SignOf:
    """The sign of a Gaussian picks one of two laws p (1 +- eps phi), and signs n apart agree with E[s s'] = signs(n).

    So C(n) = eps^2 signs(n) (p phi) (p phi)', of rank one. latent(n) is the autocovariance of the Gaussian.
    """

    def __init__(self, signs, latent=None, vocab_size=1024, eps=0.98):
        self.signs, self.latent = signs, latent or (lambda n: np.sin(np.pi / 2 * signs(n)))
        self.eps, self.p = eps, zipf(vocab_size)
        self.phi, total = np.empty(vocab_size), 0.0
        for i, p in enumerate(self.p):  # p phi sums to zero, almost: both laws are laws
            self.phi[i] = -1 if total > 0 else 1
            total += p * self.phi[i]
        self.phi -= total

    def norm(self, lags, top_k=256):
        """||C(n)|| over the top_k most probable tokens, Frobenius and operator norm alike."""
        level = np.sum((self.p * self.phi)[:top_k] ** 2)
        return self.eps ** 2 * self.signs(np.asarray(lags)) * level

    def tokens(self, n, seed):
        rng = np.random.default_rng([seed, n])
        positive = gaussian(n, self.latent, rng) > 0
        out = np.empty(n, np.int64)
        for sign in (True, False):
            law = self.p * (1 + (1 if sign else -1) * self.eps * self.phi)
            out[positive == sign] = draw(np.cumsum(law), rng, int((positive == sign).sum()))
        return out


class SignOfGaussian(SignOf):
    """A Gaussian with autocovariance r(n) = (1 + n)^-b: signs agree with E[s s'] = (2 / pi) asin(r)."""

    def __init__(self, b, vocab_size=1024, eps=0.98):
        def latent(n):
            return (1.0 + n) ** -b
        super().__init__(lambda n: (2 / np.pi) * np.arcsin(latent(n)), latent, vocab_size, eps)


def gaussian(n, autocovariance, rng):
    """n values of a stationary Gaussian sequence with this autocovariance, exactly (circulant embedding)."""
    size = 1 << (2 * n - 1).bit_length()
    half = autocovariance(np.arange(size // 2 + 1.0))
    power = np.fft.hfft(half, size)[:size // 2 + 1]
    assert power.min() > -1e-9 * power.max()  # a convex covariance embeds
    noise = rng.normal(size=len(power)) + 1j * rng.normal(size=len(power))
    noise[[0, -1]] = noise[[0, -1]].real * np.sqrt(2)
    return np.fft.irfft(np.sqrt(np.maximum(power, 0) * size / 2) * noise, size)[:n]


def two_state_chain(n, stay=0.95, seed=0):
    """A symmetric Markov chain on {0, 1}.

    C(n) = (2 stay - 1)^n C(0), C(0) = [[1, -1], [-1, 1]] / 4, with norm 1/2 at lag 0.
    """
    flips = np.random.default_rng(seed).random(n) > stay
    return np.cumsum(flips) % 2


def brute_force(tokens, lag, vocab_size):
    """C(lag) by its definition, one pair at a time, and its number of pairs."""
    joint, n = np.zeros((vocab_size, vocab_size)), len(tokens) - lag
    for i in range(n):
        joint[tokens[i], tokens[i + lag]] += 1 / n
    return joint - np.outer(joint.sum(1), joint.sum(0)), n


def raw_norms(tokens, lags, top_k=256):
    """The trap: the plug-in ||C(n)||, noise and all."""
    ranks = frequent_ranks(np.bincount(tokens), top_k)[tokens]
    for lag in lags:
        joint = pair_counts(ranks, int(lag), top_k + 1) / (len(tokens) - lag)
        yield np.linalg.norm((joint - np.outer(joint.sum(1), joint.sum(0)))[:top_k, :top_k])


def raw_beta(tokens, lags):
    return power_law(lags, np.array(list(raw_norms(tokens, lags))))[0]


def two_kinds(documents, length, seed=0):
    """(source, norm of its plateau): documents of two kinds, each iid; C = w (1 - w) (p - q) (p - q)' at every lag.

    The kinds come in a random order, a share w = 0.4 of the first.
    """
    p, q = zipf(64), zipf(64)[::-1]
    rng = np.random.default_rng(seed)
    first = rng.permutation(documents) < 0.4 * documents
    texts = [draw(np.cumsum(p if kind else q), rng, length) for kind in first]
    return source_of(*texts, vocab_size=64, documents=True), 0.4 * 0.6 * np.sum((p - q) ** 2)
