"""
A user's own text files, read one text at a time: .txt .md .jsonl .jsonl.gz .parquet (READERS).

A text that cannot be read raises a ValueError that names the file, the place in it, and the next step. Never imports
torch.
"""

import codecs
import gzip
import hashlib
import io
import json
import shlex
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

BLOCK_CHARS = 1_000_000  # a longer .txt or .md counts as several source documents, and is never in memory whole


def name_hash(name: str) -> str:
    """Hash that gives the order of files. The order is the same on every machine, and unrelated to their subjects."""
    return hashlib.sha256(name.encode()).hexdigest()


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
    """(offset, value) of the first byte of a file's text that is not UTF-8.

    The error of a decoder counts from the last block that it was given, so the file is read again, block by block.
    """
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
    """Error message that names the bad byte and the command that converts the file.

    Bad bytes are never replaced in silence, because the replacements would be trained on.
    """
    if suffix == ".parquet":
        return f"{path} holds text that is not UTF-8 ({error}); write it again as UTF-8, or leave it out"
    offset, value = _first_bad_byte(path, suffix)
    has_mark = offset == 0 and value in (0xFE, 0xFF)  # how UTF-16 begins
    name, convert = shlex.quote(str(path)), f"iconv -f {'UTF-16' if has_mark else 'WINDOWS-1252'} -t UTF-8"
    convert = f"gzip -dc {name} | {convert} | gzip" if suffix.endswith(".gz") else f"{convert} {name}"
    return (f"{path} is not UTF-8: byte 0x{value:02x} at offset {offset}"
            f"{' of what is packed' * suffix.endswith('.gz')}. Convert it "
            f"({'it begins as UTF-16 does' if has_mark else '`file` guesses from what; this is from WINDOWS-1252'}): "
            f"{convert} > {name}.utf8 && mv {name}.utf8 {name}; or leave it out. Then run this again")


READERS = {".txt": _read_text, ".md": _read_text, ".jsonl": _read_jsonl, ".jsonl.gz": _read_jsonl_gz,
           ".parquet": _read_parquet}


def _suffix(path: Path) -> str:
    return next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), "")


def find_files(paths) -> list[Path]:
    """Files to read; those of a folder in the order of the hash of their names. ValueError for an unreadable path."""
    files = []
    for path in map(Path, paths):
        path = path.expanduser()
        found = [path]
        if path.is_dir():
            found = sorted((p for p in path.rglob("*") if p.is_file() and _suffix(p)),
                           key=lambda p: name_hash(p.relative_to(path).as_posix()))
        elif not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        if not found or not all(map(_suffix, found)):
            raise ValueError(f"{path}: expected {' '.join(READERS)} (a file, or a folder that holds some)")
        files += found
    return files


def file_texts(files, whole: bool, progress: bool):
    """Yield the texts of files (READERS has the suffixes).

    With `whole` a .txt or .md file is one text. Without it, a long file is several texts.
    """
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
