"""
gamma: how fast the next token gets easier to predict as the context grows, H_n - H_inf = A n^-gamma (arXiv:2602.07488).

Two sources give a curve, and nothing else does. `positional`: mean validation loss of a trained model at position n+1.
`ngram`: held-out Kneser-Ney, extrapolated in the size of the corpus (ngram.py). Both are upper bounds of H_n. A plug-in
conditional entropy is none of them: it falls to 0 as soon as most contexts are seen once, and gives gamma about 2.

H_inf is confounded with a slight bend of the power law, so it counts as identified only where its profile-likelihood
interval excludes 0; otherwise H_inf = 0 is the convention, and gamma is an effective exponent of its window.
"""

import math
from dataclasses import dataclass

import numpy as np

from nanochat.common import read_json
from nanochat.lab.horizon.source import Refusal
from nanochat.lab.verdict.stats import Z95, t_above

SOURCES = ("positional", "ngram")
WINDOW = (1, 16)  # contexts fitted where nobody names a window: the paper's for TinyStories
PER_OCTAVE = 3  # contexts of a fit; all integers would let the largest ones decide
LEAST_CONTEXTS, LEAST_FOR_H_INF = 3, 5  # A, gamma and H_inf go through any three
# share of the loss by which a curve may bend away from a power law; assumed. Below 1 % a bend passes for H_inf
MODEL_ERROR = 0.02
H_GRID = np.linspace(0, 0.99, 199)  # of the smallest loss
CHI2_95 = 3.841  # chi-square with one degree of freedom, 95 %
DRAWS = 1000
H_ERROR_SHARED = 0.8  # of the variance of h_error is common to the contexts: 40 ladders of sources with known H_n
FALSE_ALARM = 0.05  # over all m of saturated_from
LEAST_FALL = 0.85  # of what H + A/n would still fall by; the rest is left to curves that bend by MODEL_ERROR
BLOCKS = 32  # of the text that a positional loss is measured on
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EntropyCurve:
    """Upper bounds of H_n by context n, arrays over contexts. Any other source than those of SOURCES is refused.

    loss, se: measured, nats per token; se from blocks of text. h_extrapolated: what an infinite corpus would give
    (ngram), nan where the ladder does not tell; h_error: its systematic error, mostly common to the contexts; delta:
    the exponent d_n of L_n(P), nan where nothing is left to learn. blocks [blocks, contexts]: block values whose mean
    is the fitted quantity (loss; for ngram jackknife pseudo-values of h_extrapolated); they carry the correlation
    between contexts, which share their text.
    """
    source: str
    context: np.ndarray
    loss: np.ndarray
    se: np.ndarray
    h_extrapolated: np.ndarray | None = None
    delta: np.ndarray | None = None
    h_error: np.ndarray | None = None
    blocks: np.ndarray | None = None

    def __post_init__(self):
        if self.source not in SOURCES:
            raise Refusal("gamma_unavailable",
                          f"entropy source {self.source!r}: expected one of {', '.join(SOURCES)}; a plug-in "
                          "conditional entropy collapses with the context, and no warning would make gamma right")

    @property
    def fitted(self) -> np.ndarray:
        """What a power law is fitted to: the loss of a model, the extrapolated entropy of an n-gram ladder."""
        return self.h_extrapolated if self.source == "ngram" else self.loss


@dataclass(frozen=True)
class GammaFit:
    """gamma with its 95 % interval; h_inf_nats is 0 by convention where it is not identified, h_inf_ci95 says what is
    allowed."""
    gamma: float
    ci95: tuple[float, float]
    h_inf_nats: float
    h_inf_identified: bool
    window: tuple[int, int]
    warnings: tuple[str, ...] = ()
    h_inf_ci95: tuple[float, float] | None = None


# -----------------------------------------------------------------------------
# The fit

