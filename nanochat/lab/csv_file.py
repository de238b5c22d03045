"""
Append-only CSV files: a row that was acknowledged is on disk, and no column ever changes its place.

The order of columns is the header-only file in ideas/, read at run time: it is documentation and code at once. A file
with another header is refused, never converted. Appending is: lock, check the header, repair a torn last line, write,
fsync. csv_text.py says how a torn line is told from a whole one.
"""

import contextlib
import csv
import io
import os
from pathlib import Path

from filelock import FileLock, Timeout

from nanochat.common import REPO_ROOT, fsync_dir
from nanochat.lab.csv_text import BOM, cells_of, other_header, parse_rows, read_bytes, whole_size

SCHEMA_DIR = REPO_ROOT / "ideas"
LOCK_SEC = 120  # an append takes milliseconds: a lock that is held for longer is of a process that hangs
PROBE_BYTES = 1 << 16


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
    """Raise ValueError when `path` exists, and begins with anything but the schema.

    A first line that was cut off, with nothing after it, is no header yet: the next append writes it whole.
    """
    path = Path(path)
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{path} is no regular file: expected a CSV file; move it away")
    with open(path, "rb") as f:
        line = f.readline(1 << 20).removeprefix(BOM)
    if _line(schema).startswith(line) or line.startswith(b"\0") and not line.strip(b"\0").startswith(b"\n"):
        return
    try:
        found = cells_of(line)
    except (ValueError, csv.Error):
        found = None
    if found != schema:
        raise other_header(path, line, schema)


def check_appendable(path, schema: list[str]):
    """Raise ValueError, or OSError, where a row could not be appended now. Asked before the first run."""
    path = Path(path)
    with _locked(path):
        check_header(path, schema)
        probe = path.with_name(f".{path.name}.probe")  # one name, under the lock: what a kill leaves goes next time
        try:
            if path.exists():
                open(path, "r+b").close()
            with open(probe, "wb") as f:
                f.write(bytes(PROBE_BYTES))
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise OSError(f"{path} cannot be written: {e.strerror}; every run gets a row there: free or allow it, or "
                          "choose another place") from e
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


def append_row(path, schema: list[str], row: dict):
    """append_rows for a single row."""
    append_rows(path, schema, [row])


def append_rows(path, schema: list[str], rows: list[dict], refuse=None):
    """Append `rows` in schema order; None is an empty cell, and keys outside the schema are left out.

    refuse: called with the rows already in the file, under the lock; it may raise. Raises ValueError where a row lacks
    a column of the schema: an empty cell has to be given as None, so that none is forgotten.
    """
    path = Path(path)
    lines = [_checked_line(path, schema, row) for row in rows]
    with _locked(path):
        check_header(path, schema)
        if refuse:
            refuse(read_rows(path))
        _append(path, schema, lines)


def append_missing(path, schema: list[str], row: dict, is_there) -> bool:
    """Append `row` unless is_there(), which is asked under the lock. True if it was appended."""
    path = Path(path)
    line = _checked_line(path, schema, row)
    with _locked(path):
        check_header(path, schema)
        if is_there():
            return False
        _append(path, schema, [line])
    return True


def read_rows(path) -> list[dict]:
    """Rows as dicts of strings; a torn last line is left out. Raises ValueError, naming a row that cannot be parsed."""
    raw = read_bytes(path)
    try:
        columns = len(cells_of(raw.split(b"\n", 1)[0]))
    except (ValueError, csv.Error):  # parse_rows names it
        columns = 0
    return parse_rows(path, raw[:whole_size(raw, columns)])


# -----------------------------------------------------------------------------
# Writing

@contextlib.contextmanager
def _locked(path: Path):
    """The lock of a file. Raises OSError where it cannot be had."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, timeout=LOCK_SEC)
        held.acquire()
    except Timeout:
        raise OSError(f"{path} has been locked by another process for {LOCK_SEC} s ({lock}); end that process, then "
                      "start again") from None
    except (OSError, NotImplementedError) as e:  # a folder in its place, a file system without locks
        raise OSError(f"{path} cannot be locked: {getattr(e, 'strerror', None) or e} ({lock}); choose a place that can "
                      "be written and locked, or move that away") from e
    try:
        yield
    finally:
        held.release()


def _line(values) -> bytes:
    """A row is one line: line breaks in a cell become spaces."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(
        ["" if v is None else " ".join(v.splitlines()) if isinstance(v, str) else v for v in values])
    return out.getvalue().encode("utf-8")


def _checked_line(path, schema, row: dict) -> bytes:
    if missing := [name for name in schema if name not in row]:
        raise ValueError(f"{path}: the row lacks {', '.join(missing)}")
    for name in schema:
        if len(str(row[name])) > csv.field_size_limit():
            raise ValueError(f"{path}: {name} has {len(str(row[name]))} characters, expected at most "
                             f"{csv.field_size_limit()}, because a longer cell could not be read again; shorten it")
    return _line([row[name] for name in schema])


def _append(path: Path, schema, lines: list[bytes]):
    """Write the lines, each with its first byte last: until then it is NUL, and the row counts as torn."""
    is_new = not path.exists()
    with open(path, "w+b" if is_new else "r+b", buffering=0) as f:
        end, needs_newline = _repair(path, f, schema)
        lines = lines if end else [_line(schema), *lines]
        start = end + needs_newline
        try:
            _write(f, end, b"\n" * needs_newline + b"".join(b"\0" + line[1:] for line in lines))
            os.fsync(f.fileno())
            for line in lines:
                _write(f, start, line[:1])
                start += len(line)
            os.fsync(f.fileno())
        except BaseException as e:  # a full disk: what is there now was not acknowledged
            with contextlib.suppress(OSError):
                f.truncate(end)
            if isinstance(e, OSError) and e.filename is None:
                raise OSError(f"{path} cannot be written: {e.strerror}; free or allow it, then the same command goes "
                              "on") from e
            raise
    if is_new:
        fsync_dir(path.parent)


def _write(f, at: int, data: bytes):
    f.seek(at)
    while data:
        data = data[f.write(data):]


def _repair(path, f, schema) -> tuple[int, bool]:
    """Drop a torn end: it was never acknowledged. (bytes left, True if the last row lacks its newline)."""
    size, window = f.seek(0, os.SEEK_END), 1 << 16
    while True:
        start = f.seek(max(0, size - window))
        tail = f.read()
        if start == 0 or tail.count(b"\n") > 2:
            break
        window *= 2
    if start == 0 and b"\n" not in tail and tail.removeprefix(BOM) != _line(schema)[:-1]:
        whole = 0  # a header that was cut off
    else:
        whole = start + whole_size(tail, len(schema))
    if whole < size:
        torn = tail[whole - start:].strip(b"\0\n").decode("utf-8", "replace")
        print(f"{path}: dropped a torn last line{': ' * bool(torn)}{torn[:300]}")
        f.truncate(whole)
    return whole, whole > 0 and tail[whole - start - 1:whole - start] != b"\n"
