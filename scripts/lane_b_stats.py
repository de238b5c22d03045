"""
Measure two statistics of a corpus, and the data-limited exponent that follows from them, alpha_D = gamma / (2 beta):

    python -m scripts.lane_b_stats --output-json=results/stats.json --plot=results/stats.png  # the base dir's dataset
    python -m scripts.lane_b_stats --text=book.txt --gamma-source=none                        # any text, only beta
    python -m scripts.lane_b_stats --model-tag=d4 --max-seq-len=512                           # gamma by a trained model

beta says how fast correlations between tokens fade with their distance n. gamma says how fast the gain from a longer
context fades (ideas/lane_b_data_horizon_theory.md). n* is the largest distance at which correlations are seen. <|bos|>
is left out, because it only marks where a document begins, which is known. No pair of tokens crosses the end of a
document. Temporary files (about 6 bytes a token) go to TMPDIR. Exit code: 0 ok; 2 bad input, or no number could be
measured; 130 interrupted. With exit code 2 the JSON is written too; the reason has a name, printed and in the JSON.
"""

import argparse
import functools
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from nanochat.checks import cut
from nanochat.command_line import Parser, say_error
from nanochat.common import get_base_dir, print0, read_json, to_paste, write_json
from nanochat.lab.commands import EXIT_BAD_INPUT, EXIT_OK, exit_code, require_writable
from nanochat.lab.horizon import correlation, decay, stats
from nanochat.lab.horizon.entropy import measure_command, read_positions
from nanochat.lab.horizon.gamma import fit_gamma
from nanochat.lab.horizon.ngram import ngram_curve
from nanochat.lab.horizon.repeats import Repeats
from nanochat.lab.horizon.source import Refusal, TokenSource
from nanochat.lab.report.index import index_for
from nanochat.lab.table import number, table
from nanochat.options import hyphenate

MAX_TOKENS = 1 << 25
BATCH_CHARS = 1_000_000  # of text, tokenized at a time
STREAMS = (".txt", ".md")  # a file of these is one stream, of others the texts are documents
SPECIAL_TEXT = re.compile(r"<\|[^|<>\s]{1,32}\|>|</?s>|<(?:unk|pad|bos|eos|mask|sep|cls)>|\[(?:UNK|PAD|CLS|SEP|MASK)\]",
                          re.IGNORECASE)
OFTEN = 1e-4  # occurrences a token, from which split special tokens are seen in the statistics


def build_parser():
    parser = Parser(prog="python -m scripts.lane_b_stats", allow_abbrev=False,
                    description="Measure beta, gamma and alpha_D of a corpus, or say why they cannot be measured.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--tokens", type=Path, metavar="FILE.npy",
                        help="read a stream of token ids instead of the dataset")
    source.add_argument("--text", type=Path, metavar="FILE",
                        help="read this file instead of the dataset, with the tokenizer of the base dir: .txt or .md "
                             "(one stream), .jsonl, .jsonl.gz or .parquet (documents)")
    parser.add_argument("--vocab-size", type=int, metavar="V",
                        help="with --tokens: size of their vocabulary (default: the largest id + 1)")
    parser.add_argument("--split", choices=("train", "val"), default="train",
                        help="split of the dataset to read (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, metavar="N",
                        help="read at most this many tokens (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=correlation.TOP_K, metavar="K",
                        help="count pairs of the K most frequent tokens (default: %(default)s)")
    parser.add_argument("--max-lag", type=int, default=correlation.MAX_LAG, metavar="N",
                        help="largest distance between the tokens of a pair; a quarter of the median document where "
                             "that is less (default: %(default)s)")
    parser.add_argument("--blocks", type=int, metavar="B",
                        help="cut the corpus into this many blocks (default: 16, and 32 from 10 million tokens)")
    parser.add_argument("--centering", choices=correlation.CENTERINGS, default="block",
                        help="'document' also subtracts the correlations that each document's own choice of words "
                             "explains; use it for lags up to a fiftieth of the median document (default: %(default)s)")
    parser.add_argument("--fit-window", type=window, metavar="LO:HI",
                        help="lags that the headline beta is fitted on (default: 1 to the smaller of n* and a quarter "
                             "of --max-seq-len)")
    parser.add_argument("--max-seq-len", type=int, metavar="T", help="context length of the models that alpha_D is for")
    parser.add_argument("--bootstrap", type=int, default=decay.ROUNDS, metavar="N",
                        help="how often the blocks are drawn again for the intervals (default: %(default)s)")
    parser.add_argument("--gamma-source", choices=("positional", "ngram", "none"),
                        help="measure gamma from a model's losses by position, from n-gram counts, or not at all "
                             "(default: positional with --model-tag, else ngram)")
    parser.add_argument("--model-tag", metavar="TAG",
                        help="model whose losses by position scripts.base_loss --per-position has written")
    parser.add_argument("--seed", type=int, default=0, help="seed of resamplings and samples (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N",
                        help="processes that count; their number changes no result (default: %(default)s)")
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write all results to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png",
                        help="draw |C(n)| and the losses by context to this file")
    return parser


