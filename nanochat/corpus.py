"""
Corpora that are made on this machine: the source code of the installed packages, or a user's own text.

The built-in corpus can be made offline after every installation. It is the same text wherever the same versions are
installed, because only files are read that no platform, build or Python version changes. text_files.py reads a user's
files; shards.py cuts, splits and writes. Never imports torch, although torch's source code is part of the corpus.
"""

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

from tqdm import tqdm

from nanochat.common import fsync_dir, get_base_dir, print0
from nanochat.manifest import MANIFEST, changed_shards, dataset_lock, read_manifest, write_manifest, writing
from nanochat.shards import MAX_DOC_CHARS, PACKING, SPLIT_RULE, ShardWriter, packing_share, split_sources
from nanochat.text_files import file_texts
from nanochat.text_walk import SUFFIXES, LeftOut, find_files, name_hash, shown

# -----------------------------------------------------------------------------
# The built-in corpus

PACKAGES = ("torch", "numpy", "scipy", "matplotlib")
BUILTIN_CHARS = 40_000_000  # about half of the text: enough for a GPU's smoke run, seconds to build
BUILTIN_RULES = 1  # raise it when a change of this file or of shards.py changes the corpus
# Compared over the wheels of torch 2.13 (Linux with and without CUDA, macOS, Windows), numpy 2.4, scipy 1.17 and
# matplotlib 3.11: version files and __config__ differ by build, Windows wheels patch __init__.py, and
# numpy.distutils is only there below Python 3.12. Nothing else did; the rest is left out to be safe, or for being
# generated (tables of numbers and op names).
EXCLUDED_NAMES = {"__init__.py", "__config__.py", "version.py", "_version.py", "_distributor_init.py",
                  "_triton_ops_meta.py"}
EXCLUDED_DIRS = {"numpy/distutils", "torch/_C", "torch/_vendor", "torch/bin", "torch/include", "torch/lib",
                 "torch/share", "torch/_inductor/kernel/vendored_templates",
                 "torch/testing/_internal/generated"}
NOT_INSTALLED = "the built-in corpus needs the package {}, which is not installed: run `make setup`"


def package_files(packages=PACKAGES) -> list[tuple[str, Path]]:
    """(path inside the packages' folder, file) of every Python file that counts, in the order of the name's hash."""
    files = []
    for package in packages:
        spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(NOT_INSTALLED.format(package))
        root = Path(spec.submodule_search_locations[0])
        for folder, subfolders, names in os.walk(root):
            inside = Path(folder).relative_to(root.parent).as_posix()
            subfolders[:] = [d for d in subfolders if d != "__pycache__" and f"{inside}/{d}" not in EXCLUDED_DIRS]
            names = [n for n in names if n.endswith(".py") and n not in EXCLUDED_NAMES]
            files += [(f"{inside}/{n}", Path(folder, n)) for n in names]
    return sorted(files, key=lambda item: name_hash(item[0]))


def _package_texts(files, max_chars: int, progress: bool):
    """Texts of the files, newlines as \\n, until max_chars are read. Files that are not UTF-8 are skipped."""
    chars = 0
    with tqdm(total=max_chars, unit="char", unit_scale=True, desc="built-in corpus",
              disable=None if progress else True) as bar:
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


def build_builtin(data_dir, packages=PACKAGES, max_chars=BUILTIN_CHARS, max_doc_chars=MAX_DOC_CHARS,
                  progress=True) -> dict:
    """Build the built-in corpus in data_dir and return its manifest. A whole corpus that is already there is kept.

    A change of a package's version or of BUILTIN_RULES builds it anew. The local part of a version ("+cpu") does not
    count.
    """
    data_dir = Path(data_dir)
    versions = {package: _version(package) for package in packages}
    source = dict(kind="builtin", packages=versions, max_chars=max_chars, rules=BUILTIN_RULES)
    with dataset_lock(data_dir):
        manifest = read_manifest(data_dir)
        if manifest and (manifest["source"], manifest.get("max_doc_chars")) == (source, max_doc_chars):
            if _is_whole(data_dir, manifest):
                return manifest
        return _build(data_dir, _package_texts(package_files(packages), max_chars, progress), source, max_doc_chars)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError as e:
        raise ValueError(NOT_INSTALLED.format(package)) from e


def _is_whole(data_dir: Path, manifest: dict) -> bool:
    facts = {"packing_share", "packing_assumptions", "duplicates_dropped"}  # that summary prints
    if not facts <= manifest.keys() or not all("chars" in s for s in manifest["shards"]):
        return False
    paths = [(data_dir / s["name"], s["bytes"]) for s in manifest["shards"]]
    return (all(path.is_file() and path.stat().st_size == size for path, size in paths)
            and not changed_shards(data_dir, manifest["shards"]))


