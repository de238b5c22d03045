"""A folder of shards and its manifest, made by hand, for test_manifest.py and test_shard_hashes.py."""

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import sha256_file
from nanochat.manifest import DATA_FOLDER, shard_name, write_manifest


def make_shard(path, texts, rows=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path, row_group_size=rows)
    return dict(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path), documents=len(texts),
                row_groups=-(-len(texts) // rows), chars=None)


def add_manifest(folder, validation_shard, names=None):
    shards = [dict(name=p.name, bytes=p.stat().st_size, sha256=sha256_file(p), documents=5, row_groups=3, chars=None)
              for p in sorted(folder.glob("*.parquet")) if names is None or p.name in names]
    return write_manifest(folder, shards=shards, validation_shard=validation_shard, split_rule="test", max_doc_chars=0,
                                  source=dict(kind="test"))


def make_three_shards(base_dir):
    """The folder of three shards of five documents, as upstream leaves them: no manifest."""
    folder = base_dir / DATA_FOLDER
    for i in range(3):
        make_shard(folder / shard_name(i), [f"shard {i} document {j}" for j in range(5)])
    return folder