def window(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) < int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected two lags LO:HI, as in 1:32")
    return int(found[1]), int(found[2])


def check(args):
    for name, (least, most) in stats.BOUNDS.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            expected = f"at least {least}" if value < least else f"at most {most:,}"
            raise ValueError(f"--{name.replace('_', '-')}={cut(value)}: expected {expected}")
    if args.vocab_size and not args.tokens:
        raise ValueError(f"--vocab-size={args.vocab_size} goes with --tokens: a text has the vocabulary of the "
                         "tokenizer")
    if args.gamma_source == "positional" and not args.model_tag:
        raise ValueError("--gamma-source=positional needs --model-tag TAG: the model whose losses by position are "
                         "to be read")
    if args.model_tag and args.gamma_source in ("ngram", "none"):
        raise ValueError(f"--model-tag={args.model_tag} goes with --gamma-source=positional, not {args.gamma_source}")
    if args.model_tag and (args.text or args.tokens):
        raise ValueError(f"--model-tag={args.model_tag}: its losses are of the dataset, and gamma and beta must be of "
                         "the same corpus; leave out --text and --tokens")


# -----------------------------------------------------------------------------
# Tokens

def up_to(arrays, max_tokens: int):
    """The arrays, cut where they hold max_tokens in all; prints how far the reading is."""
    total, said = 0, time.perf_counter()
    for array in arrays:
        array = array[:max_tokens - total]
        total += len(array)
        yield array
        if time.perf_counter() - said > 5:
            said = time.perf_counter()
            print0(f"read {total:,} tokens")
        if total >= max_tokens:
            return


class Texts:
    """Token arrays of texts. special: how often the text of a special token was met; a tokenizer splits it like any
    text."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts, self.special = tokenizer, texts, Counter()

    def arrays(self):
        for batch in self._batches():
            for text in batch:
                self.special.update(SPECIAL_TEXT.findall(text))
            yield from (np.array(row, dtype=np.int32) for row in self.tokenizer.encode(batch))

    def _batches(self):
        batch, chars = [], 0
        for text in self.texts():
            batch.append(text)
            chars += len(text)
            if chars >= BATCH_CHARS:
                yield batch
                batch, chars = [], 0
        if batch:
            yield batch

    def split_special(self, num_tokens: int) -> list[str]:
        """Special tokens' texts that are several tokens each, and frequent enough to be seen in the statistics."""
        return [text for text, count in self.special.most_common()
                if count > OFTEN * num_tokens and len(self.tokenizer.encode(text)) > 1]


def open_tokens(args) -> TokenSource:
    try:
        tokens = np.load(args.tokens, mmap_mode="r", allow_pickle=False)
    except EOFError:
        raise ValueError(f"{args.tokens} is empty: expected what numpy.save writes") from None
    except ValueError as e:  # numpy's own words advise to unpickle what it does not know
        raise ValueError(f"{args.tokens} is no array of integers, or is broken: expected what numpy.save writes") from e
    if not isinstance(tokens, np.ndarray):
        raise ValueError(f"{args.tokens} holds several arrays: expected one, as numpy.save writes it")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"{args.tokens} holds {tokens.dtype} of shape {tokens.shape}: expected integers in one "
                         "dimension")
    pieces = [tokens[at:at + (1 << 20)] for at in range(0, len(tokens), 1 << 20)]
    vocab_size = args.vocab_size or max([0, *(int(piece.max()) for piece in pieces)]) + 1
    return TokenSource(lambda: up_to(pieces, args.max_tokens), vocab_size, documents=False)


def open_texts(args, tokenizer) -> tuple[TokenSource, Texts]:
    if args.text:
        from nanochat.corpus import file_texts, find_files
        if args.text.is_dir():
            raise ValueError(f"--text={args.text} is a folder: expected a file; "
                             + to_paste("python -m nanochat.dataset --from makes a dataset of it"))
        files = find_files([args.text])
        texts = Texts(tokenizer, lambda: file_texts(files, whole=False, progress=False))
    else:
        from nanochat.dataset import iter_texts
        texts = Texts(tokenizer, lambda: iter_texts(args.split))
    documents = not (args.text and args.text.suffix.lower() in STREAMS)
    return TokenSource(lambda: up_to(texts.arrays(), args.max_tokens), tokenizer.get_vocab_size(), documents), texts


# -----------------------------------------------------------------------------
# gamma

def positions_path(model_tag: str) -> Path:
    return get_base_dir() / "lane_b" / f"{model_tag}_positions.json"


