"""
JSON files that are damaged or are none: one line that names the file, never a traceback, a wait or "not there".

python -m pytest tests/test_json_file.py -q
"""

import os

import pytest

from nanochat.common import read_json

NOT_AN_OBJECT = {
    "empty": b"", "list": b"[]", "null": b"null", "number": b"3", "torn": b'{"a": 1', "latin-1": b'{"a": "\xe9"}',
    "bit 7 flipped": b'{"\xe1": 1}', "deep": b"[" * 100_000, "NaN": b'{"a": NaN}',
    "digits": b'{"a": ' + b"9" * 9999 + b"}",
    "zeros": b"\0" * 512}


@pytest.mark.parametrize("content", NOT_AN_OBJECT.values(), ids=list(NOT_AN_OBJECT))
def test_a_damaged_json_file_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged") as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_missing_json_file_is_not_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "file.json")
    with pytest.raises(ValueError, match="regular file"):
        read_json(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_in_the_place_of_a_json_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "file.json")
    with pytest.raises(ValueError, match="regular file"):
        read_json(tmp_path / "file.json")


def test_a_byte_order_mark_before_json_is_read(tmp_path):
    (tmp_path / "file.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "file.json") == {"a": 1}