def fit_gamma(curve: EntropyCurve | None, window: tuple[int, int] | None = None, seed: int = 0) -> GammaFit:
    """Fit H_n - H_inf = A n^-gamma over the contexts of `window` (ends included; default WINDOW, cut to the curve).

    The interval is 1.96 times the root of: the variance over resampled blocks of text (independent errors where the
    curve has no blocks) and the systematic errors of h_extrapolated, and the square of half the spread of gamma over
    narrower windows. Raises Refusal: gamma_unavailable (no curve, or fewer than LEAST_CONTEXTS contexts in the window),
    gamma_not_converged (nothing extrapolated, a model that is blind to part of the window, or the interval reaches 0:
    the loss does not fall with the context).
    """
    if curve is None:
        raise Refusal("gamma_unavailable",
                      "there is no entropy curve: python -m scripts.base_loss --per-position writes one")
    context, used = usable_contexts(curve, window or WINDOW)
    if blind := curve.source == "positional" and saturated_from(curve, used):
        raise Refusal("gamma_not_converged",
                      f"beyond {blind} tokens of context the loss falls less than under any power law with an exponent "
                      f"up to 1: the model does not use what is up to {context[-1]} tokens back, and gamma would be "
                      "its own, or nothing is there to use; train it longer, or on more text")
    value, x = curve.fitted[used], np.log(context)
    sigma = np.hypot(curve.se[used], MODEL_ERROR * value)
    h, h_ci, identified = profile_h_inf(x, value, sigma)
    gamma, _ = log_fit(x, value, h, sigma)
    draws = resample(curve, used, np.random.default_rng(seed))
    smallest = draws.min(axis=-1)
    h_of_draws = np.minimum(best_h_inf(x, draws, sigma)[0] if identified else 0.0, H_GRID[-1] * smallest)
    spread = window_spread(x, value, h, sigma)
    half = Z95 * math.hypot(float(np.std(log_fit(x, draws, h_of_draws, sigma)[0], ddof=1)), spread / 2)
    gamma = float(gamma)
    if not gamma - half > 0:
        raise Refusal("gamma_not_converged",
                      f"gamma {gamma:.3f} +- {half:.3f} over contexts {context[0]}..{context[-1]} may be 0: train the "
                      "model longer, measure more tokens, or choose a window where the curve is one power law")
    warnings = ("gamma_window_sensitive",) if spread > gamma / 2 else ()
    return GammaFit(gamma, (gamma - half, gamma + half), float(h), identified, (int(context[0]), int(context[-1])),
                    warnings, h_ci)


def few_an_octave(context) -> np.ndarray:
    """Which of the contexts are among PER_OCTAVE an octave, rounded."""
    return np.isin(context, np.unique(np.rint(2 ** (np.arange(PER_OCTAVE * 40) / PER_OCTAVE))))


def usable_contexts(curve: EntropyCurve, window) -> tuple[np.ndarray, np.ndarray]:
    """(contexts, their indices in the curve): inside the window, n >= 1, finite and positive, PER_OCTAVE at most."""
    if curve.source == "ngram":
        check_converged(curve)
    ok = np.isfinite(curve.fitted) & (curve.fitted > 0) & few_an_octave(curve.context)
    used = np.flatnonzero(ok & (curve.context >= max(1, window[0])) & (curve.context <= window[1]))
    if len(used) < LEAST_CONTEXTS:
        raise Refusal("gamma_unavailable",
                      f"{len(used)} usable contexts in the window {window[0]}..{window[1]}: expected at least "
                      f"{LEAST_CONTEXTS}; widen the window, or measure longer contexts")
    return curve.context[used], used


def saturated_from(curve: EntropyCurve, used) -> int | None:
    """The first context m of the window from which on the loss falls too little for a model that sees the whole window;
    None.

    H + A/n through the contexts m/2..m is continued; any floor and any exponent up to 1 falls further than it. Compared
    is the mean loss over the contexts from m to twice the window's end (where a blind model stays as it was, and one
    that sees no less falls), and the error is that of the difference, block by block. What sets in over an octave or
    more cannot be told from a floor.
    """
    context, end = curve.context, int(curve.context[used[-1]])
    middle = [m for m in curve.context[used][:-1] if m >= 2 * curve.context[used[0]]]
    if not middle:
        return None
    weights = np.array([excess_weights(context, m, end) for m in middle])
    if curve.blocks is None:
        error, df = np.sqrt(weights ** 2 @ curve.se ** 2), math.inf
    else:
        error, df = (curve.blocks @ weights.T).std(axis=0, ddof=1) / math.sqrt(len(curve.blocks)), len(curve.blocks) - 1
    too_high = weights @ curve.loss > t_above(FALSE_ALARM / len(middle), df) * error
    return int(middle[too_high.argmax()]) if too_high.any() else None


