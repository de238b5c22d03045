"""
Durable files (order of operations, failures), strict JSON, hashes, ranks, temporary folders.

python -m pytest tests/test_common.py -q
"""

import builtins
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nanochat import common
from nanochat.common import atomic_write, atomic_writer, hash_json, read_json, sha256_file, write_json

posix = pytest.mark.skipif(os.name == "nt", reason="a directory cannot be fsynced there")


# -----------------------------------------------------------------------------
# Durable files

class Journal:
    """A shim around the operating system's calls: a list of the calls, in order, with their file."""

    def __init__(self, monkeypatch):
        self.events, self.names = [], {}
        real = {name: getattr(os, name) for name in ("fsync", "replace", "rename", "open", "close")}
        real_open = builtins.open

        def opened(path, *args, **kwargs):
            f = real_open(path, *args, **kwargs)
            if any(set("wax+") & set(mode) for mode in (*args[:1], kwargs.get("mode", "r")) if isinstance(mode, str)):
                self.names[f.fileno()] = Path(path)
                self.events.append(("write", Path(path)))
            return f

        def os_open(path, *args, **kwargs):
            fd = real["open"](path, *args, **kwargs)
            self.names[fd] = Path(path)
            return fd

        def fsync(fd):
            self.events.append(("fsync", self.names[fd], os.fstat(fd).st_size))
            real["fsync"](fd)

        def rename(source, target):
            self.events.append(("rename", Path(source), Path(target)))
            real["replace"](source, target)
        monkeypatch.setattr(builtins, "open", opened)
        for name, shim in (("open", os_open), ("fsync", fsync), ("replace", rename), ("rename", rename)):
            monkeypatch.setattr(os, name, shim)


@posix
def test_order_is_write_fsync_rename_fsync_of_the_folder(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    path.write_text("old")
    journal = Journal(monkeypatch)
    write_json(path, {"a": 1})
    (write, temporary), synced, renamed, folder = journal.events
    assert write == "write" and temporary.parent == tmp_path and temporary != path
    assert synced == ("fsync", temporary, path.stat().st_size), "everything was flushed before the fsync"
    assert renamed == ("rename", temporary, path) and folder[:2] == ("fsync", tmp_path)
    assert read_json(path) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError(28, "No space left on device")
    if failing != "write":
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        with atomic_writer(path) as f:
            f.write(b"half of the new")
            if failing == "write":
                fail()
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, ValueError])
def test_interrupted_write_leaves_the_old_file(tmp_path, exception):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(exception):
        with atomic_writer(path) as f:
            f.write(b"half")
            raise exception
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_writer(path) as f:
        f.write(b"new" * 100000)
        f.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" * 100000


def test_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = ("import os, signal, sys; from nanochat.common import atomic_writer\n"
            "with atomic_writer(sys.argv[1]) as f:\n    f.write(b'x' * 10**6); f.flush(); os._exit(9)")
    run = subprocess.run([sys.executable, "-c", code, str(path)], cwd=common.REPO_ROOT)
    assert run.returncode == 9 and path.read_bytes() == b"old"


def test_missing_folders_are_made(tmp_path):
    atomic_write(tmp_path / "a" / "b" / "file", "text: é\n")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == "text: é\n".encode()


@posix
def test_new_folder_is_made_durable_too(tmp_path, monkeypatch):
    """Without an fsync of its parent, a folder made just now may be gone after a power cut, and the file with it."""
    journal = Journal(monkeypatch)
    atomic_write(tmp_path / "new" / "file", "text")
    synced = [event[1] for event in journal.events if event[0] == "fsync"]
    assert tmp_path / "new" in synced and tmp_path in synced


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_without_a_number_is_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "file.json"
    write_json(path, {"val_bpb": 1.5})
    with pytest.raises(ValueError):
        write_json(path, {"val_bpb": value})
    assert read_json(path) == {"val_bpb": 1.5} and list(tmp_path.iterdir()) == [path]


def test_json_comes_back_as_it_was(tmp_path):
    value = {"none": None, "float": 0.1 + 0.2, "text": "é \u2028 \n", "list": [1, [2.5e-300], {}], "true": True}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path
                     / "file.json") == value == json.loads((tmp_path / "file.json").read_text(encoding="utf-8"))


# -----------------------------------------------------------------------------
# Hashes

def test_sha256_is_that_of_the_standard_library_on_every_python(tmp_path):
    path, content = tmp_path / "file", os.urandom(3 * 2 ** 20 + 17)
    path.write_bytes(content)
    assert sha256_file(path) == hashlib.sha256(content).hexdigest()
    with open(path, "rb") as f:
        assert common._sha256_stream(f) == hashlib.sha256(content).hexdigest(), "the way of Python 3.10"


def test_hash_of_json_depends_on_content_and_not_on_order():
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    different = {"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, {"a": None}, {"a": [1, 2]}, {"a": [2, 1]}
    assert len(set(map(hash_json, different))) == 8
    with pytest.raises(ValueError):
        hash_json(float("nan"))


# -----------------------------------------------------------------------------
# Environment

def test_base_dir_follows_the_environment_and_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "x" / "y"))
    assert common.get_base_dir() == tmp_path / "x" / "y" and common.get_base_dir().is_dir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "~/z")
    assert common.get_base_dir() == tmp_path / "z"
    for unset in ("", None):
        monkeypatch.delenv("NANOCHAT_BASE_DIR") if unset is None else monkeypatch.setenv("NANOCHAT_BASE_DIR", unset)
        assert common.get_base_dir() == tmp_path / ".cache" / "nanochat"


def test_only_rank_0_prints(monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert common.get_dist_info() == (0, 0, 1)
    common.print0("a", "b", sep="-")
    monkeypatch.setenv("RANK", "3"), monkeypatch.setenv("LOCAL_RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "8")
    assert common.get_dist_info() == (3, 1, 8)
    common.print0("c")
    assert capsys.readouterr().out == "a-b\n"


def test_base_dir_that_cannot_be_made_says_which_variable_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "file" / "base"))
    with pytest.raises(OSError, match="cannot be made.*set NANOCHAT_BASE_DIR"):
        common.get_base_dir()


def test_temporary_folder_goes_away_and_names_tmpdir_where_there_is_none(tmp_path, monkeypatch):
    with common.temporary_folder("x-") as folder:
        (folder / "file").write_text("", encoding="utf-8")
    assert not folder.exists()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(OSError, match="no temporary folder can be made .*set TMPDIR"), common.temporary_folder("x-"):
        pass
