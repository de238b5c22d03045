"""
Files that are read whole: a pipe is not waited for, and a file that would fill the memory is refused, by every reader.

python -m pytest tests/test_hostile_files.py -q
"""

import os
import sys
from pathlib import Path

import pytest

from nanochat.common import MOST_BYTES, atomic_write, read_json, read_regular
from nanochat.lab.commands import require_writable
from nanochat.lab.csv_file import check_header, read_rows
from nanochat.lab.csv_text import MOST_CSV
from nanochat.lab.ledger import experiments
from nanochat.lab.trees.metas import read_meta
from nanochat.lab.trees.patch_files import read_patch
from nanochat.record import MOST_METRICS, last_metrics_row, read_metrics
from nanochat.tokenizer_files import read_pickle
from scripts import leaderboard

SIZES = {read_json: MOST_BYTES, read_rows: MOST_CSV, read_metrics: MOST_METRICS, read_pickle: MOST_BYTES,
         read_patch: MOST_BYTES, leaderboard.page_text: MOST_BYTES}
READERS = [*SIZES, last_metrics_row]


def name_of(reader):
    return reader.__name__


@pytest.mark.parametrize("reader, most", SIZES.items(), ids=map(name_of, SIZES))
def test_file_too_large_for_the_memory_is_refused(tmp_path, reader, most):
    path = tmp_path / "x"
    with open(path, "wb") as f:
        f.truncate(most + 1)  # a hole: it takes no room on the disk
    with pytest.raises(ValueError, match=f"has {most + 1:,} bytes, expected at most") as caught:
        reader(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes that have a name")
@pytest.mark.parametrize("reader", READERS, ids=name_of)
@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "/dev/full"])
def test_pipe_and_device_are_refused_at_once(tmp_path, reader, kind):
    path = tmp_path / "x"
    os.mkfifo(path) if kind == "fifo" else path.symlink_to(kind)
    with pytest.raises(ValueError, match="regular file"):
        reader(path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes that have a name")
def test_checkpoint_of_a_tree_is_not_there_yet_where_a_pipe_is(tmp_path):
    os.mkfifo(tmp_path / "meta_000001.json")
    assert read_meta(tmp_path / "meta_000001.json") is None


def test_file_of_the_largest_size_is_read(tmp_path):
    Path(tmp_path / "x").write_bytes(b"12345")
    assert read_regular(tmp_path / "x", 5) == b"12345"
    with pytest.raises(ValueError, match="has 5 bytes, expected at most 4"):
        read_regular(tmp_path / "x", 4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes that have a name")
def test_only_a_regular_file_is_replaced_by_one_that_is_written(tmp_path):
    """As root, --output-json=/dev/null would have replaced the device of the whole machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/full")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/full")):
        before = os.lstat(path)
        with pytest.raises(OSError, match="no regular file"):
            atomic_write(path, "x")
        with pytest.raises(ValueError, match="cannot be written"):
            require_writable(path)
        assert os.path.samestat(before, os.lstat(path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]


def test_first_line_of_a_million_letters_is_another_header(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"[" * 1_000_000 + b"\n1,2\n")
    with pytest.raises(ValueError, match="has other columns") as caught:
        check_header(tmp_path / "x.csv", ["seed", "val_bpb"])
    assert len(str(caught.value)) < 1000


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_ledger_that_is_a_link_to_itself_is_no_traceback(tmp_path):
    (tmp_path / "l.csv").symlink_to(tmp_path / "l.csv")
    assert experiments.read_all(tmp_path / "l.csv") == []
