"""
Documents -> parquet shards, and back. Writing cuts documents, drops duplicates, splits and shuffles; packing_share
estimates how much of them the loader will use. A shard is laid out as upstream nanochat's: one string column `text`,
row groups of documents.

The best-fit loader (dataloader.py) fills rows with whole documents and crops a document that does not fit. So most of
a long document would be thrown away. Therefore documents are cut to pieces when the shards are written: at blank lines
or before top-level definitions, else at line ends, else at spaces. Duplicates are dropped by hash over both splits.
The pieces of one source document (a file, a line of a .jsonl) go to one split.

Memory holds three shards of text, one source document, and 8 bytes (as a Python int) for each document; the text of
the input may be far longer. corpus.py gives the source documents. Never imports torch.
"""

import bisect
import contextlib
import hashlib
import itertools
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import atomic_writer, sha256_file
from nanochat.manifest import say_once, shard_name, split_paths, writing

MAX_DOC_CHARS = 1000
SHARD_CHARS = 32_000_000
ROW_GROUP_DOCS = 1024  # upstream's
MIN_ROW_GROUPS = 4  # of a shard: with two training shards at least 8 in all, for the seeds to shuffle
VAL_SHARE, VAL_CHARS = 0.05, 32_000_000
FEW_SOURCES = 20
SPLIT_RULE = (f"a source document is validation where validation holds less than {VAL_SHARE:.0%} of the text "
              f"before it, and at most {VAL_CHARS} characters; of fewer than {FEW_SOURCES} source documents, "
              f"the last {VAL_SHARE:.0%} of the pieces of each")

# -----------------------------------------------------------------------------
# Cutting

# The loader packs best when lengths differ: with one target for all, most documents are near the maximum and rows
# end in crops. At T 512 an epoch on the built-in corpus used 89 and 85 % of the tokens (vocabularies of 4096 and
# 8192) with one target, 91 and 93 % with these four.
TARGETS = (1.0, 0.25, 0.75, 0.5)  # shares of max_doc_chars, in turn
# Ends of blank lines, and line starts where a definition begins.
_BOUNDARY = re.compile(r"\n(?:[ \t]*\n)+|\n(?=@|def |class |async def )")


def _boundaries(text: str):
    for m in _BOUNDARY.finditer(text):
        b = m.end()
        after_decorator = b - m.start() == 1 and text.startswith("@", text.rfind("\n", 0, b - 1) + 1)
        if not after_decorator:  # a decorator stays with its function or class
            yield b
    yield len(text)


def cut_document(text: str, max_doc_chars: int) -> list[str]:
    """Pieces of at most max_doc_chars characters; 0 = the whole text as one piece.

    A block is the text between two boundaries. Blocks are packed greedily while they fit in the target of the piece.
    A block is cut only if it alone is too long. Nothing but blank lines around a piece is lost.

    >>> cut_document("import os\\n\\ndef f():\\n    pass\\n\\nx = 1\\n", 24)
    ['import os', 'def f():\\n    pass', 'x = 1']
    """
    if max_doc_chars == 0:
        return [text] if text.strip() else []
    pieces, start, end = [], 0, 0  # end: the last boundary that still fits
    for b in _boundaries(text):
        while b - start > max_doc_chars * TARGETS[len(pieces) % len(TARGETS)]:
            if end <= start and b - start <= max_doc_chars:
                break
            if end <= start:  # one block is too long
                end = _finer_cut(text, start, start + max_doc_chars)
            pieces.append(text[start:end])
            start = end
        end = b
    pieces.append(text[start:])
    return [p.strip("\n") for p in pieces if p.strip()]


