"""
python -m pytest tests/test_text_advice.py -q

Files that are not UTF-8: what is said of them, and that no command is printed that would spoil a file.
"""

import random
import re
import shutil
import subprocess

import pytest

from nanochat import text_advice
from nanochat.text_advice import not_utf8, survey

WESTERN = "Die Straße führt über Öland nach Süden, où l'été est déjà là; mañana será otro día.\n" * 30
FOREIGN = {"cp1251": "Дорога ведёт на юг через лес и поле.\n" * 20, "koi8-r": "Дорога ведёт на юг через лес.\n" * 20,
           "gb18030": "天地玄黃宇宙洪荒日月盈昃辰宿列張。\n" * 20, "shift_jis": "これは日本語の文章です。\n" * 20,
           "euc_kr": "오늘 아침 시장에는 비가 조금 내렸다.\n" * 20, "cp1253": "Ο δρόμος οδηγεί προς τον νότο.\n" * 20}


def said(tmp_path, content, suffix=".txt"):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    return not_utf8(path, suffix)


@pytest.mark.parametrize("encoding", FOREIGN)
def test_text_of_another_part_of_the_world_is_not_taken_for_western(tmp_path, encoding):
    for text in (FOREIGN[encoding], "plain words first, and many of them\n" * 200 + FOREIGN[encoding]):
        message = said(tmp_path, text.encode(encoding))
        assert "WINDOWS-1252" not in message and "iconv -f" not in message
        assert "Its encoding is not one of Western Europe" in message


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp850"])
def test_western_text_gets_the_command(tmp_path, encoding):
    message = said(tmp_path, WESTERN.encode(encoding))
    assert ("iconv -f WINDOWS-1252" in message) == (encoding != "cp850")  # 0x81 and 0x90 are not in WINDOWS-1252


@pytest.mark.parametrize("encoding, name", [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
def test_marks_name_the_encoding(tmp_path, encoding, name):
    assert f"begins as {name} does): iconv -f {name} -t UTF-8" in said(tmp_path, WESTERN.encode(encoding))


@pytest.mark.parametrize("content, message", [
    ("good é\nraw half ".encode() + b"\xed\xa0\xbd here\n", "1 half of a surrogate pair as bytes .* first in line 2"),
    (b"\xed\xa0\xbd\xed\xb8\x80", "2 halves of surrogate pairs as bytes"),
    ("été\nplain\n".encode() + b"caf\xe9\n", "Its other 2 characters beyond ASCII are UTF-8, .*: mend line 3"),
    ("plain words, then \u5929".encode()[:-1], "It ends inside a character, in line 1, so it may have been cut"),
    ("été ".encode() * 9 + "\U0001f30a".encode()[:-2], "It ends inside a character"),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", "It holds control characters, so it may be no text at all"),
    (b"\xff\xfb\x90\x64 no mark of UTF-16", "Its encoding is not one of"),
    (b"\x89PNG\r\n\x1a\n\0\0\0", "It holds control characters"),
    (random.Random(1).randbytes(3000) + b"\xed\xa0\xbd", "It holds control characters"),  # a half by chance
])
def test_what_is_wrong_is_named_and_no_command_is_given(tmp_path, content, message):
    found = said(tmp_path, content)
    assert re.search(message, found) and "iconv -f" not in found and "\n" not in found


def test_offset_line_and_counts_are_those_of_a_naive_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(text_advice, "BLOCK_BYTES", 7)  # a block ends inside of most characters
    rng = random.Random(0)
    for _ in range(200):
        parts = [*(c.encode() for c in "a\né天🌊"), b"\xe9", b"\xed\xa0\x80"]
        content = b"".join(rng.choices(parts, k=rng.randrange(1, 40)))
        (tmp_path / "a.txt").write_bytes(content)
        found = survey(tmp_path / "a.txt", ".txt")
        decoded = content.decode("utf-8", "surrogateescape")
        assert (found.bad, found.good) == (sum("\udc80" <= c <= "\udcff" for c in decoded),
                                           sum(c > "\x7f" and not "\udc80" <= c <= "\udcff" for c in decoded))
        try:
            content.decode()
            assert found.offset is None
        except UnicodeDecodeError as e:
            assert (found.offset, found.value) == (e.start, content[e.start])
            assert found.line == content.count(b"\n", 0, e.start) + 1


@pytest.mark.skipif(not shutil.which("iconv"), reason="no iconv")
def test_a_printed_command_spoils_no_character(tmp_path):
    """Texts in UTF-8, WINDOWS-1252 and both: whatever is printed is run, and no good character may be lost."""
    rng, ran = random.Random(1), 0
    for _ in range(60):
        parts = [rng.choice(("plain words", "café", "süß", "x" * 30)) for _ in range(12)]
        encodings = rng.choice((("cp1252",), ("utf-8",), ("utf-8", "cp1252")))
        content = b"\n".join(part.encode(rng.choice(encodings)) for part in parts)
        try:
            content.decode()
            continue
        except UnicodeDecodeError:
            message = said(tmp_path, content)
        if command := re.search(r": (iconv .*); or leave it out", message):
            assert subprocess.run(["sh", "-ec", command[1]]).returncode == 0
            assert (tmp_path / "a.txt").read_bytes().decode() == "\n".join(parts)
            ran += 1
    assert ran > 3
