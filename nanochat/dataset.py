"""
The pretraining data: a folder of parquet shards, and manifest.json, which says what the shards are.

    python -m nanochat.dataset --builtin                       # offline: source code of the installed packages
    python -m nanochat.dataset --from my_texts/ --name mine    # your own .txt .md .jsonl .jsonl.gz .parquet
    python -m nanochat.dataset -n 8                            # 8 training shards of ClimbMix and its validation shard

Shards are upstream nanochat's: one string column `text`, row groups of documents, and the last shard
in sorted order is the validation split. The manifest pins that shard by name: without it, upstream
silently validates on a training shard when the last one is missing, and waits for ever on one shard.

This file reads, and holds the command line. Shards are made by corpus.py and download.py, imported
only when asked for. Never imports torch.
"""

import argparse
import contextlib
import functools
import os
import shlex
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import get_base_dir, hash_json, print0, read_json, to_paste, write_json
from nanochat.options import hyphenate

SCHEMA_VERSION = 1
DATA_FOLDER, OLD_DATA_FOLDER = "base_data_climbmix", "base_data"  # the second: upstream's before March 2026
MANIFEST = "manifest.json"
MAX_DOC_CHARS = 1000
HF = "https://huggingface.co/datasets/karpathy"
# name: (folder under the base dir, index of the validation shard = the last one, URL)
SOURCES = {
    "climbmix": (DATA_FOLDER, 6542, f"{HF}/climbmix-400b-shuffle/resolve/main"),
    "fineweb-edu": (OLD_DATA_FOLDER, 1822, f"{HF}/fineweb-edu-100b-shuffle/resolve/main"),
}
HOW_TO_MAKE = to_paste("make some: python -m nanochat.dataset --builtin (offline), or -n 8 (downloads ClimbMix); --help has the rest")


def shard_name(index: int) -> str:
    return f"shard_{index:05d}.parquet"


@functools.lru_cache(maxsize=None)
def _say_once(message: str):
    print0(message)


# -----------------------------------------------------------------------------
# The folder and its manifest

def get_data_dir(base_dir=None) -> Path:
    base_dir = get_base_dir() if base_dir is None else Path(base_dir)
    path, old = base_dir / DATA_FOLDER, base_dir / OLD_DATA_FOLDER
    if not path.exists() and old.exists():
        _say_once(f"{path} does not exist: reading {old}, the folder of upstream's older dataset")
        return old
    return path


def list_parquet_files(data_dir=None) -> list[Path]:
    """Every shard in the folder, sorted by name. None: FileNotFoundError with the command that makes some."""
    data_dir = get_data_dir() if data_dir is None else Path(data_dir)
    paths = sorted(p for p in data_dir.glob("*.parquet") if not p.name.startswith("."))
    if not paths:
        raise FileNotFoundError(f"no shards (*.parquet) in {data_dir}; {HOW_TO_MAKE}")
    return paths


def read_manifest(data_dir) -> dict | None:
    """manifest.json of a dataset folder, or None where there is none (a folder that upstream made)."""
    path = Path(data_dir) / MANIFEST
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as e:
        raise ValueError(f"{path} is not valid JSON ({e}); delete it, or build the dataset again") from e


def dataset_id(shards: list[dict], validation_shard: str, split_rule: str) -> str:
    """Content hash of a dataset. No clock, path or machine goes in; nor, where the documents' own hash is
    known, do the bytes of the file, which change with the version of the compressor."""
    rows = [[s["name"], s.get("text_sha256") or s["sha256"], s["documents"], s["row_groups"]] for s in shards]
    return hash_json(dict(shards=sorted(rows), validation_shard=validation_shard, split_rule=split_rule))


def write_manifest(data_dir, *, shards, validation_shard, split_rule, max_doc_chars, source, **facts) -> dict:
    """Written last, when every shard is whole: its presence says that the dataset is complete."""
    manifest = dict(schema_version=SCHEMA_VERSION, dataset_id=dataset_id(shards, validation_shard, split_rule), source=source,
                    max_doc_chars=max_doc_chars, split_rule=split_rule, validation_shard=validation_shard, **facts, shards=shards)
    write_json(Path(data_dir) / MANIFEST, manifest)
    return manifest


