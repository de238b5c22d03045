"""
The bytes of a CSV file: which of them are whole rows, and the cells of a line. Used by csv_file.py.

A write can be cut off by a kill, a full disk or a power failure. Such a torn row must never be read, and a whole row
must never be taken for a torn one: a spreadsheet saves the last row without a newline. So the first byte of a row is
written last (csv_file.py), and until then it is NUL. A last line that begins with NUL is therefore torn.

An earlier version wrote rows in one piece, and other programs cut files too. So a last line without a newline is whole
only if it has all cells, closed quotes, and a last cell that looks like the one above it: a hash of the same length, a
number with as many digits, a JSON object, or any text. Example: 0.83 without a newline, below 0.8310546875, is torn.
"""

import csv
import io
import json
import re
from pathlib import Path

from nanochat.common import read_regular

MOST_CSV = 2 ** 28  # bytes of a file: 100,000 runs and more
BOM, UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
ALL_DIGITS = 15  # a float that has so many differs from the one that was measured by nothing that matters
HASH = re.compile(r"[0-9a-f]{32,}")
CURE = "take that row out, or restore the file from git or a copy"


def row_error(path, number: int, why) -> ValueError:
    """number: of the row, from 1; 0 is the header."""
    where = f"row {number}" if number else "line 1 (the columns)"
    return ValueError(f"{path}, {where}: {why}; {CURE}")


def cells_of(line: bytes) -> list[str]:
    """The cells of a line. Raises ValueError (also for bytes that are no UTF-8), or csv.Error."""
    return next(csv.reader([line.decode("utf-8")], strict=True), [])


def read_bytes(path) -> bytes:
    """All of the file but a byte-order mark; b"" where there is none. Raises ValueError for a folder or a pipe."""
    path = Path(path)
    if not path.exists():
        return b""
    if not path.is_file():
        raise ValueError(f"{path} is no regular file: expected a CSV file; move it away")
    return read_regular(path, MOST_CSV).removeprefix(BOM)


def whole_size(raw: bytes, columns: int) -> int:
    """How many bytes of a file, or of its end, are whole rows. What comes after them is torn."""
    size = raw.rfind(b"\n") + 1
    above = raw[raw.rfind(b"\n", 0, max(0, size - 1)) + 1:size]
    if raw[size:] and _is_row(raw[size:], columns, above):
        return len(raw)
    while size and raw[(start := raw.rfind(b"\n", 0, size - 1) + 1):start + 1] == b"\0":
        size = start
    return size


def _is_row(line: bytes, columns: int, above: bytes) -> bool:
    try:
        cells, others = cells_of(line), cells_of(above)
    except (ValueError, csv.Error):  # a character or a quote that is cut off
        return False
    return b"\0" not in line and len(cells) == columns and (not others or _looks_like(cells[-1], others[-1]))


def _looks_like(cell: str, above: str) -> bool:
    """Whether the last cell of a line may be whole, by the last cell of the line above.

    >>> _looks_like("0.83", "0.8310546875"), _looks_like("0.7500000001", "0.8310546875"), _looks_like("", "a note")
    (False, True, False)
    """
    if not cell:
        return not above
    if HASH.fullmatch(above):
        return len(cell) == len(above)
    if _is_number(above):
        return _is_number(cell) and cell[-1].isdigit() and _digits(cell) >= min(ALL_DIGITS, _digits(above))
    return _parses(json.loads, cell) or not above.startswith("{")


def _is_number(text: str) -> bool:
    return _parses(float, text)


def _parses(how, text: str) -> bool:
    try:
        how(text)
    except (ValueError, RecursionError):
        return False
    return True


def _digits(text: str) -> int:
    return len(re.sub(r"\D", "", text))


def whole_lines(path, columns: int) -> list[tuple[int, bytes]]:
    """(number from 1, bytes) of each row; a torn end is left out. Raises ValueError for a NUL in another place."""
    raw = read_bytes(path)
    raw = raw[:whole_size(raw, columns)]
    if (at := raw.find(b"\0")) >= 0:
        raise row_error(path, raw.count(b"\n", 0, at), "it holds a NUL byte, as a disk leaves after a power failure")
    return list(enumerate(raw.removesuffix(b"\n").split(b"\n")))[1:]


def parse_rows(path, raw: bytes) -> list[dict]:
    """The rows of a whole file as dicts of strings, quoted line breaks included.

    Raises ValueError, naming the row, for a row that cannot be parsed or has another number of cells.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise row_error(path, raw.count(b"\n", 0, e.start), f"byte {raw[e.start]:#04x} is not UTF-8") from None
    if "\0" in text:
        raise row_error(path, text.count("\n", 0, text.index("\0")), "it holds a NUL byte")
    reader, found, header = csv.reader(io.StringIO(text, newline=""), strict=True), [], None
    while True:
        number = reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as e:  # a quote that is not closed, a cell that is too long
            raise row_error(path, number, e) from None
        if cells is None:
            return found
        if header is None:
            header = cells
        elif cells and len(cells) != len(header):
            raise row_error(path, number, f"{len(cells)} cells, expected {len(header)}")
        elif cells:
            found.append(dict(zip(header, cells)))


MOST_SHOWN = 10_000  # letters of a first line that is none of ours: csv refuses a cell of 131,073


def other_header(path, line: bytes, schema: list[str]) -> ValueError:
    """The error for a first line that is not the schema."""
    cure = "restore it (git checkout, a copy), or move it away: a new one is begun"
    if line.startswith(UTF16) or b"\0" in line:
        return ValueError(f"{path}, line 1: it is UTF-16, or binary; expected a CSV file in UTF-8: save it as that, "
                          f"{cure}")
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if [cell.strip('"') for cell in text.split(mark)] == schema:
            return ValueError(f"{path}, line 1: its cells are separated by {name}, as some spreadsheets save them; "
                              f"expected commas: save it with commas, {cure}")
    found = next(csv.reader([text[:MOST_SHOWN]]), [])
    lacks, has = [name for name in schema if name not in found], [name for name in found if name not in schema]
    differs = "; ".join(filter(None, [f"it lacks {', '.join(lacks)}" * bool(lacks), f"it has {', '.join(has)[:200]}"
                                      * bool(has)])) or "they have another order"
    return ValueError(f"{path}, line 1, has other columns: {','.join(found)[:200]}; {differs}; expected "
                      f"{','.join(schema)}; {cure}")
