"""A base directory small enough to train on in a test: made-up text, parquet shards, a 300-token vocabulary."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.tokenizer import train_tokenizer

WORDS = [a + b + c for a in ("ka", "lo", "mi", "ru") for b in ("t", "s", "n") for c in ("a", "eli", "on", "urd")]
TRAIN_FLAGS = ["--depth=2", "--head-dim=32", "--aspect-ratio=32", "--max-seq-len=32", "--device-batch-size=2",
               "--total-batch-size=128", "--num-iterations=12", "--warmup-steps=2", "--eval-every=5",
               "--eval-tokens=256", "--no-compile", "--window-pattern=L",
               "--sample-every=-1", "--seed=3"]


def text(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 40)))


def write_shards(base_dir, train_shards=2, documents=300, rows_per_group=60, seed=0) -> list[str]:
    """`train_shards` training shards of `documents` each and a validation shard; returns the training documents in file
    order."""
    folder = Path(base_dir) / "base_data_climbmix"
    folder.mkdir(parents=True, exist_ok=True)
    rng, train = random.Random(seed), []
    for i in range(train_shards + 1):
        docs = [f"{i}:{j} {text(rng)}" for j in range(documents)]
        pq.write_table(pa.table({"text": docs}), folder / f"shard_{i:05d}.parquet", row_group_size=rows_per_group)
        train += docs if i < train_shards else []
    return train


def make_base(base_dir, **kwargs):
    """Shards and tokenizer; returns (training documents, tokenizer)."""
    train = write_shards(base_dir, **kwargs)
    return train, train_tokenizer(base_dir, vocab_size=300, max_chars=10 ** 6, doc_cap=10 ** 4)