def _finer_cut(text: str, start: int, stop: int) -> int:
    """The last line end in (start, stop], else the last space in its second half (words stay whole), else stop."""
    return text.rfind("\n", start, stop) + 1 or text.rfind(" ", (start + stop) // 2, stop) + 1 or stop


# -----------------------------------------------------------------------------
# Packing

# bytes_per_token: measured on the built-in corpus with a vocabulary of 4096
PACKING = dict(max_seq_len=512, bytes_per_token=3.4, buffer_docs=1000, documents=100_000)


def packing_share(doc_bytes: list[int], max_seq_len, bytes_per_token, buffer_docs, documents=None) -> float:
    """Share of its tokens that an epoch of the best-fit loader trains on; the other tokens are cropped away.

    Runs the loader's rule on estimated lengths: rows of max_seq_len + 1 tokens, each filled with the largest
    buffered document that fits, else with the head of the shortest one.
    """
    lengths = [1 + round(n / bytes_per_token) for n in doc_bytes[:documents]]  # 1: BOS
    total, stream, buffer = sum(lengths), itertools.cycle(lengths), []
    used = consumed = 0
    while consumed < total:
        room = max_seq_len + 1
        while room > 0:
            while len(buffer) < buffer_docs:
                bisect.insort(buffer, next(stream))
            fitting = bisect.bisect_right(buffer, room)
            n = buffer.pop(fitting - 1 if fitting else 0)
            used, consumed, room = used + min(n, room), consumed + n, room - n
    return used / consumed


# -----------------------------------------------------------------------------
# Writing

def write_shard(path: Path, texts: list[str]) -> dict:
    """One parquet file with upstream's settings; returns its row of the manifest."""
    rows = min(ROW_GROUP_DOCS, -(-len(texts) // MIN_ROW_GROUPS))
    content = hashlib.sha256()
    for data in map(str.encode, texts):
        content.update(len(data).to_bytes(8, "little") + data)
    with writing(path), atomic_writer(path) as f:
        pq.write_table(pa.table({"text": texts}), f, row_group_size=rows, compression="zstd", compression_level=3,
                       use_dictionary=False, write_statistics=False, write_page_checksum=True)
    return dict(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path), text_sha256=content.hexdigest(),
                row_groups=-(-len(texts) // rows), documents=len(texts), chars=sum(map(len, texts)))


class ShardWriter:
    """Collects the documents of both splits, drops duplicates, writes shards as they fill."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.docs = {"train": [], "val": []}  # (digest, text): sorted by digest, a shard is in random order
        self.chars = {"train": 0, "val": 0}  # of all that was added
        self.held_chars = 0
        self.seen = set()
        self.duplicates = 0
        self.rows = []
        self.train_bytes = []  # sizes of the first documents, for packing_share

    def add(self, split: str, pieces: list[str]):
        for text in pieces:
            digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
            if digest in self.seen:
                self.duplicates += 1
                continue
            self.seen.add(digest)
            self.docs[split].append((digest, text))
            self.chars[split] += len(text)
            self.held_chars += len(text) if split == "train" else 0
        if self.held_chars >= 2 * SHARD_CHARS and len(self.docs["train"]) > 1:
            self.flush_half()

    def flush_half(self):
        docs = sorted(self.docs["train"])
        self.docs["train"] = docs[len(docs) // 2:]
        self.write(docs[:len(docs) // 2])
        self.held_chars = sum(len(text) for _, text in self.docs["train"])

    def write(self, docs):
        texts = [text for _, text in docs]
        if len(self.train_bytes) < PACKING["documents"]:
            self.train_bytes += [len(text.encode()) for text in texts]
        self.rows.append(write_shard(self.folder / shard_name(len(self.rows)), texts))

    def finish(self) -> list[dict]:
        # Up to two shards of text are held. They are written as two, so that a small corpus has two training shards.
        if len(self.docs["train"]) > 1:
            self.flush_half()
        if self.docs["train"]:
            self.write(sorted(self.docs["train"]))
        val_texts = [text for _, text in sorted(self.docs["val"])]
        self.rows.append(write_shard(self.folder / shard_name(len(self.rows)), val_texts))
        return self.rows


def split_sources(sources, shards: ShardWriter, max_doc_chars: int):
    """Cut every source document and add its pieces to train or val, as SPLIT_RULE states."""
    if max_doc_chars < 0:
        raise ValueError(f"--max-doc-chars={max_doc_chars}: "
                         "expected a number of characters, or 0 to keep documents whole")
    sources = iter(sources)
    head = list(itertools.islice(sources, FEW_SOURCES))
    few = len(head) < FEW_SOURCES
    seen_chars = val_chars = 0
    for text in itertools.chain(head, sources):
        pieces = cut_document(text, max_doc_chars)
        if few and len(pieces) > 1:
            keep = len(pieces) - max(1, round(len(pieces) * VAL_SHARE))
            shards.add("train", pieces[:keep])
            shards.add("val", pieces[keep:])
        elif val_chars < min(VAL_SHARE * seen_chars, VAL_CHARS):
            shards.add("val", pieces)
            val_chars += len(text)
        else:
            shards.add("train", pieces)
        seen_chars += len(text)


# -----------------------------------------------------------------------------
# Reading

@contextlib.contextmanager
def _blaming(path):
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as e:
        raise ValueError(f"the shard {path} cannot be read ({type(e).__name__}: {str(e).partition(chr(10))[0]}); "
                         "delete it, then build or download the dataset again") from e


@contextlib.contextmanager
def _parquet(path, **options):
    """The shard, opened. Python opens the file: pyarrow takes no path that is not UTF-8, and some paths for URLs."""
    with _blaming(path), open(path, "rb") as raw, pq.ParquetFile(raw, **options) as f:
        yield f


def text_type(schema) -> pa.DataType | None:
    """Type of the column text where it holds strings, in one of the ways in which Parquet holds them. Else None."""
    kind = schema.field("text").type if schema.names.count("text") == 1 else None
    value = kind.value_type if kind is not None and pa.types.is_dictionary(kind) else kind
    return kind if value in (pa.string(), pa.large_string(), pa.string_view()) else None


def _require_text(f: pq.ParquetFile):
    if text_type(f.schema_arrow) is None:
        raise pa.ArrowInvalid(f"expected a column text of strings, got {', '.join(map(str, f.schema_arrow))[:200]}")


def _known_nulls(group) -> int | None:
    """Nulls in the column text of a row group, as its metadata states them. None where the metadata does not say."""
    columns = (group.column(i) for i in range(group.num_columns))
    stats = next((c.statistics for c in columns if c.path_in_schema == "text"), None)
    return stats.null_count if stats is not None and stats.has_null_count else None


def row_groups(paths) -> list[tuple[Path, int, int]]:
    """(path, index of the row group in its file, documents in it) in file order; reads metadata only.

    ValueError for a file without texts. Nulls among the texts are said here, where the metadata counts them.
    """
    groups = []
    for path in paths:
        with _parquet(path) as f:
            _require_text(f)
            metadata = [f.metadata.row_group(i) for i in range(f.num_row_groups)]
            groups += [(path, i, group.num_rows) for i, group in enumerate(metadata)]
            if nulls := sum(_known_nulls(group) or 0 for group in metadata):
                say_once(f"{path}: {nulls} of {f.metadata.num_rows} documents are null, and left out")
    return groups


def read_row_group(path, index: int) -> list[str | None]:
    """Documents of one row group. None stands for a null, which no reader uses. A corrupt shard is a ValueError that
    names it.

    Shards written by this file carry checksums of their pages, so even one flipped bit in them is found.
    """
    with _parquet(path, page_checksum_verification=True) as f:
        _require_text(f)
        column = f.read_row_group(index, columns=["text"]).column("text")
        texts = column.to_pylist()
        if column.null_count and _known_nulls(f.metadata.row_group(index)) is None:
            say_once(f"{path}: row {texts.index(None)} of row group {index} is null, and left out"
                     f"{f', and {column.null_count - 1} others of that group' if column.null_count > 1 else ''}")
        return texts


def iter_texts(split: str, data_dir=None):
    """Documents of a split one by one, in file order. Nulls are left out."""
    for path, index, _ in row_groups(split_paths(split, data_dir)):
        yield from (text for text in read_row_group(path, index) if text is not None)
