"""
python -m pytest tests/test_text_files.py -q

Readers of texts as people have them: odd, damaged, cut. test_text_advice.py has files that are not UTF-8.
"""

import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_case import prose

from nanochat import text_files
from nanochat.text_files import file_texts
from nanochat.text_walk import LeftOut

TEXTS = [f"document {i} é 天 " + "some words of it " * (1 + i % 5) for i in range(40)]


def read(path, whole=False):
    """(texts, lines about what is left out)"""
    left_out = LeftOut()
    return list(file_texts([path], whole, False, left_out)), left_out.take_lines()


def put(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / name


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# -----------------------------------------------------------------------------
# JSON lines

def test_nulls_and_empty_texts_are_left_out_of_json_lines_as_of_parquet(tmp_path):
    rows = [None if i % 7 == 0 else "" if i == 8 else " \n" if i == 9 else text for i, text in enumerate(TEXTS)]
    put(tmp_path, "a.jsonl", lines_of(dict(text=text, id=1) for text in rows))
    put(tmp_path, "b.jsonl.gz", gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.table({"text": rows}), tmp_path / "c.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        texts, lines = read(tmp_path / name)
        assert texts == [text for text in rows if text]
        assert lines == [f"left out, null, empty or blank texts: 8 ({name})"]


@pytest.mark.parametrize("line, message", [
    (rb'{"text": "half \ud83d here"}', r"half of a surrogate pair \(\\ud83d, .*at character 5 of the text"),
    (rb'{"text": "\uDE00\uD83D"}', r"half of a surrogate pair \(\\ude00, .*at character 0"),
    (b'{"TEXT": "x"}', 'expected an object with a string "text", got b'),
    (b'{"text": ["x"]}', 'expected an object with a string "text", got b'),
    (b'{"text": {"a": "x"}}', 'expected an object with a string "text", got b'),
    (b"null", 'expected an object with a string "text", got b'),
    (b"{'text': 'x'}", r"this is no JSON \(Expecting property name"),
    (b'{"text": "x"} {"text": "y"}', r"this is no JSON \(Extra data"),
    (b'{"text": "a\tb"}', r"this is no JSON \(Invalid control character"),
    (b'{"text": "x", "n": ' + b"[" * 200_000, r"this is no JSON"),
    (b'{"text": "x", "n": ' + b"9" * 10_000 + b"}", r"this is no JSON"),
    (b'{"text": "a"}\r{"text": "b"}\r', r"lines that end in \\n, not in \\r alone \(tr "),
], ids=range(12))
def test_a_bad_line_is_named_with_its_number_and_what_is_wrong(tmp_path, line, message):
    path = put(tmp_path, "a.jsonl", lines_of(dict(text=t) for t in TEXTS).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 42: .*" + message) as e:
        read(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("line", [rb'{"text": "\ud83d\ude00"}', b'\xef\xbb\xbf{"text": "x"}', b'{"text": "x"}\r',
                                  rb'{"text": "C:\\udata"}', b'  {"text": "x", "text2": null, "n": NaN}  '])
def test_an_odd_line_is_read(tmp_path, line):
    texts, lines = read(put(tmp_path, "a.jsonl", b'{"text": "first"}\n' + line))
    assert len(texts) == 2 and lines == []


def test_a_line_without_end_is_not_taken_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MOST_LINE_BYTES", 1000)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: longer than 1,000 bytes; expected one object a line"):
        read(put(tmp_path, "a.jsonl", b'{"text": "x"}\n[' + b"1," * 600))


PACKED = gzip.compress(lines_of(dict(text=t) for t in TEXTS * 9).encode())


@pytest.mark.parametrize("content, message", [
    (PACKED + b"garbage", r"after line 360: Not a gzipped file"),
    (PACKED[:-9], r"after line \d+: Compressed file ended"), (b"\x85\x02 encrypted", "after line 0: Not a gzipped"),
    (PACKED[:-8] + b"\0" * 8, r"after line 360: CRC check failed"),
    (PACKED[:20] + b"\xff" * 9 + PACKED[29:], r"after line \d+: ")], ids=range(5))
def test_a_damaged_archive_is_named_with_the_last_good_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz cannot be read as \.jsonl\.gz " + message):
        read(put(tmp_path, "a.jsonl.gz", content))


def test_archives_one_after_the_other_and_zeros_at_the_end_are_read(tmp_path):
    assert len(read(put(tmp_path, "a.jsonl.gz", PACKED + PACKED + b"\0" * 512))[0]) == 720


# -----------------------------------------------------------------------------
# Text

@pytest.mark.parametrize("whole", [False, True])
def test_line_ends_and_byte_order_marks_make_no_difference(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(text_files, "BLOCK_CHARS", 2000)
    text = prose(0, 200)
    plain = read(put(tmp_path, "a.txt", text), whole)
    for i, variant in enumerate(("\ufeff" + text, text.replace("\n", "\r\n"), text.replace("\n", "\r"))):
        assert read(put(tmp_path, f"{i}.TXT", variant), whole) == plain


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.jsonl.gz"])
def test_a_file_without_a_text_is_counted(tmp_path, name):
    for content in (b"", b"\xef\xbb\xbf") if name[2:] in ("txt", "md") else (b"", b"\n\n"):
        content = gzip.compress(content) if name.endswith("gz") else content
        assert read(put(tmp_path, name, content)) == ([], [f"left out, files without a text: 1 ({name})"])


@pytest.mark.parametrize("whole", [False, True])
def test_nul_bytes_are_named_with_their_line(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(text_files, "BLOCK_CHARS", 1000)
    lines = [f"line {i}" for i in range(1, 1001)]
    lines[700] += "\0\0\0"
    with pytest.raises(ValueError, match=r"a\.txt, line 701: a NUL byte, so this is no text"):
        read(put(tmp_path, "a.txt", "\n".join(lines)), whole)
    with pytest.raises(ValueError, match=r"b\.txt, line 1: a NUL byte, .*UTF-16 without its mark"):
        read(put(tmp_path, "b.txt", "plain words".encode("utf-16-le")), whole)


def test_one_huge_line_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_CHARS", 1000)
    assert "".join(read(put(tmp_path, "a.txt", "x" * 12_345))[0]) == "x" * 12_345


# -----------------------------------------------------------------------------
# Parquet

def parquet(text, **options):
    out = io.BytesIO()
    table = pa.table({"id": list(range(len(text))), "text": text, "meta": [{"text": [1, 2]}] * len(text)})
    pq.write_table(table, out, **options)
    return out.getvalue()


AS_PEOPLE_HAVE_IT = {
    "large": parquet(pa.array(TEXTS, pa.large_string())), "view": parquet(pa.array(TEXTS).cast(pa.string_view())),
    "category": parquet(pa.array(TEXTS).dictionary_encode()), "brotli": parquet(TEXTS, compression="brotli"),
    "lz4": parquet(TEXTS, compression="lz4"), "gzip": parquet(TEXTS, compression="gzip"),
    "v1": parquet(TEXTS, version="1.0", data_page_version="2.0"), "groups": parquet(TEXTS, row_group_size=1),
    "category, large": parquet(pa.array(TEXTS, pa.large_string()).dictionary_encode(), row_group_size=7),
    "checksums": parquet(TEXTS, write_page_checksum=True, use_dictionary=False)}


@pytest.mark.parametrize("kind", AS_PEOPLE_HAVE_IT)
def test_parquet_in_the_wild_is_read(tmp_path, kind):
    assert read(put(tmp_path, "a.parquet", AS_PEOPLE_HAVE_IT[kind])) == (TEXTS, [])


def test_empty_row_groups_are_passed_over(tmp_path):
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", pa.string())])) as f:
        for texts in ([], TEXTS[:9], [], [], TEXTS[9:], []):
            f.write_table(pa.table({"text": pa.array(texts, pa.string())}))
    assert read(tmp_path / "a.parquet") == (TEXTS, [])
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == ([], ["left out, files without a text: 1 (b.parquet)"])


@pytest.mark.parametrize("text", [[b"x"], [{"body": "x"}], pa.nulls(1), [["x"]], [7]], ids=range(5))
def test_a_column_of_another_type_is_named_with_its_type(tmp_path, text):
    message = r"expected a column text of strings, got \['id', 'text', 'meta'\] with text as .*; write it again with"
    with pytest.raises(ValueError, match=r"a\.parquet: " + message):
        read(put(tmp_path, "a.parquet", parquet(text)))


def test_text_that_is_not_utf8_is_named_with_its_row(tmp_path):
    raw = pa.array([t.encode() for t in TEXTS[:30]] + [b"caf\xe9"] + [b"y"] * 400)
    bad = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    with pytest.raises(ValueError, match=r"a\.parquet, row 30: text that is not UTF-8"):
        read(put(tmp_path, "a.parquet", parquet(bad)))


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "brotli", "lz4"])
def test_a_corrupt_page_names_the_file_and_the_last_good_row(tmp_path, compression):
    content = bytearray(parquet(TEXTS, compression=compression, use_dictionary=False, row_group_size=10))
    place = pq.ParquetFile(io.BytesIO(bytes(content))).metadata.row_group(2).column(1)
    start = place.data_page_offset + place.total_compressed_size - 90  # behind the header, which holds min and max
    content[start:start + 60] = b"\0" * 60
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as \.parquet after row \d+: .*; write or "):
        read(put(tmp_path, "a.parquet", bytes(content)))


def test_an_encrypted_footer_and_an_empty_file_are_named(tmp_path):
    for content in (b"PARE" + b"x" * 100 + b"\x20\0\0\0PARE", b"", b"PAR1", b"PAR1PAR1", b"<html>"):
        with pytest.raises(ValueError, match=r"a\.parquet cannot be read as \.parquet: "):
            read(put(tmp_path, "a.parquet", content))


# -----------------------------------------------------------------------------
# Random damage

def damage(rng, content):
    """Bits flipped, parts lost, doubled and overwritten."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 3, 10))):
        i, n = rng.randrange(len(data) + 1), rng.randrange(1, 60)
        how = rng.choice(("flip", "cut", "double", "lose", "overwrite"))
        if how == "flip" and i < len(data):
            data[i] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del data[i:]
        else:
            data[i:i + n * (how != "double")] = {"double": data[i:i + n] * 2, "lose": b"",
                                                  "overwrite": rng.randbytes(n)}.get(how, b"")
    return bytes(data)


SOUND = {"a.txt": "\n\n".join(TEXTS).encode(), "a.jsonl": lines_of(dict(text=t) for t in TEXTS).encode(),
         "b.jsonl": "".join(json.dumps(dict(text=t), ensure_ascii=False) + "\n" for t in TEXTS).encode(),
         "a.jsonl.gz": PACKED, "a.parquet": parquet(TEXTS), "b.parquet": AS_PEOPLE_HAVE_IT["checksums"],
         "c.parquet": AS_PEOPLE_HAVE_IT["category, large"]}


@pytest.mark.parametrize("name", SOUND)
def test_random_damage_is_one_line_that_names_the_file_or_readable_text(tmp_path, name):
    """Formats with checksums (gzip, pages with them) never give another text in silence."""
    sound, _ = read(put(tmp_path, name, SOUND[name]))
    rng, named = random.Random(name), 0
    for _ in range(50):
        path = put(tmp_path, name, damage(rng, SOUND[name]))
        try:
            texts, _ = read(path)
        except ValueError as e:
            assert name in str(e) and "\n" not in str(e)
            named += 1
        else:
            assert name not in ("a.jsonl.gz", "b.parquet") or texts in (sound, [])
    assert named > 5
