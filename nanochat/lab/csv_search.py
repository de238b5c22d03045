"""
Rows of a large CSV file that meet conditions, with typed values. 100,000 rows are searched in a second, because only
lines that match are parsed as a whole.

    read_typed(path, schema, parse, [("label", "=", "noise")], last=10)
"""

import contextlib
import csv
import gc
import operator

from nanochat.lab.csv_file import check_header
from nanochat.lab.csv_text import cells_of, row_error, whole_lines

OPERATORS = {"=": operator.eq, "<": operator.lt, ">": operator.gt}


def read_typed(path, schema: list[str], parse, conditions=(), last: int | None = None) -> list[dict]:
    """Rows that meet every (column, "=" | "<" | ">", value), oldest first, the newest `last` of them.

    parse(column, text) gives a cell's value. A row also has "row", its number in the file from 1. Raises ValueError
    for another header, and, with the row's number, for a cell that parse refuses.
    """
    check_header(path, schema)
    lines = whole_lines(path, len(schema))
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


def _split(line: bytes, most: int = -1) -> list:
    """Cells of a line, the first `most` of them apart; csv.reader, which knows quotes, takes four times as long."""
    if b'"' in line or len(line) > csv.field_size_limit() or line.find(b"\r", 0, len(line) - 1) >= 0:
        return cells_of(line)
    return line.removesuffix(b"\r").split(b",", most)


def _that_hold(path, lines, i, column, compare, value) -> list[tuple[int, bytes]]:
    """The lines whose cell i compares so with value; an empty cell is equal to None, and to nothing else."""
    if compare is operator.eq and isinstance(value, str) and not set('",') & set(value):
        text = value.encode("utf-8")
        lines = [line for line in lines if text in line[1]]  # where the text is not, there is nothing to parse
    found = []
    for number, line in lines:
        try:
            cells = _split(line, i + 1)
            if len(cells) <= i:
                raise ValueError(f"{len(cells)} cells, expected more")
            cell = column[cells[i]]
        except (ValueError, csv.Error) as e:
            raise row_error(path, number, e) from None
        if (compare is operator.eq and cell is value) if cell is None or value is None else compare(cell, value):
            found.append((number, line))
    return found


def _typed_row(path, number, line, schema, columns) -> dict:
    try:
        cells = _split(line)
        if len(cells) != len(schema):
            raise ValueError(f"{len(cells)} cells, expected {len(schema)}")
        row = dict(zip(schema, [column[cell] for column, cell in zip(columns, cells)]))
    except (ValueError, csv.Error) as e:
        raise row_error(path, number, e) from None
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