def excess_weights(context: np.ndarray, m: int, end: int) -> np.ndarray:
    """Weights [contexts] that make of the losses what they exceed H + A/n by, after m and on average; see
    saturated_from."""
    before = np.flatnonzero((context >= m / 2) & (context <= m))
    after = np.flatnonzero((context > m) & (context <= 2 * end))
    fall = LEAST_FALL * (1 / m - (1 / np.minimum(context[after], end)).mean())
    line = np.linalg.pinv(np.column_stack([np.ones(len(before)), 1 / context[before]]))  # of H and A
    weights = np.zeros(len(context))
    weights[after] = 1 / len(after)
    weights[before] = -np.array([1, 1 / m - fall]) @ line
    return weights


def check_converged(curve: EntropyCurve):
    if curve.h_extrapolated is None:
        raise Refusal("gamma_not_converged",
                      "the n-gram losses are not extrapolated, and at a finite corpus they only bound H_n")
    accepted = np.flatnonzero(np.isfinite(curve.h_extrapolated) & (curve.context > 0))
    if len(accepted) < LEAST_CONTEXTS:
        rows = ", ".join(f"n={n}: {loss:.3f} nats, d={d:.2f}"
                         for n, loss, d in zip(curve.context, curve.loss, curve.delta) if 0 < n <= 5)
        raise Refusal("gamma_not_converged",
                      f"only {len(accepted)} contexts can be carried to an infinite corpus ({rows}); expected at least "
                      f"{LEAST_CONTEXTS}: take more tokens or a smaller vocabulary, or --gamma-source positional")


def log_fit(x, value, h, sigma) -> tuple[np.ndarray, np.ndarray]:
    """(gamma, chi-square) of log(value - h) = a - gamma x by weighted least squares; the last axis is contexts.

    The weights are those of errors sigma in value, carried to the logarithm. The chi-square is that of value itself: in
    logarithms a value just above h would weigh nothing, and such an h would always fit.
    """
    rest = value - np.asarray(h)[..., None]
    y, w = np.log(rest), (rest / sigma) ** 2
    total = w.sum(axis=-1, keepdims=True)
    mean_x, mean_y = ((w * z).sum(axis=-1, keepdims=True) / total for z in (x, y))
    gamma = -(w * (x - mean_x) * (y - mean_y)).sum(axis=-1) / (w * (x - mean_x) ** 2).sum(axis=-1)
    power = np.exp(mean_y - gamma[..., None] * (x - mean_x))
    return gamma, (((rest - power) / sigma) ** 2).sum(axis=-1)


def best_h_inf(x, value, sigma) -> tuple[np.ndarray, np.ndarray]:
    """(h of the least chi-square, chi-square over the grid) for value [..., contexts]; h goes by H_GRID."""
    grid = H_GRID * value.min(axis=-1)[..., None]
    _, chi2 = log_fit(x, value[..., None, :], grid, sigma)
    return np.take_along_axis(grid, chi2.argmin(axis=-1)[..., None], -1)[..., 0], chi2


def profile_h_inf(x, value, sigma) -> tuple[float, tuple[float, float], bool]:
    """(H_inf to use, its 95 % interval, whether 0 is excluded). A fit worse than its errors widens them (Birge's
    ratio).

    The plan refuses an interval that covers [0, 0.8 min L], this one every interval that holds 0: a curve without a
    floor but with a bend well within MODEL_ERROR would often pass the plan's rule at a window of 16, as would a floor
    of one nat, which must not.
    """
    if len(x) < LEAST_FOR_H_INF:
        return 0.0, (0.0, float(value.min())), False
    best, chi2 = best_h_inf(x, value, sigma)
    scale = max(1.0, chi2.min() / (len(x) - 3))
    inside = H_GRID[chi2 <= chi2.min() + CHI2_95 * scale] * value.min()
    identified = bool(inside[0] > 0)
    return float(best) if identified else 0.0, (float(inside[0]), float(inside[-1])), identified