# -----------------------------------------------------------------------------
# A user's own text

def build_from_paths(data_dir, paths, max_doc_chars=MAX_DOC_CHARS, progress=True) -> dict:
    """Build a corpus from files or folders (text_files.READERS has the suffixes) and return its manifest.

    What is left out is printed: files before they are read, texts after.
    """
    data_dir, left_out = Path(data_dir), LeftOut()
    files = find_files(paths, left_out, outputs=(data_dir, get_base_dir()))
    source = dict(kind="files", paths=[shown(Path(p).expanduser().resolve()) for p in paths])
    if _say(left_out):
        print0(f"read: {' '.join(SUFFIXES)}; to read a path that is hidden or a link, type it after --from")
    with dataset_lock(data_dir):
        texts = file_texts(files, max_doc_chars == 0, progress, left_out)
        try:
            return _build(data_dir, texts, source, max_doc_chars)
        finally:
            _say(left_out)


def _say(left_out: LeftOut) -> bool:
    """Print what is left out. Returns whether anything is."""
    lines = left_out.take_lines()
    for line in lines:
        print0(line)
    return bool(lines)


# -----------------------------------------------------------------------------
# Building

def _check_replaceable(data_dir: Path, source: dict) -> dict | None:
    """The manifest of the corpus that would be replaced, or None.

    ValueError where data_dir holds anything but a corpus from the same source: that may be somebody's data.
    """
    manifest, other_place = read_manifest(data_dir), "choose another --name, or delete that folder"
    if manifest is None:
        if data_dir.is_dir() and any(data_dir.iterdir()):
            raise ValueError(f"{data_dir} holds files that no manifest describes; {other_place}")
        return None
    if [manifest["source"].get(k) for k in ("kind", "paths")] != [source["kind"], source.get("paths")]:
        raise ValueError(f"{data_dir} holds a dataset made from {manifest['source']}; {other_place}")
    ours = {MANIFEST, *(s["name"] for s in manifest["shards"])}
    if others := sorted(shown(p.name) for p in data_dir.iterdir() if p.name not in ours and p.name[0] != "."):
        raise ValueError(f"{data_dir} holds {len(others)} files that its manifest does not list ({others[0]}), and "
                         "they would be lost; move them to another folder")
    return manifest


def _build(data_dir: Path, sources, source: dict, max_doc_chars: int) -> dict:
    """Build beside data_dir, then rename, so a reader sees the whole old or the whole new dataset. The caller locks."""
    staging, old = (data_dir.with_name(f".{data_dir.name}.{word}") for word in ("building", "old"))
    if old.exists() and not data_dir.exists():  # killed between the two renames below
        os.replace(old, data_dir)
    replaced = _check_replaceable(data_dir, source)
    for folder in (staging, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        with writing(staging):
            staging.mkdir()
        shards = ShardWriter(staging)
        split_sources(sources, shards, max_doc_chars)
        if not shards.docs["val"] or not (shards.docs["train"] or shards.rows):
            raise ValueError(f"too little text in {source.get('paths', source)}: {len(shards.seen)} different "
                             f"documents ({sum(shards.chars.values())} characters), "
                             "expected at least 1 to train on and 1 to validate on"
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
    if replaced and replaced["dataset_id"] != manifest["dataset_id"]:
        print0(f"replaced the dataset {replaced['dataset_id'][:12]} that was in {shown(data_dir)}; a tokenizer and "
               "checkpoints that were made from it stay")
    return manifest


def summary(manifest: dict) -> str:
    rows = manifest["shards"]
    docs, chars, groups = (sum(s[k] for s in rows) for k in ("documents", "chars", "row_groups"))
    assumed = manifest["packing_assumptions"]
    wasteful = manifest["max_doc_chars"] == 0 and manifest["packing_share"] < 0.5
    hint = f"; --max-doc-chars={MAX_DOC_CHARS} uses more" if wasteful else ""
    return (f"{docs:,} documents, {chars:,} characters in {len(rows)} shards and {groups} row groups; "
            f"{rows[-1]['documents']:,} documents validate; {manifest['duplicates_dropped']:,} duplicates dropped\n"
            f"an epoch at T {assumed['max_seq_len']} uses about {manifest['packing_share']:.0%} of the tokens "
            f"(if a token is {assumed['bytes_per_token']} bytes){hint}\n"
            f"dataset_id {manifest['dataset_id']}")
