"""
Append-only files: what was acknowledged stays, and columns never move.

python -m pytest tests/test_csv_file.py -v
"""

import multiprocessing
import os

import pytest
from filelock import FileLock

from nanochat.lab import csv_file
from nanochat.lab.csv_file import append_row, check_appendable, check_header, read_rows, read_schema
from nanochat.lab.csv_search import read_typed

SCHEMA = ["seed", "val_bpb", "status"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "x_history.csv"


def row(seed, **values):
    return {"seed": seed, "val_bpb": None, "status": "ok", **values}


def test_rows_are_appended_under_one_header_and_none_is_an_empty_cell(path):
    append_row(path, SCHEMA, row(1, val_bpb=2.5))
    append_row(path, SCHEMA, row(2, status='a "quoted", cell', extra="left out"))
    assert path.read_text() == 'seed,val_bpb,status\n1,2.5,ok\n2,,"a ""quoted"", cell"\n'
    assert [r["val_bpb"] for r in read_rows(path)] == ["2.5", ""]


def test_foreign_header_is_refused_and_nothing_is_written(path):
    path.parent.mkdir()
    path.write_text("seed,status,val_bpb\n1,ok,2.5\n")
    with pytest.raises(ValueError, match="other columns: seed,status,val_bpb"):
        append_row(path, SCHEMA, row(2))
    assert path.read_text() == "seed,status,val_bpb\n1,ok,2.5\n"


def test_missing_column_is_refused(path):
    with pytest.raises(ValueError, match="lacks val_bpb"):
        append_row(path, SCHEMA, {"seed": 1, "status": "ok"})
    assert not path.exists()


@pytest.mark.parametrize("torn", ["3,2.4", "3"])
def test_torn_last_line_is_dropped_on_the_next_append(path, torn):
    append_row(path, SCHEMA, row(1))
    with open(path, "a") as f:
        f.write(torn)
    assert len(read_rows(path)) == 1
    append_row(path, SCHEMA, row(2))
    assert [r["seed"] for r in read_rows(path)] == ["1", "2"]


def test_torn_header_is_written_again(path):
    path.parent.mkdir()
    path.write_text(",".join(SCHEMA))  # the newline never reached the disk
    append_row(path, SCHEMA, row(1))
    assert path.read_text() == "seed,val_bpb,status\n1,,ok\n"


def test_processes_that_append_at_once_lose_no_row(path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(append_row, [(path, SCHEMA, row(i)) for i in range(40)])
    assert sorted(int(r["seed"]) for r in read_rows(path)) == list(range(40))


def test_schema_must_be_there_and_hold_a_header_only(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_file, "SCHEMA_DIR", tmp_path)
    with pytest.raises(ValueError, match="missing: it fixes the column order"):
        read_schema("history")
    (tmp_path / "history_schema.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="one line, the header"):
        read_schema("history")
    (tmp_path / "history_schema.csv").write_bytes(b"a,b\r\n")  # a checkout that converts line ends
    assert read_schema("history") == ["a", "b"]


def test_history_schema_is_the_published_order():
    assert ",".join(read_schema("history")) == (
        "timestamp,run_tag,recipe,seed,duration_sec,trained_tokens,avg_tok_per_sec,val_bpb,min_val_bpb,num_iterations,"
        "window_pattern,resumed_from_step,run_status,arm,candidate,label,config_hash")


def test_no_file_and_an_empty_file_have_no_foreign_header(path):
    check_header(path, SCHEMA)
    path.parent.mkdir()
    path.touch()
    check_header(path, SCHEMA)


# -----------------------------------------------------------------------------
# Whole rows and torn rows

HEX = "a1" * 32
LAST_CELLS = {"hash": HEX, "number": "12.345678901234567", "json": '{"seeds": [1, 2], "why": "a, b"}', "text": "note"}


def with_last(last, seed=1):
    return {"seed": seed, "val_bpb": 2.5, "status": last}


@pytest.mark.parametrize("last", LAST_CELLS.values(), ids=list(LAST_CELLS))
def test_a_row_that_lacks_nothing_but_its_newline_is_read_and_kept(path, last):
    """As Google Sheets and some editors save it."""
    for seed in (1, 2):
        append_row(path, SCHEMA, with_last(last, seed))
    path.write_bytes(path.read_bytes()[:-1])
    assert [r["status"] for r in read_rows(path)] == [last, last]
    append_row(path, SCHEMA, with_last(last, 3))
    assert [r["seed"] for r in read_rows(path)] == ["1", "2", "3"] and path.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("last", ["hash", "number", "json"])
def test_no_prefix_of_a_row_is_taken_for_a_row(path, capsys, last):
    """The file as an earlier version, or another program, may have cut it off."""
    for seed in (1, 2):
        append_row(path, SCHEMA, with_last(LAST_CELLS[last], seed))
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for size in range(start, len(whole) - 1):
        path.write_bytes(whole[:size])
        rows = read_rows(path)
        # A number that is cut in its last digits is as good as the whole one.
        assert len(rows) == 1 or last == "number" and float(rows[1]["status"]) == pytest.approx(12.3456789, abs=1e-7)
        if len(rows) == 1:
            append_row(path, SCHEMA, with_last(LAST_CELLS[last], 2))
            assert path.read_bytes() == whole
    assert "dropped a torn last line: 2,2.5" in capsys.readouterr().out


def files_of_a_killed_writer(path, rows, monkeypatch):
    """The file as a kill leaves it after each number of bytes that were written."""
    before, write, left = path.read_bytes(), csv_file._write, [0]

    def stopping(f, at, data):
        write(f, at, data[:left[0]])
        left[0] -= len(data)
        if left[0] < 0:
            left.append(path.read_bytes())
            raise SystemExit
    monkeypatch.setattr(csv_file, "_write", stopping)
    for n_bytes in range(1000):
        path.write_bytes(before)
        left[:] = [n_bytes]
        try:
            csv_file.append_rows(path, SCHEMA, rows)
        except SystemExit:
            assert path.read_bytes() == before, "a writer that only fails, as on a full disk, takes back what it wrote"
            yield left[1]
        else:
            break
    monkeypatch.undo()


@pytest.mark.parametrize("rows", [[row(2)], [row(2), row(3), row(4)]], ids=["one row", "three rows"])
def test_a_writer_that_is_killed_at_any_byte_leaves_whole_rows_only(path, monkeypatch, rows):
    append_row(path, SCHEMA, row(1))
    seen = set()
    for content in list(files_of_a_killed_writer(path, rows, monkeypatch)):
        path.write_bytes(content)
        found = [r["seed"] for r in read_rows(path)]
        assert found == ["1", "2", "3", "4"][:len(found)]
        seen.add(len(found))
        append_row(path, SCHEMA, row(9))
        assert [r["seed"] for r in read_rows(path)] == [*found, "9"] and b"\0" not in path.read_bytes()
    assert seen == set(range(1, len(rows) + 1))


def test_a_new_file_whose_first_write_is_killed_is_begun_again(path, monkeypatch):
    path.parent.mkdir()
    path.touch()
    for content in list(files_of_a_killed_writer(path, [row(1)], monkeypatch)):
        path.write_bytes(content)
        check_header(path, SCHEMA)
        assert read_rows(path) == []
        append_row(path, SCHEMA, row(2))
        assert path.read_text() == "seed,val_bpb,status\n2,,ok\n"


# -----------------------------------------------------------------------------
# Files that came from elsewhere

def saved_as(path, change):
    append_row(path, SCHEMA, row(1, val_bpb=2.5))
    append_row(path, SCHEMA, row(2, status='a "quoted", cell'))
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize("change", [
    lambda raw: b"\xef\xbb\xbf" + raw, lambda raw: raw.replace(b"\n", b"\r\n"),
    lambda raw: b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n")[:-2]], ids=["BOM", "CRLF", "all of it"])
def test_a_byte_order_mark_and_carriage_returns_are_taken(path, change):
    saved_as(path, change)
    check_header(path, SCHEMA)
    append_row(path, SCHEMA, row(3))
    typed = read_typed(path, SCHEMA, lambda name, text: text)
    for rows in (read_rows(path), typed):
        assert [(r["seed"], r["val_bpb"], r["status"]) for r in rows] == \
            [("1", "2.5", "ok"), ("2", "", 'a "quoted", cell'), ("3", "", "ok")]


@pytest.mark.parametrize("change, named", [
    (lambda raw: raw.replace(b",", b";"), "separated by semicolons"),
    (lambda raw: raw.replace(b",", b"\t"), "separated by tabs"),
    (lambda raw: raw.decode().encode("utf-16"), "UTF-16"),
    (lambda raw: raw.replace(b"seed,val_bpb,status", b"seed,val_"), "lacks val_bpb, status; it has val_;"),
    (lambda raw: raw.replace(b"seed,val_bpb", b"val_bpb,seed"), "another order")])
def test_another_header_is_one_line_that_names_the_file_the_difference_and_the_cure(path, change, named):
    saved_as(path, change)
    before = path.read_bytes()
    for use in (lambda: check_header(path, SCHEMA), lambda: append_row(path, SCHEMA, row(3))):
        with pytest.raises(ValueError, match=named) as caught:
            use()
        assert str(path) in str(caught.value) and "git checkout" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line, named", [
    (b'2,,"not closed', "unexpected end"), (b"2,,ok,more", "4 cells, expected 3"), (b"2", "1 cells, expected 3"),
    (b"2,,\xff", "0xff"), (b'2,"a"b,ok', "row 2"), (b"2,,a\0b", "NUL"), (b"2,," + b"x" * 140_000, "131072"),
    (b"2,a\rb,ok", "row 2")])
def test_a_row_that_cannot_be_parsed_is_named_with_its_number_and_the_cure(path, line, named):
    append_row(path, SCHEMA, row(1))
    append_row(path, SCHEMA, row(2))
    path.write_bytes(path.read_bytes().replace(b"2,,ok", line) + b"3,,ok\n")
    for read in (read_rows, lambda p: read_typed(p, SCHEMA, lambda name, text: text)):
        with pytest.raises(ValueError, match="row 2: ") as caught:
            read(path)
        assert str(path) in str(caught.value) and "restore" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=named):
        read_rows(path)


def test_a_cell_that_could_not_be_read_again_is_never_written(path):
    with pytest.raises(ValueError, match="status has 140000 characters, expected at most 131072"):
        append_row(path, SCHEMA, row(1, status="x" * 140_000))
    assert not path.exists()


def test_a_line_break_in_a_cell_is_a_space(path):
    append_row(path, SCHEMA, row(1, status="a\nb"))
    assert [r["status"] for r in read_rows(path)] == ["a b"] and path.read_bytes().count(b"\n") == 2


# -----------------------------------------------------------------------------
# Before the first run

def test_a_file_that_can_take_a_row_is_left_as_it_is(path):
    check_appendable(path, SCHEMA)
    assert [p.name for p in path.parent.iterdir()] == [".x_history.csv.lock"]
    append_row(path, SCHEMA, row(1))
    before = path.read_bytes()
    check_appendable(path, SCHEMA)
    assert path.read_bytes() == before


def lock_is_a_folder(path):
    path.with_name(f".{path.name}.lock").mkdir()


@pytest.mark.parametrize("spoil, named", [
    (lock_is_a_folder, "cannot be locked"), (lambda path: path.mkdir(), "no regular file"),
    (lambda path: path.write_text("a,b\n1,2\n"), "other columns"),
    pytest.param(lambda path: path.symlink_to("/dev/full"), "no regular file", marks=pytest.mark.skipif(
        not os.path.exists("/dev/full"), reason="no such device"))])
def test_a_file_that_could_take_no_row_is_one_line(path, spoil, named):
    path.parent.mkdir()
    spoil(path)
    with pytest.raises((ValueError, OSError), match=named) as caught:
        check_appendable(path, SCHEMA)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_lock_that_is_never_freed_is_named(path, monkeypatch):
    monkeypatch.setattr(csv_file, "LOCK_SEC", 0.1)
    path.parent.mkdir()
    with FileLock(path.with_name(f".{path.name}.lock")), pytest.raises(OSError, match="locked by another process"):
        append_row(path, SCHEMA, row(1))


def test_a_row_is_appended_once_however_often_it_is_offered(path):
    for _ in range(2):
        csv_file.append_missing(path, SCHEMA, row(1), lambda: any(r["seed"] == "1" for r in read_rows(path)))
    assert len(read_rows(path)) == 1


def test_what_a_killed_check_left_goes_with_the_next_check(path):
    path.parent.mkdir()
    path.with_name(f".{path.name}.probe").write_bytes(b"left")
    check_appendable(path, SCHEMA)
    assert [p.name for p in path.parent.iterdir()] == [f".{path.name}.lock"]
