"""
The two statistics of a corpus and the exponent that follows from them, as one JSON object.

alpha_D = gamma / (2 beta) (arXiv:2602.07488) is the exponent of the data-limited loss where the context is long against
the horizon n*. Reason: P tokens of text have noise ~ P^-1/2 in a correlation, so the correlation at lag n, ~ n^-beta,
is seen up to n ~ P^(1 / (2 beta)). A model that uses contexts up to that n has a loss of H_inf + A n^-gamma, which is
H_inf + A P^-(gamma / (2 beta)).

A refusal is a result: every key stands in the JSON, null where it was not measured, and `error` says why.
"""

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from nanochat.checks import MOST_CHANNELS, MOST_TOKENS
from nanochat.lab.horizon import correlation, decay
from nanochat.lab.horizon.correlation import Curve, measure_spool
from nanochat.lab.horizon.decay import fit_decay, horizon, horizon_warnings, require_positive, significance
from nanochat.lab.horizon.repeats import WORTH_A_WARNING, measure_repeats, refuse_repeated
from nanochat.lab.horizon.source import BAD_INPUT, Refusal, TokenSource
from nanochat.lab.horizon.spool import spooled

SCHEMA_VERSION = 1
# (least, most) of the numbers of scripts.lane_b_stats. The largest take days, or all the memory of a machine: top_k
# tokens make a table of top_k squared counts for each block. measure_spool says the least of its own three itself.
BOUNDS = {"max_tokens": (1, MOST_TOKENS), "bootstrap": (100, 10 ** 6), "workers": (1, 1024),
          "max_seq_len": (1, MOST_TOKENS), "vocab_size": (1, MOST_CHANNELS), "seed": (0, 10 ** 18),
          "top_k": (-math.inf, 2 ** 14), "max_lag": (-math.inf, 10 ** 7), "blocks": (-math.inf, 10 ** 5)}
KEYS = """schema_version error beta beta_ci95 beta_window beta_windows beta_short beta_long n_break curve gamma
    gamma_ci95 gamma_source gamma_window h_curve_nats h_inf_nats h_inf_ci95_nats h_inf_identified n_star_tokens
    n_star_censored alpha_d alpha_d_ci95 num_tokens num_docs bytes_per_token vocab_size top_k top_k_mass centering
    blocks max_seq_len repeat_window_tokens repeated_share boilerplate_share tokenizer_id dataset_id seed elapsed_sec
    tokens_per_sec token_lags_per_sec warnings""".split()
WARNINGS = {
    "broken_power_law": "two slopes describe the decay better than one: beta depends on the lags that are fitted",
    "exponential_mixture": "a sum of two or three exponentials describes the decay as well as a power law does: "
                           "nothing is known of lags beyond those seen",
    "window_sensitive": f"beta differs by more than {decay.WIDE_SPREAD} between windows of lags; its interval says so",
    "horizon_exceeds_context": "correlations reach beyond a quarter of the context, where alpha_D is only a prior",
    "short_documents_document_centering": "centring by document is biased at lags that are long for these documents: "
                                          "they are left out",
    "split_special_token": "special tokens stand in the text and are split into ordinary ones, which correlate: "
                           "replace or drop them",
    "repeated_text": "some of the text stood before: its copies count as correlations, and are no distinct tokens",
    "gamma_floor_sensitive": "the floor H_inf is not identified, and gamma depends on it: its interval has what floors "
                             "that fit alike give, and alpha_D is only a prior",
    "gamma_window_sensitive": "gamma depends on the contexts that are fitted; its interval says so"}


@dataclass(frozen=True)
class Options:
    """The options of the command. max_seq_len: the context T of the models that alpha_D is for, where there are any."""
    top_k: int = correlation.TOP_K
    max_lag: int = correlation.MAX_LAG
    blocks: int | None = None
    centering: str = "block"
    window: tuple[int, int] | None = None
    rounds: int = decay.ROUNDS
    max_seq_len: int | None = None
    seed: int = 0
    workers: int = 1


@dataclass(frozen=True)
class Gamma:
    """The way to gamma: source is its name, curve makes the losses by context of a corpus, fit makes gamma of the
    losses.

    See entropy.py and gamma.py. curve and fit may raise Refusal.
    """
    source: str
    curve: Callable
    fit: Callable


def collect(source: TokenSource, options: Options, gamma: Gamma | None = None, token_bytes=None,
            say=lambda text: None) -> dict:
    """The JSON of scripts.lane_b_stats, except the ids of tokenizer and dataset. A Refusal becomes its `error`.

    token_bytes: bytes of each id [V], for bytes_per_token. Raises ValueError for options that are out of range.
    """
    start = time.perf_counter()
    correlation.check(options.top_k, options.max_lag, options.blocks, options.centering, source.documents,
                      source.vocab_size)
    facts = dict.fromkeys(KEYS) | dict(schema_version=SCHEMA_VERSION, warnings=[], vocab_size=source.vocab_size,
                                       seed=options.seed, centering=options.centering, max_seq_len=options.max_seq_len)
    with _refusals(facts, say), spooled(source) as spool:
        facts |= dict(num_tokens=len(spool.tokens), num_docs=len(spool.ends) if spool.documents else None)
        if token_bytes is not None:
            facts["bytes_per_token"] = float(spool.counts @ np.asarray(token_bytes) / len(spool.tokens))
        if len(spool.tokens) >= correlation.LEAST_TOKENS:  # fewer are refused by name
            _add_repeats(facts, spool)
        with _refusals(facts, say):
            _add_beta(facts, spool, options, say)
        if gamma:
            with _refusals(facts, say):
                _add_gamma(facts, spool, gamma)
    if facts["beta"] and facts["gamma"]:
        facts["alpha_d"], facts["alpha_d_ci95"] = exponent(
            facts["gamma"], facts["gamma_ci95"], facts["beta"], facts["beta_ci95"])
    elapsed = time.perf_counter() - start
    return facts | dict(elapsed_sec=elapsed, tokens_per_sec=(facts["num_tokens"] or 0) / elapsed)


