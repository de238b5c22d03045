"""
python -m pytest tests/test_manifest.py

A folder of shards, with and without a manifest: its splits, the reading of its documents, its identity.
"""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import manifest
from nanochat.common import sha256_file
from nanochat.manifest import (
    DATA_FOLDER,
    MANIFEST,
    OLD_DATA_FOLDER,
    dataset_id,
    get_data_dir,
    get_dataset_id,
    list_parquet_files,
    read_manifest,
    shard_name,
    split_paths,
    write_manifest,
)
from nanochat.shards import iter_texts, read_row_group, row_groups


def make_shard(path, texts, rows=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path, row_group_size=rows)
    return dict(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path), documents=len(texts),
                row_groups=-(-len(texts) // rows), chars=None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A base dir with three shards as upstream leaves them: no manifest."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    path = tmp_path / DATA_FOLDER
    for i in range(3):
        make_shard(path / shard_name(i), [f"shard {i} document {j}" for j in range(5)])
    return path


def add_manifest(folder, validation_shard, names=None):
    shards = [dict(name=p.name, bytes=p.stat().st_size, sha256=sha256_file(p), documents=5, row_groups=3, chars=None)
              for p in sorted(folder.glob("*.parquet")) if names is None or p.name in names]
    return write_manifest(folder, shards=shards, validation_shard=validation_shard, split_rule="test", max_doc_chars=0,
                                  source=dict(kind="test"))


def test_without_manifest_the_last_shard_validates(folder):
    assert [p.name for p in split_paths("train")] == ["shard_00000.parquet", "shard_00001.parquet"]
    assert [p.name for p in split_paths("val", folder)] == ["shard_00002.parquet"]
    assert list(iter_texts("val")) == [f"shard 2 document {j}" for j in range(5)]


def test_pinned_shard_validates_wherever_it_sorts(folder):
    add_manifest(folder, "shard_00001.parquet")
    assert [p.name for p in split_paths("val")] == ["shard_00001.parquet"]
    assert [p.name for p in split_paths("train")] == ["shard_00000.parquet", "shard_00002.parquet"]


def test_row_groups_are_read_in_file_order(folder):
    groups = row_groups(split_paths("train"))
    assert [(p.name, i, n) for p, i, n in groups] == \
        [(f"shard_0000{s}.parquet", i, n) for s in (0, 1) for i, n in ((0, 2), (1, 2), (2, 1))]
    texts = [t for path, i, n in groups for t in read_row_group(path, i)]
    assert texts == [t for s in (0, 1) for t in pq.read_table(folder / f"shard_0000{s}.parquet")["text"].to_pylist()]
    assert texts == list(iter_texts("train"))


def test_missing_pinned_shard_is_named(folder):
    add_manifest(folder, "shard_00002.parquet")
    (folder / "shard_00002.parquet").unlink()
    for split in ("train", "val"):  # upstream would validate on shard 1, which it trains on with another machine's copy
        with pytest.raises(FileNotFoundError, match=r"validation shard .*shard_00002\.parquet is missing"):
            split_paths(split)


def test_pinned_shard_that_was_never_listed_is_missing(folder):
    add_manifest(folder, "shard_00009.parquet")
    with pytest.raises(FileNotFoundError, match=r"shard_00009\.parquet is missing"):
        split_paths("train")


def test_missing_or_cut_training_shard_is_named(folder):
    add_manifest(folder, "shard_00002.parquet")
    path = folder / "shard_00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    sizes = f"has {len(whole) - 7} bytes, its manifest says {len(whole)}"
    with pytest.raises(ValueError, match=rf"shard_00000\.parquet {sizes}"):
        split_paths("val")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard_00000\.parquet is missing"):
        split_paths("train")


def test_unlisted_shards_are_left_out_and_said(folder, capsys):
    add_manifest(folder, "shard_00002.parquet", names={"shard_00000.parquet", "shard_00002.parquet"})
    for _ in range(2):
        assert [p.name for p in split_paths("train")] == ["shard_00000.parquet"]
    said = "1 shards that the manifest does not list are left out (shard_00001.parquet"
    assert capsys.readouterr().out.count(said) == 1


def test_one_shard_is_an_error(tmp_path):
    make_shard(tmp_path / "shard_00000.parquet", ["a", "b"])
    with pytest.raises(ValueError, match=r"one shard \(shard_00000\.parquet\).*python -m nanochat.dataset"):
        split_paths("train", tmp_path)


@pytest.mark.parametrize("exists", (False, True))
def test_no_shards_names_the_command_that_makes_them(tmp_path, exists):
    if exists:  # what an interrupted download leaves is no shard
        for name in ("shard_00000.parquet.part", ".shard_00000.parquet.1.tmp", ".shard_00000.parquet"):
            (tmp_path / "data").mkdir(exist_ok=True)
            (tmp_path / "data" / name).write_bytes(b"PAR1")
    with pytest.raises(FileNotFoundError, match="python -m nanochat.dataset --builtin"):
        list_parquet_files(tmp_path / "data")


def _damaged(path, how):
    data = bytearray(path.read_bytes())
    if how == "no parquet":
        data[:] = b"<html>Too many requests</html>"
    elif how == "truncated":
        del data[len(data) // 2:]
    elif how == "garbled pages":
        data[4:len(data) // 3] = b"\xff" * (len(data) // 3 - 4)
    elif how == "empty":
        data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize("how", ("no parquet", "truncated", "garbled pages", "empty"))
def test_corrupt_shard_is_named(folder, how):
    path = folder / "shard_00001.parquet"
    make_shard(path, [f"{i} some longer text that fills its page {i * 7919}" for i in range(200)], rows=50)
    _damaged(path, how)
    with pytest.raises(ValueError, match=r"shard_00001\.parquet cannot be read .*delete it, then build or download"):
        list(iter_texts("train"))


@pytest.mark.parametrize("column", ({"content": ["a", "b"]}, {"text": [1, 2]}, {"text": ["a", None]}))
def test_wrong_column_is_named(tmp_path, column):
    pq.write_table(pa.table(column), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet cannot be read"):
        read_row_group(tmp_path / "x.parquet", 0)


def test_older_folder_is_read_where_only_it_exists(tmp_path, capsys):
    make_shard(tmp_path / OLD_DATA_FOLDER / "shard_00000.parquet", ["a"])
    for _ in range(2):
        assert get_data_dir(tmp_path).name == OLD_DATA_FOLDER
    assert capsys.readouterr().out.count("upstream's older dataset") == 1
    (tmp_path / DATA_FOLDER).mkdir()
    assert get_data_dir(tmp_path).name == DATA_FOLDER


def test_corrupt_manifest_is_named(folder):
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not valid JSON"):
        split_paths("train")


def test_dataset_id_is_of_the_content_not_of_the_compressor():
    row = dict(name="shard_00000.parquet", bytes=10, sha256="a", text_sha256="t", documents=3, row_groups=1, chars=9)
    other_file = {**row, "bytes": 11, "sha256": "b"}
    assert dataset_id([row], "v", "rule") == dataset_id([other_file], "v", "rule")
    downloaded = {k: v for k, v in row.items() if k != "text_sha256"}
    changed = [{**row, "text_sha256": "u"}, {**row, "name": "x"}, {**row, "row_groups": 2}, downloaded,
               {**downloaded, "sha256": "b"}]
    ids = {dataset_id([r], "v", "rule") for r in (row, *changed)}
    ids |= {dataset_id([row], "w", "rule"), dataset_id([row], "v", "another rule")}
    assert len(ids) == 8


def test_dataset_id_of_a_base_dir(folder, tmp_path):
    without = get_dataset_id(tmp_path)
    assert without == get_dataset_id()
    make_shard(folder / "shard_00003.parquet", ["one more"])
    assert get_dataset_id() != without
    made = add_manifest(folder, "shard_00003.parquet")
    assert get_dataset_id() == made["dataset_id"] == read_manifest(folder)["dataset_id"]


# -----------------------------------------------------------------------------
# The hashes that the manifest records

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
    (folder / MANIFEST).write_text(json.dumps({**add_manifest(folder, shard_name(2)), **change}))
    with pytest.raises(ValueError, match=r"manifest\.json is no manifest of a dataset.*build the dataset again$"):
        split_paths("train")
