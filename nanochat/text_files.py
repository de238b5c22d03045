"""
A user's own text files, read one text at a time: .txt .md .jsonl .jsonl.gz .parquet (READERS).

A text that cannot be read raises a ValueError that names the file, the place in it, and the next step. Texts that are
null or empty are left out and counted; of blank texts cutting leaves nothing. text_walk.py chooses the files, and
text_advice.py explains bytes that are not UTF-8. Never imports torch.
"""

import gzip
import io
import itertools
import json
import os
import re
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from nanochat.shards import text_type
from nanochat.text_advice import not_utf8
from nanochat.text_walk import LeftOut, open_regular, shown, suffix_of

BLOCK_CHARS = 1_000_000  # a longer .txt or .md counts as several source documents, and is never in memory whole
MOST_LINE_BYTES = 1 << 30  # of a line of .jsonl, which is in memory whole
DAMAGE = (EOFError, zlib.error, OSError, pa.ArrowException, MemoryError, OverflowError, RecursionError)


def _damaged(path: Path, error: BaseException, after="") -> ValueError:
    why = str(error).partition("\n")[0] or type(error).__name__
    return ValueError(f"{shown(path)} cannot be read as {suffix_of(path)}{after}: {why}; write or download it again, "
                      "or leave it out")


def _read_text(path, raw, whole: bool):
    f, lines = io.TextIOWrapper(raw, encoding="utf-8-sig"), 0

    def checked(text):
        if "\0" in text:
            line = lines + text.count("\n", 0, text.index("\0")) + 1
            raise ValueError(f"{shown(path)}, line {line}: a NUL byte, so this is no text (a damaged file, or UTF-16 "
                             "without its mark); leave it out, or convert it")
        return text
    block = f.read(-1 if whole else BLOCK_CHARS)
    while more := f.read(BLOCK_CHARS):
        end = block.rfind("\n\n") + 2 if "\n\n" in block else block.rfind("\n") + 1 or len(block)
        yield checked(block[:end])
        lines += block.count("\n", 0, end)
        block = block[end:] + more
    if block:
        yield checked(block)
    f.detach()  # or it would close the file


def _lines(path, raw):
    """(number, line) of a file; damage is named after the last line that could be read."""
    number = 0
    try:
        while line := raw.readline(MOST_LINE_BYTES):
            number += 1
            if len(line) == MOST_LINE_BYTES:
                raise ValueError(f"{shown(path)}, line {number}: longer than {MOST_LINE_BYTES:,} bytes; expected one "
                                 "object a line")
            yield number, line
    except DAMAGE as e:
        raise _damaged(path, e, f" after line {number}") from e


def _read_jsonl(path, raw, whole: bool):
    for number, line in _lines(path, raw):
        if line.strip():
            yield _text_of_line(f"{shown(path)}, line {number}", line)


def _text_of_line(place: str, line: bytes) -> str | None:
    """The text of one line, None for null."""
    decoded = line.decode("utf-8-sig")
    try:
        row, why = json.loads(decoded), "got"
    except (ValueError, RecursionError) as e:
        row = None
        why = (f"this is no JSON ({e})" if b"\r" not in line.strip() else
               "and lines that end in \\n, not in \\r alone (tr '\\r' '\\n' converts them)") + ", got"
    if not isinstance(row, dict) or not isinstance(row.get("text", 0), str | None):
        raise ValueError(f'{place}: expected an object with a string "text", {why} {line[:80]!r}')
    text = row["text"]
    if text and "\\ud" in decoded.lower() and (half := re.search("[\ud800-\udfff]", text)):
        raise ValueError(f"{place}: half of a surrogate pair (\\u{ord(half[0]):x}, as of an emoji that was cut) at "
                         f"character {half.start()} of the text; mend or remove that line")
    return text


def _read_jsonl_gz(path, raw, whole: bool):
    with gzip.GzipFile(fileobj=raw) as f:
        yield from _read_jsonl(path, f, whole)


def _read_parquet(path, raw, whole: bool):
    f, row = pq.ParquetFile(raw, page_checksum_verification=True), 0
    if text_type(f.schema_arrow) is None:
        kinds = ", ".join(str(field.type) for field in f.schema_arrow if field.name == "text")
        raise ValueError(f"{shown(path)}: expected a column text of strings, got {f.schema_arrow.names} with text as "
                         f"{kinds or None}; write it again with strings, or leave it out")
    try:
        for batch in f.iter_batches(batch_size=256, columns=["text"]):
            for value in batch.column(0):
                yield value.as_py()
                row += 1
    except UnicodeDecodeError as e:
        raise ValueError(f"{shown(path)}, row {row}: text that is not UTF-8 ({e.reason}); write it again as UTF-8, or "
                         "leave it out") from e
    except DAMAGE as e:
        raise _damaged(path, e, f" after row {row}") from e
    if row != f.metadata.num_rows:
        raise ValueError(f"{shown(path)} has {row} rows, and states {f.metadata.num_rows}; write or download it again")


READERS = {".txt": _read_text, ".md": _read_text, ".jsonl": _read_jsonl, ".jsonl.gz": _read_jsonl_gz,
           ".parquet": _read_parquet}


def _one_file(path: Path, whole: bool):
    """(text, bytes of the file that were read) of one file."""
    with open_regular(path) as raw:
        before = os.fstat(raw.fileno())
        try:
            for text in READERS[suffix_of(path)](path, raw, whole):
                yield text, raw.tell()
        except UnicodeDecodeError as e:
            raise ValueError(not_utf8(path, suffix_of(path))) from e
        except DAMAGE as e:
            raise _damaged(path, e) from e
        after = os.fstat(raw.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ValueError(f"{shown(path)} was changed while it was read; run this again when it is finished")


def file_texts(files, whole: bool, progress: bool, left_out: LeftOut | None = None):
    """Yield the texts of files (READERS has the suffixes). left_out counts those that are null, empty or blank.

    With `whole` a .txt or .md file is one text. Without it, a long file is several texts.
    """
    left_out = LeftOut() if left_out is None else left_out
    sizes = [os.path.getsize(path) if os.path.exists(path) else 0 for path in files]  # a missing file is named later
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="reading", disable=None if progress else True) as bar:
        for path, before in zip(files, itertools.accumulate(sizes, initial=0)):
            found = False
            for text, position in _one_file(path, whole):
                bar.update(max(0, before + position - bar.n))
                if not text or text.isspace():
                    left_out.add("null, empty or blank texts", path.name)
                if text:
                    found = True
                    yield text
            if not found:
                left_out.add("files without a text", path.name)
        bar.update(max(0, sum(sizes) - bar.n))
