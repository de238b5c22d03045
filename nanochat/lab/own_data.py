"""
Corpora of a user's own text, by the name that they were given:

    python -m nanochat.dataset --from ~/texts --name mine
    make protocol DATA=mine CANDIDATE="--flag ..."

A corpus lies in <base dir>/lab/<name>/ with everything that is made from it: tokenizer, checkpoints, records. So a
comparison on it touches nothing of another corpus, and its dataset_id is part of the workload.
"""

from pathlib import Path

from nanochat.common import paste_command, quote_word
from nanochat.manifest import get_data_dir, lab_home, read_manifest

LARGEST_VOCAB, SMALLEST_VOCAB = 32768, 512
CHARS_A_TOKEN = 200  # of the vocabulary: with less text the rarest tokens are hardly ever seen


def home_of(name: str, base_dir) -> Path:
    return lab_home(name, base_dir).resolve()


def names(base_dir) -> list[str]:
    """The corpora that exist."""
    folders = lab_home("any", base_dir).parent.glob("*")
    return sorted(folder.name for folder in folders if _has_shards(folder))


def _has_shards(home: Path) -> bool:
    return any(get_data_dir(home).glob("*.parquet"))


def is_corpus(folder: Path) -> bool:
    """Whether a base dir is the folder of a corpus itself, as the command that makes one suggests."""
    return folder.parent.name == "lab" and _has_shards(folder)


def find(name: str, base_dir) -> Path:
    """Home of the corpus. Raises ValueError, with the next step, for a path and for a name that no corpus has."""
    if name != Path(name).name or "\\" in name or name.startswith((".", "~")):
        made = Path(name.replace("\\", "/")).stem.lstrip(".~") or "mine"
        raise ValueError(f"DATA={name} is a path, and expected is the name of a corpus; make one first: "
                         + paste_command(["python", "-m", "nanochat.dataset", "--from", name, "--name", made])
                         + f", then DATA={quote_word(made)}")
    if not _has_shards(home_of(name, base_dir)):
        there = ", ".join(names(base_dir)) or "none yet"
        raise ValueError(f"DATA={name}: no corpus of this name in {lab_home(name, base_dir).parent}; there are: "
                         f"{there}. "
                         + paste_command(["python", "-m", "nanochat.dataset", "--from", "PATH", "--name", name])
                         + " makes it")
    return home_of(name, base_dir)


def train_chars(home: Path) -> int | None:
    """Characters of the training split; None for shards without a manifest."""
    manifest = read_manifest(get_data_dir(home))
    if not manifest:
        return None
    return sum(shard.get("chars") or 0 for shard in manifest["shards"]
               if shard["name"] != manifest["validation_shard"]) or None


def dataset_id(home: Path) -> str | None:
    """Content hash of the data of `home`; None where there are no data yet, or no manifest."""
    manifest = read_manifest(get_data_dir(home))
    return manifest and manifest["dataset_id"]


def vocab_size(chars: int | None, wanted: int) -> int:
    """The vocabulary for this much text: `wanted`, halved until there are CHARS_A_TOKEN characters for each token.

    >>> vocab_size(10_000_000, 4096), vocab_size(200_000, 4096), vocab_size(100, 4096)
    (4096, 512, 512)
    """
    while chars is not None and chars < CHARS_A_TOKEN * wanted and wanted > SMALLEST_VOCAB:
        wanted //= 2
    return wanted


def train_tokens(home: Path) -> int | None:
    """About how many tokens an epoch of the training split feeds; None where it cannot be known beforehand."""
    chars, manifest = train_chars(home), read_manifest(get_data_dir(home))
    if chars is None or not manifest.get("packing_assumptions"):
        return None
    return int(chars / manifest["packing_assumptions"]["bytes_per_token"] * manifest.get("packing_share", 1.0))
