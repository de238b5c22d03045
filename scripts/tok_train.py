"""
Train the tokenizer on the training shards, or import upstream's:

    python -m scripts.tok_train --vocab-size=32768
    python -m scripts.tok_train --import-pkl ~/.cache/nanochat/tokenizer/tokenizer.pkl

Writes $NANOCHAT_BASE_DIR/tokenizer/ (nanochat/tokenizer_files.py). A tokenizer that a checkpoint there was trained
with is never replaced. Exit code: 0 ok, 2 bad input, with one line that says what is wrong.
"""

import argparse
import sys

from nanochat.checks import MOST_CHANNELS
from nanochat.command_line import Defaults, Parser
from nanochat.common import get_base_dir
from nanochat.options import hyphenate, require
from nanochat.tokenizer import get_tokenizer_dir, get_tokenizer_id, import_tokenizer, train_tokenizer
from nanochat.tokenizer_files import JSON_NAME, PICKLE_NAME, TOKEN_BYTES_NAME


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="tok_train", allow_abbrev=False,
                    description="Train a byte-level BPE tokenizer on the training shards, or import "
                                                 "upstream's.",
                                     formatter_class=Defaults)
    parser.add_argument("--max-chars", type=int, default=2_000_000_000, help="train on this many characters at most")
    parser.add_argument("--doc-cap", type=int, default=10_000, help="use this many characters of a document at most")
    parser.add_argument("--vocab-size", type=int, default=32768, help="number of tokens, special tokens included")
    parser.add_argument("--import-pkl", metavar="PATH",
                        help="train nothing: import the tokenizer from upstream's tokenizer.pkl")
    return parser


def run(args):
    if args.import_pkl:
        tokenizer = import_tokenizer(args.import_pkl)
    else:
        require(args.vocab_size <= MOST_CHANNELS, "vocab_size", args.vocab_size, f"at most {MOST_CHANNELS:,} tokens")
        for name in ("max_chars", "doc_cap", "vocab_size"):
            print(f"{name}: {getattr(args, name):,}", flush=True)
        tokenizer = train_tokenizer(get_base_dir(), args.vocab_size, args.max_chars, args.doc_cap)
    folder = get_tokenizer_dir()
    print(f"Saved tokenizer encoding to {folder / PICKLE_NAME}")
    print(f"Saved token_bytes to {folder / TOKEN_BYTES_NAME}")
    print(f"Saved tokenizer {get_tokenizer_id()[:12]} ({tokenizer.get_vocab_size():,} tokens) to {folder / JSON_NAME}")


def main(argv=None):
    parser = build_parser()
    args = parser.parse_args(hyphenate(sys.argv[1:] if argv is None else argv))
    try:
        run(args)
    except (ValueError, OSError) as e:
        parser.error(e)


if __name__ == "__main__":
    main()
