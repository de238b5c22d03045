"""
Append-only CSV files: a row that was acknowledged is on disk, and no column ever changes its place.

The order of columns is the header-only file in ideas/, read at run time: it is documentation and code at
once. A file with another header is refused, never converted. Appending is: lock, check the header, repair
a torn last line, one write, fsync.
"""

import csv
import io
import os
from pathlib import Path

from filelock import FileLock

from nanochat.common import REPO_ROOT

SCHEMA_DIR = REPO_ROOT / "ideas"


def read_schema(name: str) -> list[str]:
    """Column order of ideas/<name>_schema.csv. Raises ValueError where the file is missing, or holds more than a header."""
    path = SCHEMA_DIR / f"{name}_schema.csv"
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))) if row]
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: it fixes the column order; restore it with git checkout -- ideas") from None
    if len(rows) != 1 or len(set(rows[0])) < len(rows[0]):
        raise ValueError(f"{path}: expected one line, the header with distinct columns; rows belong elsewhere")
    return rows[0]


def check_header(path, schema: list[str]):
    """Raise ValueError when `path` exists, is not empty, and begins with anything but the schema."""
    path = Path(path)
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, encoding="utf-8", errors="replace", newline="") as f:
        found = next(csv.reader(f), [])
    if found != schema:
        raise ValueError(f"{path} has other columns: {','.join(found)[:200]}; expected {','.join(schema)}. "
                         "Move it away; a new one is begun")


def append_row(path, schema: list[str], row: dict):
    """Append `row` in schema order; None is an empty cell, and keys outside the schema are left out.

    Raises ValueError when a column of the schema is missing from row: an empty cell is said, not forgotten.
    """
    path = Path(path)
    missing = [name for name in schema if name not in row]
    if missing:
        raise ValueError(f"{path}: the row lacks {', '.join(missing)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        check_header(path, schema)
        with open(path, "ab") as f:
            if _cut_torn_line(path, f) == 0:
                f.write(_line(schema))
            f.write(_line([row[name] for name in schema]))  # buffered: one write with the header before it
            f.flush()
            os.fsync(f.fileno())


def read_rows(path) -> list[dict]:
    """Rows as dicts of strings; a torn last line is left out."""
    try:
        text = Path(path).read_bytes().rpartition(b"\n")[0].decode("utf-8")
    except FileNotFoundError:
        return []
    return list(csv.DictReader(io.StringIO(text)))


def _line(values) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(["" if v is None else v for v in values])
    return out.getvalue().encode("utf-8")


def _cut_torn_line(path, f, window=1 << 16) -> int:
    """Drop what follows the last newline: a row whose write was cut off was never acknowledged. Size left, in bytes."""
    size = os.path.getsize(path)
    with open(path, "rb") as tail:
        start = tail.seek(max(0, size - window))
        whole = start + tail.read().rfind(b"\n") + 1
    if whole < size:
        print(f"{path}: dropped a torn last line")
        f.truncate(whole)
    return whole
