"""
Corpora that are made here and not downloaded: the source code of the installed packages, or a user's own text.

The built-in corpus is there after every installation, offline, and is the same text wherever the same
versions are installed: only files that no platform, build or Python version changes are read. shards.py
cuts, splits and writes. Never imports torch, although its source code is part of the corpus.
"""

import codecs
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shlex
import shutil
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from nanochat.common import fsync_dir
from nanochat.dataset import MAX_DOC_CHARS, dataset_lock, read_manifest, write_manifest, writing
from nanochat.shards import PACKING, SPLIT_RULE, ShardWriter, packing_share, split_sources

# -----------------------------------------------------------------------------
# The built-in corpus

PACKAGES = ("torch", "numpy", "scipy", "matplotlib")
BUILTIN_CHARS = 40_000_000  # about half of the text: enough for a GPU's smoke run, seconds to build
BUILTIN_RULES = 1  # raise it when the rules of this file or of shards.py change what is built
# Compared over the wheels of torch 2.13 (Linux with and without CUDA, macOS, Windows), numpy 2.4, scipy 1.17 and
# matplotlib 3.11: version files and __config__ differ by build, Windows wheels patch __init__.py, and
# numpy.distutils is only there below Python 3.12. Nothing else did; the rest is left out to be safe, or for being
# generated (tables of numbers and op names).
EXCLUDED_NAMES = {"__init__.py", "__config__.py", "version.py", "_version.py", "_distributor_init.py", "_triton_ops_meta.py"}
EXCLUDED_DIRS = {"numpy/distutils", "torch/_C", "torch/_vendor", "torch/bin", "torch/include", "torch/lib", "torch/share",
                 "torch/_inductor/kernel/vendored_templates", "torch/testing/_internal/generated"}


def _name_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def package_files(packages=PACKAGES) -> list[tuple[str, Path]]:
    """(path inside the packages' folder, file) of every Python file that counts, in the order of the name's hash."""
    files = []
    for package in packages:
        spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"the built-in corpus needs the package {package}, which is not installed: run `make setup`")
        root = Path(spec.submodule_search_locations[0])
        for folder, subfolders, names in os.walk(root):
            inside = Path(folder).relative_to(root.parent).as_posix()
            subfolders[:] = [d for d in subfolders if d != "__pycache__" and f"{inside}/{d}" not in EXCLUDED_DIRS]
            files += [(f"{inside}/{n}", Path(folder, n)) for n in names if n.endswith(".py") and n not in EXCLUDED_NAMES]
    return sorted(files, key=lambda item: _name_hash(item[0]))


def _package_texts(files, max_chars: int, progress: bool):
    """Texts of the files, newlines as \\n, until max_chars are read; what is not UTF-8 is skipped."""
    chars = 0
    with tqdm(total=max_chars, unit="char", unit_scale=True, desc="built-in corpus", disable=None if progress else True) as bar:
        for _, path in files:
            if chars >= max_chars:
                break
            try:
                text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
            except UnicodeDecodeError:
                continue
            chars += len(text)
            bar.update(len(text))
            yield text


def build_builtin(data_dir, packages=PACKAGES, max_chars=BUILTIN_CHARS, max_doc_chars=MAX_DOC_CHARS, progress=True) -> dict:
    """Build the built-in corpus in data_dir and return its manifest. Does nothing where the same one is already whole.

    A change of a package's version or of the rules builds it anew; the local part of a version ("+cpu") does not count.
    """
    data_dir = Path(data_dir)
    versions = {package: _version(package) for package in packages}
    source = dict(kind="builtin", packages=versions, max_chars=max_chars, rules=BUILTIN_RULES)
    with dataset_lock(data_dir):
        manifest = read_manifest(data_dir)
        if manifest and manifest["source"] == source and manifest["max_doc_chars"] == max_doc_chars and _is_whole(data_dir, manifest):
            return manifest
        return _build(data_dir, _package_texts(package_files(packages), max_chars, progress), source, max_doc_chars)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError as e:
        raise ValueError(f"the built-in corpus needs the package {package}, which is not installed: run `make setup`") from e


