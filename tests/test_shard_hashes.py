"""
python -m pytest tests/test_shard_hashes.py -q

The hashes that a manifest records are compared with the shards, once for each state of a file.
"""

import json
import os
import shutil

import pytest
from folder_case import add_manifest, make_three_shards

from nanochat import manifest
from nanochat.common import sha256_file
from nanochat.manifest import MANIFEST, get_dataset_id, shard_name, split_paths


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A base dir with three shards and no manifest."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    return make_three_shards(tmp_path)


def flip_a_bit(path):
    """The file is as long as before, and cannot be told from it by its size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


@pytest.fixture
def hashed(folder, monkeypatch):
    """The folder with a manifest, and the names of the files that are read to hash them."""
    add_manifest(folder, shard_name(2))
    read = []

    def sha256(path):
        read.append(path.name)
        return sha256_file(path)
    monkeypatch.setattr(manifest, "sha256_file", sha256)
    forget()
    return folder, read


def forget():
    """As a new process: what stays is on disk."""
    manifest._verified.clear()


def test_a_flipped_bit_and_a_shard_of_equal_size_are_named(hashed):
    folder, _ = hashed
    split_paths("train")
    flip_a_bit(folder / shard_name(1))
    with pytest.raises(ValueError, match=r"shard_00001\.parquet was changed or damaged: its sha256 is not the one in "
                                         r"its manifest; delete that shard"):
        split_paths("train")
    assert split_paths("val")  # which reads another file
    other = (folder / shard_name(0)).read_bytes().replace(b"shard 0 document 3", b"shard 7 document 3")
    (folder / "new").write_bytes(other)
    os.replace(folder / "new", folder / shard_name(0))
    forget()
    with pytest.raises(ValueError, match=r"shard_00000\.parquet was changed .*as of 1 other shards"):
        split_paths("train")


def test_a_shard_is_read_once_until_its_time_or_inode_changes(hashed):
    folder, read = hashed
    for _ in range(2):
        split_paths("train")
        split_paths("val")
        forget()
    assert read == [shard_name(0), shard_name(1), shard_name(2)]
    os.utime(folder / shard_name(0))
    copy = folder / "copy"
    shutil.copy2(folder / shard_name(1), copy)  # same bytes and time, another inode
    os.replace(copy, folder / shard_name(1))
    split_paths("train")
    assert read[3:] == [shard_name(0), shard_name(1)]


def test_a_damaged_list_of_verified_shards_only_costs_time(hashed):
    folder, read = hashed
    for damaged in ("[1]", "{", '{"shard_00000.parquet": 7}', "\x00"):
        (folder / manifest.VERIFIED).write_text(damaged)
        forget()
        assert len(split_paths("train")) == 2
    assert len(read) == 8


def test_a_folder_that_cannot_be_written_is_read_once_a_process(hashed, monkeypatch):
    def refuse(path, content):
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(manifest, "write_json", refuse)
    _, read = hashed
    for _ in range(3):
        split_paths("train")
    assert read == [shard_name(0), shard_name(1)]


def test_a_long_comparison_is_said(hashed, monkeypatch, capsys):
    monkeypatch.setattr(manifest, "SAY_AFTER_SEC", -1)
    split_paths("train")
    assert "compared 2 shards with the hashes in" in capsys.readouterr().out


@pytest.mark.parametrize("change", [
    dict(shards=7), dict(shards=[7]), dict(shards=[dict(name="x.parquet", bytes="9")]), dict(dataset_id=None),
    dict(shards=[dict(name="../x.parquet", bytes=9)]), dict(validation_shard="/etc/x"), dict(source="here")])
def test_a_manifest_of_another_shape_is_one_line(folder, change):
    made = add_manifest(folder, shard_name(2))
    (folder / MANIFEST).write_text(json.dumps({**made, **change}))
    with pytest.raises(ValueError, match=r"manifest\.json is no manifest of a dataset.*build the dataset again$"):
        split_paths("train")


def test_a_manifest_whose_id_is_not_that_of_its_shards_is_named(folder):
    made = add_manifest(folder, shard_name(2))
    for change in (dict(dataset_id="0" * 64), dict(validation_shard=shard_name(1)), dict(shards=made["shards"][1:]),
                   dict(split_rule="another")):
        (folder / MANIFEST).write_text(json.dumps({**made, **change}))
        with pytest.raises(ValueError, match=r"manifest\.json was changed or damaged: its dataset_id .* build or down"):
            get_dataset_id(folder.parent)
    (folder / MANIFEST).write_text(json.dumps({**made, "max_doc_chars": 7}))  # which decides nothing any more
    assert get_dataset_id(folder.parent) == made["dataset_id"]
