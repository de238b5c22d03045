"""
The folder of the pretraining data, and its manifest.json, which lists the shards.

Shards are laid out as upstream nanochat's: the last shard in sorted order is the validation split. The manifest pins
that shard by name. Upstream has no manifest. When its last shard is missing, it silently validates on a training
shard; when there is only one shard, it waits for ever.

shards.py reads and writes the shards themselves. Never imports torch.
"""

import contextlib
import functools
import os
import time
from pathlib import Path

from nanochat.common import get_base_dir, hash_json, print0, read_json, sha256_file, to_paste, write_json

SCHEMA_VERSION = 1
DATA_FOLDER, OLD_DATA_FOLDER = "base_data_climbmix", "base_data"  # the second: upstream's before March 2026
MANIFEST = "manifest.json"
SAY_AFTER_SEC = 2  # of comparing hashes
VERIFIED = ".verified.json"  # which shards had the content that the manifest records, and when they were written
HF = "https://huggingface.co/datasets/karpathy"
# Datasets to download. name: (folder under the base dir, index of the validation shard = the last shard, URL)
SOURCES = {
    "climbmix": (DATA_FOLDER, 6542, f"{HF}/climbmix-400b-shuffle/resolve/main"),
    "fineweb-edu": (OLD_DATA_FOLDER, 1822, f"{HF}/fineweb-edu-100b-shuffle/resolve/main"),
}
HOW_TO_MAKE = to_paste("make some: python -m nanochat.dataset --builtin (offline), or -n 8 (downloads ClimbMix); "
                       "--help has the rest")


def shard_name(index: int) -> str:
    return f"shard_{index:05d}.parquet"


def lab_home(name: str, base_dir=None) -> Path:
    """Base dir of the corpus `name`, which has one of its own: no other corpus or tokenizer is touched."""
    base_dir = get_base_dir() if base_dir is None else Path(base_dir)
    if base_dir.parent.name == "lab":  # it is such a corpus itself: the other one lies beside it
        base_dir = base_dir.parent.parent
    return base_dir / "lab" / name


@functools.lru_cache(maxsize=None)
def say_once(message: str):
    print0(message)


# -----------------------------------------------------------------------------
# The folder and its manifest

def get_data_dir(base_dir=None) -> Path:
    base_dir = get_base_dir() if base_dir is None else Path(base_dir)
    path, old = base_dir / DATA_FOLDER, base_dir / OLD_DATA_FOLDER
    if not path.exists() and old.exists():
        say_once(f"{path} does not exist: reading {old}, the folder of upstream's older dataset")
        return old
    return path


def list_parquet_files(data_dir=None) -> list[Path]:
    """Every shard in the folder, sorted by name. Raises FileNotFoundError, with the command that makes shards, where
    the folder has none."""
    data_dir = get_data_dir() if data_dir is None else Path(data_dir)
    paths = sorted(p for p in data_dir.glob("*.parquet") if not p.name.startswith("."))
    if odd := next((p for p in paths if not p.is_file()), None):  # a pipe would be waited for
        raise ValueError(f"{odd} is no regular file; move it out of the folder of the data")
    if not paths:
        raise FileNotFoundError(f"no shards (*.parquet) in {data_dir}; {HOW_TO_MAKE}")
    return paths


def read_manifest(data_dir) -> dict | None:
    """manifest.json of a dataset folder, or None where the file is missing (in a folder that upstream made)."""
    path = Path(data_dir) / MANIFEST
    try:
        manifest = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as e:
        raise ValueError(f"{path} is not valid JSON ({e}); delete it, or build the dataset again") from e
    if not _is_manifest(manifest):
        raise ValueError(f"{path} is no manifest of a dataset (a key is missing, or of another type); delete it, or "
                         "build the dataset again")
    if manifest["dataset_id"] != dataset_id(*(manifest[key] for key in ("shards", "validation_shard", "split_rule"))):
        raise ValueError(f"{path} was changed or damaged: its dataset_id {manifest['dataset_id'][:12]} is not that of "
                         "the shards that it lists; build or download the dataset again")
    return manifest


def _is_manifest(manifest: dict) -> bool:
    """Whether the keys that are read later are there and have their types. A shard's name is that of a plain file."""
    def has(row, **types):
        return isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in types.items())

    return (has(manifest, dataset_id=str, source=dict, validation_shard=str, split_rule=str, shards=list)
            and all(has(s, name=str, bytes=int, sha256=str, documents=int, row_groups=int) for s in manifest["shards"])
            and all(name == Path(name).name for name in (manifest["validation_shard"],
                                                         *(s["name"] for s in manifest["shards"]))))


