"""
python -m pytest tests/test_manifest.py

A folder of shards, with and without a manifest: its splits, the reading of its documents, its identity.
"""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folder_case import add_manifest, make_shard, make_three_shards

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
)
from nanochat.shards import iter_texts, read_row_group, row_groups


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A base dir with three shards as upstream leaves them: no manifest."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    return make_three_shards(tmp_path)


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("make", (os.mkdir, getattr(os, "mkfifo", None), lambda path: os.symlink("nowhere", path)))
def test_what_is_no_regular_file_is_named_and_not_waited_for(folder, make):
    make(folder / "shard_00009.parquet")
    with pytest.raises(ValueError, match=r"shard_00009\.parquet is no regular file; move it out"):
        split_paths("train")


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


@pytest.mark.parametrize("column", ({"content": ["a", "b"]}, {"text": [1, 2]}, {"text": [b"a", b"b"]},
                                    {"text": pa.nulls(2)}, {"text": [{"text": "a"}]}))
def test_wrong_column_is_named_before_anything_is_read(tmp_path, column):
    pq.write_table(pa.table(column), tmp_path / "x.parquet")
    for read in (lambda path: row_groups([path]), lambda path: read_row_group(path, 0)):
        with pytest.raises(ValueError, match=r"x\.parquet cannot be read .*expected a column text of strings, got "):
            read(tmp_path / "x.parquet")


TEXTS = ["a", "", "a longer text", "a"]


@pytest.mark.parametrize("kind", (pa.string(), pa.large_string(), pa.string_view(), None), ids=str)
def test_strings_are_read_however_a_shard_holds_them(tmp_path, kind):
    text = pa.array(TEXTS).cast(kind) if kind else pa.array(TEXTS).dictionary_encode()
    pq.write_table(pa.table({"n": [[1], [], [2, 3], [4]], "text": text}), tmp_path / "x.parquet")
    assert row_groups([tmp_path / "x.parquet"]) == [(tmp_path / "x.parquet", 0, 4)]
    assert read_row_group(tmp_path / "x.parquet", 0) == TEXTS


@pytest.mark.parametrize("statistics", (True, False))
def test_nulls_are_left_out_and_said_before_training_where_the_metadata_counts_them(folder, capsys, statistics):
    texts = ["a", "b", None, "c", None, None]
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / shard_name(1), row_group_size=3,
                   write_statistics=statistics)
    capsys.readouterr()
    groups = row_groups(split_paths("train"))
    said = capsys.readouterr().out
    assert (said == f"{folder / shard_name(1)}: 3 of 6 documents are null, and left out\n") == statistics
    assert [n for _, _, n in groups[-2:]] == [3, 3]  # a position in the metadata is a position in the shard
    assert [read_row_group(folder / shard_name(1), i) for i in range(2)] == [texts[:3], texts[3:]]
    assert list(iter_texts("train"))[-3:] == ["a", "b", "c"]
    said = capsys.readouterr().out
    assert (f"{shard_name(1)}: row 2 of row group 0 is null, and left out\n" in said) != statistics
    assert ("row 1 of row group 1 is null, and left out, and 1 others of that group\n" in said) != statistics


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