def get_dataset_id(base_dir=None) -> str:
    """The manifest's id; a folder without manifest is known by the names and sizes of its shards."""
    data_dir = get_data_dir(base_dir)
    if manifest := read_manifest(data_dir):
        return manifest["dataset_id"]
    return hash_json([[p.name, p.stat().st_size] for p in list_parquet_files(data_dir)])


@contextlib.contextmanager
def dataset_lock(data_dir: Path):
    """One writer a folder. The lock lies beside the folder, because the folder itself may be replaced."""
    from filelock import FileLock, Timeout
    with writing(data_dir.parent):
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(data_dir.parent / f".{data_dir.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print0(f"waiting for the process that is writing {data_dir}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing(path):
    """A full disk or a read-only folder fails with an OSError that names `path`."""
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, f"cannot write {path}: {e.strerror or e}; free some space, or set NANOCHAT_BASE_DIR "
                      "to a folder that can be written") from e


# -----------------------------------------------------------------------------
# Reading

def _listed(manifest: dict, data_dir: Path) -> list[Path]:
    """The shards of the manifest, each there in full. Others in the folder are left out, and that is said."""
    shards = {s["name"]: s["bytes"] for s in manifest["shards"]}
    again = f"build or download the dataset again, or delete {data_dir / MANIFEST} to read what is there"
    names = sorted({*shards, manifest["validation_shard"]})
    for name in names:
        path = data_dir / name
        kind = "validation shard" if name == manifest["validation_shard"] else "shard"
        if not path.is_file():
            raise FileNotFoundError(f"the {kind} {path} is missing; {again}")
        if name in shards and path.stat().st_size != shards[name]:
            raise ValueError(f"the {kind} {path} has {path.stat().st_size} bytes, its manifest says {shards[name]}; "
                             f"delete that shard, then {again}")
    extra = {p.name for p in list_parquet_files(data_dir)} - {*names}
    if extra:
        _say_once(f"{data_dir}: {len(extra)} shards that the manifest does not list are left out ({min(extra)} ...); "
                  + to_paste("python -m nanochat.dataset -n N adds downloaded ones"))
    return [data_dir / name for name in names]


def split_paths(split: str, data_dir=None) -> list[Path]:
    """Shards of "train" or "val", in order. The validation shard is the one that the manifest pins, else the last.

    Raises FileNotFoundError or ValueError, naming the shard and the next step, when a shard is missing or
    not whole, or when there are fewer than two.
    """
    assert split in ("train", "val"), split
    data_dir = get_data_dir() if data_dir is None else Path(data_dir)
    paths = list_parquet_files(data_dir)
    manifest = read_manifest(data_dir)
    if manifest:
        paths = _listed(manifest, data_dir)
    val = manifest["validation_shard"] if manifest else paths[-1].name
    if len(paths) < 2:
        raise ValueError(f"{data_dir} has one shard ({paths[0].name}): expected at least one to train on and one to "
                         f"validate on; {HOW_TO_MAKE}")
    return [p for p in paths if (p.name == val) == (split == "val")]


@contextlib.contextmanager
def _blaming(path):
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as e:
        raise ValueError(f"the shard {path} cannot be read ({type(e).__name__}: {str(e).splitlines()[0]}); "
                         "delete it, then build or download the dataset again") from e


def row_groups(paths) -> list[tuple[Path, int, int]]:
    """(path, index of the row group in its file, documents in it) in file order; reads metadata only."""
    groups = []
    for path in paths:
        with _blaming(path), pq.ParquetFile(path) as f:
            groups += [(path, i, f.metadata.row_group(i).num_rows) for i in range(f.num_row_groups)]
    return groups