def nothing_measured(error: Exception) -> dict:
    """The JSON where the command itself could not be carried out."""
    return dict.fromkeys(KEYS) | dict(schema_version=SCHEMA_VERSION, warnings=[],
                                      error=dict(code=BAD_INPUT, message=str(error)))


@contextmanager
def _refusals(facts: dict, say):
    """The first refusal becomes the error of the result. A later one is printed, and its name added to the warnings."""
    try:
        yield
    except Refusal as e:
        if facts["error"]:
            facts["warnings"].append(e.code)
            say(str(e))
        else:
            facts["error"] = dict(code=e.code, message=str(e))


def _add_repeats(facts: dict, spool):
    """Before any statistic: of text that repeats itself too much there is none."""
    found = measure_repeats(spool)
    facts |= dict(repeat_window_tokens=found.window, repeated_share=found.share, boilerplate_share=found.boilerplate)
    refuse_repeated(found)
    facts["warnings"] += ["repeated_text"] * (found.share >= WORTH_A_WARNING)


def _add_beta(facts: dict, spool, options: Options, say):
    curve = measure_spool(spool, options.top_k, options.max_lag, options.blocks, options.centering, options.workers,
                          say)
    facts["warnings"] += curve.warnings
    n_star, censored = horizon(curve)
    facts["warnings"] += horizon_warnings(n_star, options.max_seq_len)
    facts |= dict(curve=curve_rows(curve, options), top_k=curve.top_k, top_k_mass=curve.top_k_mass,
                  blocks=curve.grams.shape[1], n_star_tokens=n_star, n_star_censored=censored,
                  token_lags_per_sec=curve.num_tokens * len(curve.lags) / curve.count_sec)
    found = fit_decay(curve, options.max_seq_len, options.window, options.rounds, options.seed)
    facts["warnings"] += [name for name in found.warnings if name not in facts["warnings"]]
    facts |= dict(beta_window=asdict(found.headline), beta_windows=[asdict(window) for window in found.windows])
    if found.hinge:
        facts |= dict(beta_short=found.hinge.short, beta_long=found.hinge.long, n_break=found.hinge.n_break)
    require_positive(found)
    facts |= dict(beta=found.beta, beta_ci95=list(found.ci95))


def curve_rows(curve: Curve, options: Options) -> list[dict]:
    """A row a lag. fro is null where F^2 came out negative, and so is its error.

    The error of a square root is the error of the square / (2 root), which needs a positive square.
    """
    noise = significance(curve, options.rounds, options.seed)
    rows = []
    for i, square in enumerate(curve.squares):
        fro = math.sqrt(square) if square > 0 else None
        rows.append(dict(lag=int(curve.lags[i]), pairs=int(curve.pairs[i]), fro=fro,
                         fro_se=noise.square_se[i] / (2 * fro) if fro else None,
                         op=float(curve.op[i]), op_floor=float(curve.op_floor[i]), valid=bool(noise.valid[i])))
    return rows


def _add_gamma(facts: dict, spool, gamma: Gamma):
    facts["gamma_source"] = gamma.source
    losses = gamma.curve(spool.source())
    facts["h_curve_nats"] = loss_rows(losses)
    found = gamma.fit(losses)
    facts |= dict(gamma=found.gamma, gamma_ci95=list(found.ci95), gamma_window=list(found.window),
                  h_inf_nats=found.h_inf_nats, h_inf_ci95_nats=found.h_inf_ci95 and list(found.h_inf_ci95),
                  h_inf_identified=found.h_inf_identified)
    facts["warnings"] += found.warnings


def loss_rows(losses) -> list[dict]:
    """A row a context of an entropy.EntropyCurve; null where there is no extrapolation."""
    def at(values, i):
        return None if values is None or math.isnan(values[i]) else float(values[i])
    return [dict(context=int(context), loss=at(losses.loss, i), se=at(losses.se, i),
                 h_extrapolated=at(losses.h_extrapolated, i), delta=at(losses.delta, i))
            for i, context in enumerate(losses.context)]


def exponent(gamma: float, gamma_ci95, beta: float, beta_ci95) -> tuple[float, list[float]]:
    """(alpha_D, its 95 % interval).

    Relative errors of a quotient add in quadrature, in logarithms, because a ratio of two positive numbers stays
    positive, and each side on its own: an interval of gamma is longer upwards. The errors of gamma and beta are taken
    as independent.

    >>> alpha, (low, high) = exponent(0.5, (0.5, 0.5), 1.0, (0.8, 1.25))
    >>> round(low, 3), alpha, round(high, 4)
    (0.2, 0.25, 0.3125)
    """
    alpha = gamma / (2 * beta)
    down = math.hypot(math.log(gamma / gamma_ci95[0]), math.log(beta_ci95[1] / beta))
    up = math.hypot(math.log(gamma_ci95[1] / gamma), math.log(beta / beta_ci95[0]))
    return alpha, [alpha * math.exp(-down), alpha * math.exp(up)]