def _is_whole(data_dir: Path, manifest: dict) -> bool:
    paths = [(data_dir / s["name"], s["bytes"]) for s in manifest["shards"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


# -----------------------------------------------------------------------------
# A user's own text

BLOCK_CHARS = 1_000_000  # a longer .txt or .md counts as several source documents, and is never in memory whole


def _read_text(path, raw, whole: bool):
    f = io.TextIOWrapper(raw, encoding="utf-8-sig")
    if whole:
        yield f.read()
        return
    block = f.read(BLOCK_CHARS)
    while more := f.read(BLOCK_CHARS):
        end = block.rfind("\n\n") + 2 if "\n\n" in block else block.rfind("\n") + 1 or len(block)
        yield block[:end]
        block = block[end:] + more
    yield block


def _read_jsonl(path, raw, whole: bool):
    for number, line in enumerate(raw, 1):
        if not line.strip():
            continue
        line_text = line.decode("utf-8-sig")
        try:
            text = json.loads(line_text)["text"]
            if "\\ud" in line_text.lower():
                text.encode()  # half of a surrogate pair is no text
        except (ValueError, KeyError, TypeError, AttributeError):
            text = None
        if not isinstance(text, str):
            raise ValueError(f'{path}, line {number}: expected an object with a string "text", got {line[:80]!r}')
        yield text


def _read_jsonl_gz(path, raw, whole: bool):
    with gzip.GzipFile(fileobj=raw) as f:
        yield from _read_jsonl(path, f, whole)


def _read_parquet(path, raw, whole: bool):
    f = pq.ParquetFile(raw)
    kind = f.schema_arrow.field("text").type if "text" in f.schema_arrow.names else None
    if kind not in (pa.string(), pa.large_string()):
        raise ValueError(f"{path}: expected a column text of strings, got {f.schema_arrow.names} with text as {kind}")
    for batch in f.iter_batches(batch_size=256, columns=["text"]):
        yield from (text for text in batch.column(0).to_pylist() if text)


def _first_bad_byte(path, suffix: str) -> tuple[int, int]:
    """(offset, value) of the first byte of a file's text that is not UTF-8; a decoder's own error counts from its last block."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with (gzip.open if suffix.endswith(".gz") else open)(path, "rb") as f:
        while True:
            block = f.read(BLOCK_CHARS)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as e:
                return done + len(block) - len(e.object) + e.start, e.object[e.start]
            assert block, f"{path} is UTF-8"
            done += len(block)


def _not_utf8(path: Path, suffix: str, error: UnicodeDecodeError) -> str:
    """Which byte, and how to convert the file. Nothing is replaced in silence: it would be trained on."""
    if suffix == ".parquet":
        return f"{path} holds text that is not UTF-8 ({error}); write it again as UTF-8, or leave it out"
    offset, value = _first_bad_byte(path, suffix)
    has_mark = offset == 0 and value in (0xFE, 0xFF)  # how UTF-16 begins
    name, convert = shlex.quote(str(path)), f"iconv -f {'UTF-16' if has_mark else 'WINDOWS-1252'} -t UTF-8"
    convert = f"gzip -dc {name} | {convert} | gzip" if suffix.endswith(".gz") else f"{convert} {name}"
    return (f"{path} is not UTF-8: byte 0x{value:02x} at offset {offset}{' of what is packed' * suffix.endswith('.gz')}. Convert it "
            f"({'it begins as UTF-16 does' if has_mark else '`file` guesses from what; this is from WINDOWS-1252'}): "
            f"{convert} > {name}.utf8 && mv {name}.utf8 {name}; or leave it out. Then run this again")


READERS = {".txt": _read_text, ".md": _read_text, ".jsonl": _read_jsonl, ".jsonl.gz": _read_jsonl_gz, ".parquet": _read_parquet}


def _suffix(path: Path) -> str:
    return next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), "")


def find_files(paths) -> list[Path]:
    """Files to read, a folder's in the order of the hash of their names. ValueError for what cannot be read."""
    files = []
    for path in map(Path, paths):
        path = path.expanduser()
        found = [path]
        if path.is_dir():
            found = sorted((p for p in path.rglob("*") if p.is_file() and _suffix(p)),
                           key=lambda p: _name_hash(p.relative_to(path).as_posix()))
        elif not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        if not found or not all(map(_suffix, found)):
            raise ValueError(f"{path}: expected {' '.join(READERS)} (a file, or a folder that holds some)")
        files += found
    return files


def file_texts(files, whole: bool, progress: bool):
    """Yield the texts of files (READERS has the suffixes): a .txt or .md is one text, or without `whole` pieces of it."""
    with tqdm(total=sum(p.stat().st_size for p in files), unit="B", unit_scale=True, desc="reading",
              disable=None if progress else True) as bar:
        before = 0  # bytes of the files that are done
        for path in files:
            try:
                with open(path, "rb") as raw:
                    for text in READERS[_suffix(path)](path, raw, whole):
                        yield text
                        bar.update(max(0, before + raw.tell() - bar.n))
            except UnicodeDecodeError as e:
                raise ValueError(_not_utf8(path, _suffix(path), e)) from e
            except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowInvalid) as e:
                raise ValueError(f"{path} cannot be read as {_suffix(path)}: {e}") from e
            before += path.stat().st_size
            bar.update(max(0, before - bar.n))


def build_from_paths(data_dir, paths, max_doc_chars=MAX_DOC_CHARS, progress=True) -> dict:
    """Build a corpus from files or folders (READERS has the suffixes) and return its manifest."""
    data_dir = Path(data_dir)
    files = find_files(paths)
    source = dict(kind="files", paths=[str(Path(p).expanduser().resolve()) for p in paths])
    with dataset_lock(data_dir):
        return _build(data_dir, file_texts(files, max_doc_chars == 0, progress), source, max_doc_chars)


# -----------------------------------------------------------------------------
# Building

def _check_replaceable(data_dir: Path, source: dict):
    """Rebuilding a corpus from the same place is fine; anything else in the folder is somebody's data."""
    manifest = read_manifest(data_dir)
    if manifest is None and data_dir.is_dir() and any(data_dir.iterdir()):
        raise ValueError(f"{data_dir} holds files that no manifest describes; choose another --name, or delete that folder")
    if manifest and [manifest["source"].get(k) for k in ("kind", "paths")] != [source["kind"], source.get("paths")]:
        raise ValueError(f"{data_dir} holds a dataset made from {manifest['source']}; choose another --name, or delete that folder")


def _build(data_dir: Path, sources, source: dict, max_doc_chars: int) -> dict:
    """Build beside data_dir, then rename: a reader sees the old dataset or the new one, whole. Holds the lock already."""
    staging, old = (data_dir.with_name(f".{data_dir.name}.{word}") for word in ("building", "old"))
    if old.exists() and not data_dir.exists():  # killed between the two renames below
        os.replace(old, data_dir)
    _check_replaceable(data_dir, source)
    for folder in (staging, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        with writing(staging):
            staging.mkdir()
        shards = ShardWriter(staging)
        split_sources(sources, shards, max_doc_chars)
        if not shards.docs["val"] or not (shards.docs["train"] or shards.rows):
            raise ValueError(f"too little text in {source.get('paths', source)}: {len(shards.seen)} different documents "
                             f"({sum(shards.chars.values())} characters), expected at least 1 to train on and 1 to validate on"
                             + ("; a smaller --max-doc-chars makes more of them" if max_doc_chars == 0 else ""))
        rows = shards.finish()
        share = packing_share(shards.train_bytes, **PACKING)
        with writing(data_dir):
            manifest = write_manifest(staging, shards=rows, validation_shard=rows[-1]["name"], split_rule=SPLIT_RULE,
                                      max_doc_chars=max_doc_chars, source=source, packing_share=round(share, 4),
                                      packing_assumptions=PACKING, duplicates_dropped=shards.duplicates)
            if data_dir.exists():
                os.replace(data_dir, old)
            os.replace(staging, data_dir)
            fsync_dir(data_dir.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return manifest


def summary(manifest: dict) -> str:
    rows = manifest["shards"]
    docs, chars, groups = (sum(s[k] for s in rows) for k in ("documents", "chars", "row_groups"))
    assumed = manifest["packing_assumptions"]
    hint = f"; --max-doc-chars={MAX_DOC_CHARS} uses more" if manifest["max_doc_chars"] == 0 and manifest["packing_share"] < 0.5 else ""
    return (f"{docs:,} documents, {chars:,} characters in {len(rows)} shards and {groups} row groups; {rows[-1]['documents']:,} "
            f"documents validate; {manifest['duplicates_dropped']:,} duplicates dropped\nan epoch at T {assumed['max_seq_len']} uses "
            f"about {manifest['packing_share']:.0%} of the tokens (if a token is {assumed['bytes_per_token']} bytes){hint}\n"
            f"dataset_id {manifest['dataset_id']}")