def read_losses(model_tag: str, ids: dict):
    """The curve that scripts.base_loss wrote for a model. ids: tokenizer_id and dataset_id of this corpus."""
    path = positions_path(model_tag)
    command = measure_command(model_tag, path)
    if not path.exists():
        raise Refusal("gamma_unavailable", f"no losses by position of {model_tag}; measure them: {command}")
    curve, facts = read_positions(path), read_json(path)
    for name, ours in ids.items():
        if facts.get(name) != ours:
            raise ValueError(f"{path} was measured with {name} {str(facts.get(name))[:8]}, this corpus has {ours[:8]}: "
                             f"gamma and beta must be of the same corpus and tokenizer; measure again: {command}")
    return curve


def choose_gamma(args, ids: dict) -> stats.Gamma | None:
    name = args.gamma_source or ("positional" if args.model_tag else "ngram")
    if name == "none":
        return None
    fit = functools.partial(fit_gamma, seed=args.seed)
    if name == "positional":
        return stats.Gamma(name, lambda source: read_losses(args.model_tag, ids), fit)
    return stats.Gamma(name, lambda source: ngram_curve(source, seed=args.seed, say=print0), fit)


# -----------------------------------------------------------------------------
# The command

def measure(args) -> dict:
    options = stats.Options(args.top_k, args.max_lag, args.blocks, args.centering, args.fit_window, args.bootstrap,
                            args.max_seq_len, args.seed, args.workers)
    if args.tokens:
        return stats.collect(open_tokens(args), options, choose_gamma(args, {}), say=print0)
    from nanochat import tokenizer_files
    from nanochat.dataset import get_dataset_id
    from nanochat.tokenizer import get_tokenizer, get_tokenizer_dir
    content = tokenizer_files.read_tokenizer_json(get_tokenizer_dir())
    ids = dict(tokenizer_id=content["tokenizer_id"], dataset_id=None if args.text else get_dataset_id())
    source, texts = open_texts(args, get_tokenizer())
    facts = stats.collect(source, options, choose_gamma(args, ids), tokenizer_files.count_token_bytes(content), print0)
    if split := texts.split_special(facts["num_tokens"] or 1):
        facts["warnings"].append("split_special_token")
        print0(f"special tokens that are split into ordinary ones: {' '.join(split[:5])}")
    return facts | ids


def describe(facts: dict) -> str:
    lines = []
    if facts["beta_windows"]:
        rows = [(f"{w['lo']}..{w['hi']}", str(w["lags"]), number(w["beta"], ".3f"), number(w["se"], ".3f"),
                 number(w["r2"], ".3f"), note)
                for w, note in [*((w, "" if w["whole"] else f"usable to {w['reach']}") for w in facts["beta_windows"]),
                                (facts["beta_window"], "headline")]]
        lines.append(table(["lags", "n", "beta", "bootstrap se", "R2", ""], rows) + "\n")
    for name, key in (("beta", "beta"), (f"gamma ({facts['gamma_source']})", "gamma"), ("alpha_D", "alpha_d")):
        if facts[key] is not None:
            low, high = facts[f"{key}_ci95"]
            lines.append(f"{name} {facts[key]:.3f}, 95 % {low:.3f} to {high:.3f}")
    if facts["n_star_tokens"]:
        lines.append(f"correlations are seen to lag n* = {facts['n_star_tokens']}"
                     + " or more" * facts["n_star_censored"])
    if facts["repeated_share"] is not None:
        lines.append(str(Repeats(facts["repeat_window_tokens"], facts["repeated_share"], facts["boilerplate_share"])))
    lines += [f"warning: {name}: {stats.WARNINGS.get(name, 'see above')}" for name in facts["warnings"]]
    tokens, rate = facts["num_tokens"] or 0, facts["token_lags_per_sec"]
    lines.append(f"{tokens:,} tokens in {facts['elapsed_sec']:.1f} s"
                 + (f", {rate / 1e6:.0f} M token-lags a second" if rate else ""))
    return "\n".join(lines)


def run(args) -> int:
    require_writable(args.output_json, args.plot)
    try:
        check(args)
        facts = measure(args)
    except (ValueError, OSError) as e:
        if args.output_json:  # an older file would pass for the answer
            write_json(args.output_json, stats.nothing_measured(e))
        raise
    if args.output_json:
        write_json(args.output_json, facts)
    if args.plot and facts["curve"]:
        from nanochat.lab.horizon.plot import draw_stats  # matplotlib takes a second
        draw_stats(args.plot, facts)
    index_for(args.output_json)
    print(describe(facts))
    if facts["error"]:
        say_error(facts["error"]["message"])
    return EXIT_BAD_INPUT if facts["error"] else EXIT_OK


def main(argv=None) -> int:
    args = build_parser().parse_args(hyphenate(sys.argv[1:] if argv is None else argv))
    return exit_code(lambda: run(args), "stopped")


if __name__ == "__main__":
    sys.exit(main())