def dataset_id(shards: list[dict], validation_shard: str, split_rule: str) -> str:
    """Content hash of a dataset: the same documents give the same id on every machine.

    No clock, path or machine name goes in. The hash of a shard's documents is preferred to the hash of its file,
    because the bytes of the file change with the version of the compressor.
    """
    rows = [[s["name"], s.get("text_sha256") or s["sha256"], s["documents"], s["row_groups"]] for s in shards]
    return hash_json(dict(shards=sorted(rows), validation_shard=validation_shard, split_rule=split_rule))


def write_manifest(data_dir, *, shards, validation_shard, split_rule, max_doc_chars, source, **facts) -> dict:
    """Written last, when every shard is whole: its presence says that the dataset is complete."""
    manifest = dict(schema_version=SCHEMA_VERSION, dataset_id=dataset_id(shards, validation_shard, split_rule),
                    source=source, max_doc_chars=max_doc_chars, split_rule=split_rule,
                    validation_shard=validation_shard, **facts, shards=shards)
    write_json(Path(data_dir) / MANIFEST, manifest)
    return manifest


def get_dataset_id(base_dir=None) -> str:
    """The manifest's id; for a folder without manifest, a hash of the names and sizes of its shards."""
    data_dir = get_data_dir(base_dir)
    if manifest := read_manifest(data_dir):
        return manifest["dataset_id"]
    return hash_json([[p.name, p.stat().st_size] for p in list_parquet_files(data_dir)])


@contextlib.contextmanager
def dataset_lock(data_dir: Path):
    """Only one process at a time writes to a folder; a second process waits.

    The lock file lies beside the folder, because the folder itself may be replaced.
    """
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
# The shards of a split

def _listed(manifest: dict, data_dir: Path) -> list[Path]:
    """The shards of the manifest. Raises where one is missing or has another size. Other shards in the folder are left
    out, with a message."""
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
        say_once(f"{data_dir}: {len(extra)} shards that the manifest does not list are left out ({min(extra)} ...); "
                  + to_paste("python -m nanochat.dataset -n N adds downloaded ones"))
    return [data_dir / name for name in names]


def _stamp(path: Path) -> list[int]:
    """Size, time of the last change (ns) and inode. A file that is written again has another stamp."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


_verified: dict[str, dict] = {}  # as in the file VERIFIED, by folder: a folder that is read-only has no such file


def _known(data_dir: Path) -> dict:
    key = os.path.realpath(data_dir)
    if key not in _verified:
        try:
            _verified[key] = read_json(data_dir / VERIFIED)
        except (OSError, ValueError):  # not there, or damaged: the shards are read once more
            _verified[key] = {}
    return _verified[key]


def changed_shards(data_dir: Path, shards: list[dict]) -> list[str]:
    """Names of the shards whose content is not what their rows record. FileNotFoundError where a shard is missing.

    A shard is read once, at about 1 GB/s, and not again while its size, time and inode stay as they were. A row
    without sha256 is not checked.
    """
    known, changed, started = _known(data_dir), [], time.monotonic()
    todo = [s for s in shards if s.get("sha256")
            and known.get(s["name"]) != [*_stamp(data_dir / s["name"]), s["sha256"]]]
    for row in todo:
        stamp = _stamp(data_dir / row["name"])  # before reading: a change meanwhile is seen the next time
        if sha256_file(data_dir / row["name"]) == row["sha256"]:
            known[row["name"]] = [*stamp, row["sha256"]]
        else:
            changed.append(row["name"])
    if (sec := time.monotonic() - started) > SAY_AFTER_SEC:
        print0(f"compared {len(todo)} shards with the hashes in {data_dir / MANIFEST} in {sec:.0f} s (once, until "
               "they change)")
    if len(todo) > len(changed):
        with contextlib.suppress(OSError):
            write_json(data_dir / VERIFIED, known)
    return changed


def _compare_hashes(data_dir: Path, manifest: dict, paths: list[Path]):
    names = {p.name for p in paths}
    if changed := changed_shards(data_dir, [s for s in manifest["shards"] if s["name"] in names]):
        raise ValueError(f"{data_dir / changed[0]} was changed or damaged: its sha256 is not the one in its manifest"
                         f"{f', as of {len(changed) - 1} other shards' if changed[1:] else ''}; delete that shard, "
                         f"then build or download the dataset again")


def split_paths(split: str, data_dir=None) -> list[Path]:
    """Shards of "train" or "val", in order. The manifest pins the validation shard; without manifest it is the last.

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
    paths = [p for p in paths if (p.name == val) == (split == "val")]
    if manifest:
        _compare_hashes(data_dir, manifest, paths)
    return paths