def read_row_group(path, index: int) -> list[str]:
    """Documents of one row group. A corrupt shard is a ValueError that names it (one flipped bit too, where we wrote it)."""
    with _blaming(path), pq.ParquetFile(path, page_checksum_verification=True) as f:
        column = f.read_row_group(index, columns=["text"]).column("text")
        if column.null_count or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise pa.ArrowInvalid(f"column text is {column.type} with {column.null_count} nulls, expected strings")
        return column.to_pylist()


def iter_texts(split: str, data_dir=None):
    """Documents of a split one by one, in file order."""
    for path, index, _ in row_groups(split_paths(split, data_dir)):
        yield from read_row_group(path, index)


# -----------------------------------------------------------------------------
# Command line

def build_builtin(data_dir, **options) -> dict:
    """corpus.build_builtin: returns the manifest; does nothing where the same corpus is already there."""
    from nanochat import corpus
    return corpus.build_builtin(data_dir, **options)


def lab_data_dir(name: str) -> Path:
    """Where a corpus of that name lies: a base dir of its own, so that nobody's tokenizer or shards are touched."""
    base_dir = get_base_dir()
    if base_dir.parent.name == "lab":  # NANOCHAT_BASE_DIR already points to such a corpus: put this one beside it
        base_dir = base_dir.parent.parent
    return base_dir / "lab" / name / DATA_FOLDER


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nanochat.dataset", description="Make or download the pretraining data.",
                                     allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-n", "--num-files", type=int, help="download this many training shards and the validation shard (-1 = all)")
    what.add_argument("--builtin", action="store_true", help="build the corpus from the source code of installed packages")
    what.add_argument("--from", dest="paths", action="append", metavar="PATH",
                      help="build a corpus from a file or folder of .txt .md .jsonl .jsonl.gz .parquet (may be repeated)")
    parser.add_argument("--name", help="name of the corpus that --from and --builtin make (default for --builtin: builtin)")
    parser.add_argument("--max-doc-chars", type=int, help="cut documents to this many characters; 0 = keep them whole "
                        f"(--from and --builtin; default {MAX_DOC_CHARS})")
    parser.add_argument("--source", choices=SOURCES, default="climbmix", help="what -n downloads (default: %(default)s)")
    parser.add_argument("--base-url", help="with -n: a mirror that holds the same shards")
    parser.add_argument("-w", "--num-workers", type=int, default=4, help="with -n: parallel downloads (default: %(default)s)")
    return parser


def _download(args) -> int:
    from nanochat.download import download_shards
    folder, last, url = SOURCES[args.source]
    data_dir = get_base_dir() / folder
    missing = download_shards(data_dir, args.num_files, args.source, args.base_url or url, args.num_workers)
    if missing:
        print(f"error: {len(missing)} shards are missing: {', '.join(missing)}; the same command tries again", file=sys.stderr)
        return 1
    print(f"{data_dir} is complete; validation shard {shard_name(last)}")
    if get_data_dir() != data_dir:
        print(f"note: {get_data_dir()} exists and is what training reads; set NANOCHAT_BASE_DIR to a fresh folder to use this one")
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
    export = "set NANOCHAT_BASE_DIR=" if os.name == "nt" else "export NANOCHAT_BASE_DIR="
    print(f"{data_dir} is complete. To use it:\n{export}{shlex.quote(str(data_dir.parent))}")
    return 0


def main(argv=None) -> int:
    parser = build_parser()
    args = parser.parse_args(hyphenate(sys.argv[1:] if argv is None else argv))
    args.name = args.name or ("builtin" if args.builtin else None)
    if args.num_files is not None and (args.name or args.max_doc_chars is not None):
        parser.error("--name and --max-doc-chars go with --builtin and --from: downloaded shards are kept as they are")
    if args.paths and not args.name:
        parser.error("--from needs --name NAME: the folder under $NANOCHAT_BASE_DIR/lab to build in")
    if args.name and (args.name != Path(args.name).name or args.name.startswith(".") or "\\" in args.name):
        parser.error(f"--name={args.name}: expected a plain folder name")
    try:
        return _build(args) if args.num_files is None else _download(args)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on (downloads keep what they have)", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
