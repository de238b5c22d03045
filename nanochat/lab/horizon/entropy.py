"""
Entropy curves: how hard the next token is to predict from n tokens of context, and the losses by position of a model.

Two sources give a curve, and no other source does. `positional`: the mean validation loss of a trained model at
position n + 1, which scripts.base_loss --per-position measures. `ngram`: held-out Kneser-Ney, extrapolated in the size
of the corpus (ngram.py). Both are upper bounds of H_n. A plug-in conditional entropy is no bound: it falls to 0 as soon
as most contexts are seen once, and gives gamma about 2. gamma.py fits gamma to a curve.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat.common import read_json
from nanochat.lab.commands import paste
from nanochat.lab.horizon.source import Refusal

SOURCES = ("positional", "ngram")
PER_OCTAVE = 3  # contexts of a fit; with all integers the largest contexts would decide it
LEAST_CONTEXTS = 3  # of a fit; A and gamma alone go through any two
BLOCKS = 32  # of the text that a positional loss is measured on
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EntropyCurve:
    """Upper bounds of H_n by context n, arrays over contexts. A source that is not in SOURCES is refused.

    loss, se: measured, nats per token; se from blocks of text. h_extrapolated: the loss in an infinite corpus (ngram),
    nan where the ladder does not determine it. h_error: its systematic error, mostly common to the contexts. delta: the
    exponent d_n of L_n(P), nan where nothing is left to learn. blocks [blocks, contexts]: block values whose mean is
    the fitted quantity (loss; for ngram jackknife pseudo-values of h_extrapolated). Contexts share their text, and the
    blocks carry the correlation between them.
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
        """The values that a power law is fitted to: a model's loss, an n-gram ladder's extrapolated entropy."""
        return self.h_extrapolated if self.source == "ngram" else self.loss


def few_an_octave(context) -> np.ndarray:
    """A mask of the contexts: True for PER_OCTAVE an octave, rounded to integers."""
    return np.isin(context, np.unique(np.rint(2 ** (np.arange(PER_OCTAVE * 40) / PER_OCTAVE))))


# -----------------------------------------------------------------------------
# Losses by position: what scripts.base_loss --per-position measures

def measure_command(model_tag: str, path) -> str:
    """The command, to paste, that measures the losses by position of a model."""
    return paste(["python", "-m", "scripts.base_loss", f"--model-tag={model_tag}", "--split=val",
                  f"--per-position={path}"])


def read_positions(path) -> EntropyCurve:
    """The positional curve of a file that scripts.base_loss --per-position wrote.

    Raises ValueError for a file of another kind.
    """
    needed = ("contexts", "loss_nats", "se_nats", "block_loss_nats")
    try:
        facts = read_json(path)
        if facts.get("schema_version") != SCHEMA_VERSION:
            raise ValueError
        contexts, *losses = (np.array(facts[name], dtype=np.float64) for name in needed)
        shapes = [values.shape[-1:] for values in (contexts, *losses)]
        if len(set(shapes)) > 1 or [values.ndim for values in (contexts, *losses)] != [1, 1, 1, 2]:
            raise ValueError
        if not np.isfinite(contexts).all():
            raise ValueError
    except (ValueError, TypeError, KeyError, OverflowError):  # another version, or values of another type
        raise ValueError(f"{path} holds no losses by position of schema {SCHEMA_VERSION}; write it again: "
                         + measure_command(Path(path).name.removesuffix("_positions.json"), path)) from None
    loss, se, blocks = losses
    return EntropyCurve("positional", contexts.astype(np.int64), loss, se, blocks=blocks)


def draw_chunks(lengths: np.ndarray, longest: int, num_tokens: int, seed: int) -> tuple[int, np.ndarray]:
    """(width, starts [chunks]): seeded random stretches of running text, about num_tokens in all.

    lengths: tokens of each document of a stream. A chunk lies inside one document, wherever it starts. Documents
    shorter than `longest` give chunks too, because the width is halved until at least half of the tokens can start a
    chunk. Starts are sorted offsets into the stream, all different, and their number is a multiple of BLOCKS. Raises
    ValueError where there are not enough tokens.
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
    """The measured part of a file of losses by position; the ids of model and corpus are not in it.

    block_losses [blocks, contexts]: nats per token, each a mean over the same number of chunks, in contiguous parts of
    the text.
    """
    blocks, width = block_losses.shape
    se = block_losses.std(axis=0, ddof=1) / math.sqrt(blocks)
    return dict(schema_version=SCHEMA_VERSION, contexts=list(range(width)),
                loss_nats=np.round(block_losses.mean(axis=0), 6).tolist(),
                se_nats=np.round(se, 6).tolist(), block_loss_nats=np.round(block_losses, 6).tolist(),
                num_chunks=num_chunks, num_tokens=num_chunks * width)