def resample(curve: EntropyCurve, used, rng) -> np.ndarray:
    """DRAWS curves [DRAWS, contexts] as other text of the same kind would have given them; one draw of blocks for all
    contexts."""
    value = curve.fitted[used]
    if curve.blocks is None:
        draws = value + curve.se[used] * rng.standard_normal((DRAWS, len(used)))
    else:
        count = len(curve.blocks)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) / count
        draws = value + weights @ (curve.blocks[:, used] - curve.blocks[:, used].mean(axis=0))
    if curve.h_error is not None:
        common, own = rng.standard_normal((DRAWS, 1)), rng.standard_normal(draws.shape)
        draws += curve.h_error[used] * (math.sqrt(H_ERROR_SHARED) * common + math.sqrt(1 - H_ERROR_SHARED) * own)
    return np.maximum(draws, 1e-6 * value)  # an entropy is positive; such a draw lies far out and widens the interval


def window_spread(x, value, h, sigma) -> float:
    """Largest minus smallest gamma over the windows that keep half of the range in log n."""
    found = [log_fit(x[i:j], value[i:j], h, sigma[i:j])[0] for i in range(len(x)) for j in range(i + 2, len(x) + 1)
             if x[j - 1] - x[i] >= (x[-1] - x[0]) / 2]
    return float(np.ptp(found))


# -----------------------------------------------------------------------------
# Losses by position: what scripts.base_loss --per-position measures

def read_positions(path) -> EntropyCurve:
    """The positional curve of a file that scripts.base_loss --per-position wrote. ValueError where it is not one."""
    facts, needed = read_json(path), {"contexts", "loss_nats", "se_nats", "block_loss_nats"}
    if not isinstance(facts, dict) or facts.get("schema_version") != SCHEMA_VERSION or not needed <= facts.keys():
        raise ValueError(f"{path} holds no losses by position of schema {SCHEMA_VERSION}; write it again: "
                         f"python -m scripts.base_loss --per-position {path}")
    blocks = np.array(facts["block_loss_nats"], dtype=np.float64)
    return EntropyCurve("positional", np.array(facts["contexts"]), np.array(facts["loss_nats"]),
                        np.array(facts["se_nats"]), blocks=blocks)


def draw_chunks(lengths: np.ndarray, longest: int, num_tokens: int, seed: int) -> tuple[int, np.ndarray]:
    """(width, starts [chunks]): seeded random stretches of running text, about num_tokens in all.

    lengths: tokens of each document of a stream. A chunk lies inside one document, wherever it starts. So that
    documents shorter than `longest` give chunks too, the width is halved until at least half of the tokens can start
    one. Starts are sorted offsets into the stream, all different, and BLOCKS times a whole number of them. Raises
    ValueError where there are not that many.
    """
    width = longest
    while width > 1 and 2 * np.maximum(lengths - width + 1, 0).sum() < lengths.sum():
        width //= 2
    room = np.maximum(lengths - width + 1, 0)
    count = min(num_tokens // width, int(room.sum())) // BLOCKS * BLOCKS
    if width <= LEAST_CONTEXTS or count == 0:
        raise ValueError(f"{lengths.sum()} tokens in {len(lengths)} documents, {num_tokens} to be measured: too few "
                         f"for {BLOCKS} chunks of {width}; raise --split-tokens, or take longer documents")
    picked = np.sort(np.random.default_rng(seed).choice(int(room.sum()), size=count, replace=False))
    document = np.searchsorted(np.cumsum(room), picked, side="right")
    return width, picked - (np.cumsum(room) - room)[document] + (np.cumsum(lengths) - lengths)[document]


def position_facts(block_losses: np.ndarray, num_chunks: int) -> dict:
    """What a file of losses by position holds beside who measured them. block_losses [blocks, contexts]: nats per
    token, each a mean over the same number of chunks, in contiguous parts of the text."""
    blocks, width = block_losses.shape
    se = block_losses.std(axis=0, ddof=1) / math.sqrt(blocks)
    return dict(schema_version=SCHEMA_VERSION, contexts=list(range(width)),
                loss_nats=np.round(block_losses.mean(axis=0), 6).tolist(),
                se_nats=np.round(se, 6).tolist(), block_loss_nats=np.round(block_losses, 6).tolist(),
                num_chunks=num_chunks, num_tokens=num_chunks * width)
