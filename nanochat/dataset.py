"""
The pretraining data: a folder of parquet shards, and manifest.json, which lists the shards.

    python -m nanochat.dataset --builtin                       # offline: source code of the installed packages
    python -m nanochat.dataset --from my_texts/ --name mine    # your own .txt .md .jsonl .jsonl.gz .parquet
    python -m nanochat.dataset -n 8                            # 8 training shards of ClimbMix and its validation shard

manifest.py knows the folder, and shards.py reads and writes the shards in it. corpus.py and download.py make the
shards, and are imported only when they are needed. The names in __all__ are for callers outside the library, because
upstream's dataset.py has some of them. Modules of the library import from manifest.py and shards.py. Never imports
torch.
"""

import argparse
import re
import sys
from pathlib import Path

from nanochat.checks import cut
from nanochat.command_line import Parser, say_error
from nanochat.common import get_base_dir, paste_setting, quote_word
from nanochat.manifest import (
    DATA_FOLDER,
    SOURCES,
    get_data_dir,
    get_dataset_id,
    lab_home,
    list_parquet_files,
    shard_name,
)
from nanochat.options import hyphenate
from nanochat.shards import MAX_DOC_CHARS, iter_texts
from nanochat.text_walk import shown

# What every system takes for the name of a folder. A Windows device (nul, com1) is not one.
FOLDER_NAME = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|\Z))\w(?:[\w .+=@,-]{0,98}\w)?")
__all__ = ["build_builtin", "get_data_dir", "get_dataset_id", "iter_texts", "list_parquet_files"]


def build_builtin(data_dir, **options) -> dict:
    """corpus.build_builtin: returns the manifest; does nothing where the same corpus is already there."""
    from nanochat import corpus
    return corpus.build_builtin(data_dir, **options)


def lab_data_dir(name: str) -> Path:
    """Data folder of the corpus `name`, in a base dir of its own: no other corpus or tokenizer is touched."""
    return lab_home(name) / DATA_FOLDER


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m nanochat.dataset", allow_abbrev=False,
                    description="Make or download the pretraining data.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-n", "--num-files", type=int,
                      help="download this many training shards and the validation shard (-1 = all)")
    what.add_argument("--builtin", action="store_true",
                      help="build the corpus from the source code of installed packages")
    what.add_argument("--from", dest="paths", action="append", metavar="PATH",
                      help="build a corpus from a file or folder of .txt .md .jsonl .jsonl.gz .parquet "
                           "(may be repeated)")
    parser.add_argument("--name",
                        help="name of the corpus that --from and --builtin make (default for --builtin: builtin)")
    parser.add_argument("--max-doc-chars", type=int, help="cut documents to this many characters; 0 = keep them whole "
                        f"(--from and --builtin; default {MAX_DOC_CHARS})")
    parser.add_argument("--source", choices=SOURCES, default="climbmix",
                        help="what -n downloads (default: %(default)s)")
    parser.add_argument("--base-url", help="with -n: a mirror that holds the same shards")
    parser.add_argument("-w", "--num-workers", type=int, default=4,
                        help="with -n: parallel downloads (default: %(default)s)")
    return parser


def _download(args) -> int:
    from nanochat.download import download_shards
    folder, last, url = SOURCES[args.source]
    if args.base_url and not args.base_url.startswith(("https://", "http://")):
        raise ValueError(f"--base-url={cut(args.base_url)}: expected an address that begins with https:// or http://")
    data_dir = get_base_dir() / folder
    missing = download_shards(data_dir, args.num_files, args.source, args.base_url or url, args.num_workers)
    if missing:
        print(f"error: {len(missing)} shards are missing: {', '.join(missing)}; the same command tries again",
              file=sys.stderr)
        return 1
    print(f"{data_dir} is complete; validation shard {shard_name(last)}")
    if get_data_dir() != data_dir:
        print(f"note: {get_data_dir()} exists and is what training reads; "
              "set NANOCHAT_BASE_DIR to a fresh folder to use this one")
    return 0


def _build(args) -> int:
    from nanochat import corpus
    data_dir = lab_data_dir(args.name)
    max_doc_chars = MAX_DOC_CHARS if args.max_doc_chars is None else args.max_doc_chars
    if args.builtin:
        manifest = corpus.build_builtin(data_dir, max_doc_chars=max_doc_chars)
    else:
        manifest = corpus.build_from_paths(data_dir, args.paths, max_doc_chars=max_doc_chars)
    print(corpus.summary(manifest))
    print(f"{data_dir} is complete. To compare candidates on it:\n"
          f"make protocol DATA={quote_word(args.name)} LABEL=first CANDIDATE=--no-smear\n"
          f"To train on it:\n{paste_setting('NANOCHAT_BASE_DIR', data_dir.parent)}")
    return 0


def main(argv=None) -> int:
    if hasattr(sys.stdout, "reconfigure"):  # names of files may be of any encoding, or none
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = build_parser()
    args = parser.parse_args(hyphenate(sys.argv[1:] if argv is None else argv))
    args.name = args.name or ("builtin" if args.builtin else None)
    if args.num_files is not None and (args.name or args.max_doc_chars is not None):
        parser.error("--name and --max-doc-chars go with --builtin and --from: downloaded shards are kept as they are")
    if args.paths and not args.name:
        parser.error("--from needs --name NAME: the folder under $NANOCHAT_BASE_DIR/lab to build in")
    if args.name and not FOLDER_NAME.fullmatch(args.name):
        parser.error(f"--name={shown(args.name)}: expected a plain folder name: letters, digits, spaces and _ . + - =, "
                     "a letter or digit first and last")
    try:
        return _build(args) if args.num_files is None else _download(args)
    except (ValueError, OSError) as e:
        say_error(e)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on (downloads keep what they have)", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
