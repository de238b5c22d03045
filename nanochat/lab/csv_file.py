"""
Append-only CSV files: a row that was acknowledged is on disk, and no column ever changes its place.

The order of columns is the header-only file in ideas/, read at run time: it is documentation and code at once. A file
with another header is refused, never converted. Appending is: lock, check the header, repair a torn last line, one
write, fsync.
"""

import contextlib
import csv
import gc
import io
import operator
import os
from pathlib import Path

from filelock import FileLock

from nanochat.common import REPO_ROOT, fsync_dir

SCHEMA_DIR = REPO_ROOT / "ideas"


def read_schema(name: str) -> list[str]:
    """Column order of ideas/<name>_schema.csv.

    Raises ValueError where the file is missing, or holds more than a header.
    """
    path = SCHEMA_DIR / f"{name}_schema.csv"
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))) if row]
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: it fixes the column order; restore it with git checkout -- "
                         "ideas") from None
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
    """append_rows for a single row."""
    append_rows(path, schema, [row])


def append_rows(path, schema: list[str], rows: list[dict], refuse=None):
    """Append `rows` in schema order, in one write; None is an empty cell, and keys outside the schema are left out.

    refuse: called with the rows already in the file, under the lock; it may raise. Raises ValueError where a row lacks
    a column of the schema: an empty cell has to be given as None, so that none is forgotten.
    """
    path = Path(path)
    for row in rows:
        if missing := [name for name in schema if name not in row]:
            raise ValueError(f"{path}: the row lacks {', '.join(missing)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        check_header(path, schema)
        if refuse:
            refuse(read_rows(path))
        is_new = not path.exists()
        with open(path, "ab") as f:
            lines = [_line(schema)] if _cut_torn_line(path, f) == 0 else []
            f.write(b"".join(lines + [_line([row[name] for name in schema]) for row in rows]))
            f.flush()
            os.fsync(f.fileno())
        if is_new:
            fsync_dir(path.parent)


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
    """Drop the text after the last newline: a row whose write was cut off was never acknowledged. Bytes left."""
    size = os.path.getsize(path)
    with open(path, "rb") as tail:
        start = tail.seek(max(0, size - window))
        whole = start + tail.read().rfind(b"\n") + 1
    if whole < size:
        print(f"{path}: dropped a torn last line")
        f.truncate(whole)
    return whole


# -----------------------------------------------------------------------------
# Large files: 100,000 rows are searched in a second, so only lines that match are parsed as a whole

OPERATORS = {"=": operator.eq, "<": operator.lt, ">": operator.gt}


def read_typed(path, schema: list[str], parse, conditions=(), last: int | None = None) -> list[dict]:
    """Rows that meet every (column, "=" | "<" | ">", value), oldest first, the newest `last` of them.

    parse(column, text) gives a cell's value. A row also has "row", its number in the file from 1. Raises ValueError
    for another header, and, with the row's number, for a cell that parse refuses.
    """
    check_header(path, schema)
    lines = _numbered_lines(path)
    for name, op, value in conditions:
        if name not in schema:
            raise ValueError(f"{name} is no column of {path}: {', '.join(schema)}")
        lines = _that_hold(path, lines, schema.index(name), _Column(name, parse), OPERATORS[op], value)
    columns = [_Column(name, parse) for name in schema]
    with _no_garbage_collection():
        return [_typed_row(path, number, line, schema, columns) for number, line in (lines[-last:] if last else lines)]


class _Column(dict):
    """Text of a cell -> value. The text is UTF-8, or str where csv took a line with quotes apart.

    Most cells repeat the text of an earlier row: each text is parsed once.
    """

    def __init__(self, name, parse):
        self.name, self.parse = name, parse

    def __missing__(self, text):
        value = self[text] = self.parse(self.name, text if isinstance(text, str) else text.decode("utf-8"))
        return value


def _numbered_lines(path) -> list[tuple[int, bytes]]:
    """All lines but the header and a torn last line, as bytes: a line that does not match is never decoded."""
    try:
        lines = Path(path).read_bytes().split(b"\n")[1:-1]
    except FileNotFoundError:
        return []
    return list(enumerate(lines, start=1))


def _split(line: bytes, most: int = -1) -> list:
    """Cells of a line, the first `most` of them apart; csv.reader, which knows quotes, takes four times as long."""
    return next(csv.reader([line.decode("utf-8")])) if b'"' in line else line.removesuffix(b"\r").split(b",", most)


def _that_hold(path, lines, i, column, compare, value) -> list[tuple[int, bytes]]:
    """The lines whose cell i compares so with value; an empty cell is equal to None, and to nothing else."""
    if compare is operator.eq and isinstance(value, str) and not set('",') & set(value):
        text = value.encode("utf-8")
        lines = [line for line in lines if text in line[1]]  # where the text is not, there is nothing to parse
    found = []
    for number, line in lines:
        cells = _split(line, i + 1)
        if len(cells) <= i:
            raise ValueError(f"{path}, row {number}: {len(cells)} cells, expected more")
        try:
            cell = column[cells[i]]
        except ValueError as e:
            raise ValueError(f"{path}, row {number}: {e}") from None
        if (compare is operator.eq and cell is value) if cell is None or value is None else compare(cell, value):
            found.append((number, line))
    return found


def _typed_row(path, number, line, schema, columns) -> dict:
    cells = _split(line)
    if len(cells) != len(schema):
        raise ValueError(f"{path}, row {number}: {len(cells)} cells, expected {len(schema)}")
    try:
        row = dict(zip(schema, [column[cell] for column, cell in zip(columns, cells)]))
    except ValueError as e:
        raise ValueError(f"{path}, row {number}: {e}") from None
    row["row"] = number
    return row


@contextlib.contextmanager
def _no_garbage_collection():
    """Garbage collection would look through all rows again and again while they are made: half of the time for 100,000
    rows."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
