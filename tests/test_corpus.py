"""
python -m pytest tests/test_corpus.py

The two kinds of corpora, built end to end. Cutting, splitting and writing have test_shards.py.
"""

import gzip
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_case import documents, prose

from nanochat import corpus, text_files
from nanochat.common import REPO_ROOT
from nanochat.manifest import read_manifest

REAL_TEXT = REPO_ROOT.parent / "shared" / "data"

# -----------------------------------------------------------------------------
# The built-in corpus

@pytest.fixture(scope="module")
def builtin(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("base") / "base_data_climbmix"
    return data_dir, corpus.build_builtin(data_dir, progress=False)


def test_builtin_corpus_keeps_its_promises(builtin):
    data_dir, manifest = builtin
    docs = documents(data_dir)
    rows = manifest["shards"]
    files = [pq.ParquetFile(data_dir / s["name"]) for s in rows]
    assert len(rows) >= 3 and manifest["validation_shard"] == rows[-1]["name"] == sorted(s["name"] for s in rows)[-1]
    assert sum(f.num_row_groups for f in files[:-1]) >= 8
    assert all(f.metadata.row_group(0).num_rows == 1024 for f in files[:-1])
    assert [(s["documents"], s["row_groups"], s["bytes"]) for s in rows] == \
        [(f.metadata.num_rows, f.num_row_groups, (data_dir / s["name"]).stat().st_size) for f, s in zip(files, rows)]
    assert sum(map(len, docs["train"] + docs["val"])) == sum(s["chars"] for s in rows)
    assert max(map(len, docs["train"] + docs["val"])) <= manifest["max_doc_chars"] == 1000
    assert len(set(docs["train"] + docs["val"])) == len(docs["train"]) + len(docs["val"])  # no duplicate, none in both
    assert sum(len(t.encode()) for t in docs["val"]) >= 1_400_000
    assert manifest["packing_share"] >= 0.85
    assert manifest["source"]["packages"]["numpy"] == importlib.metadata.version("numpy")


def test_builtin_corpus_is_not_built_twice(builtin, monkeypatch):
    data_dir, manifest = builtin
    monkeypatch.setattr(corpus, "_build", None)
    assert corpus.build_builtin(data_dir, progress=False) == manifest


def test_damaged_builtin_corpus_is_built_again(tmp_path):
    data_dir = tmp_path / "base_data_climbmix"
    small = dict(packages=("numpy",), max_chars=500_000, progress=False)
    manifest = corpus.build_builtin(data_dir, **small)
    (data_dir / "shard_00000.parquet").write_bytes(b"PAR1")
    (tmp_path / ".base_data_climbmix.building").mkdir()  # a build was killed
    (tmp_path / ".base_data_climbmix.building" / "shard_00007.parquet").write_bytes(b"PAR1")
    assert corpus.build_builtin(data_dir, **small) == manifest
    assert sorted(os.listdir(data_dir)) == ["manifest.json", *(f"shard_0000{i}.parquet" for i in range(3))]
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["base_data_climbmix"]
    assert corpus.build_builtin(data_dir, **{**small, "max_chars": 400_000})["dataset_id"] != manifest["dataset_id"]


def make_package(root, newline):
    for i in range(120):
        path = root / "fakepackage" / f"part{i % 7}" / f"module{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(prose(i).replace("\n", newline).encode())
    for name in ("__init__.py", "version.py", "part1/__init__.py"):  # what differs between builds
        (root / "fakepackage" / name).write_text(f"built in {root}")
    (root / "fakepackage" / "latin.py").write_bytes(b"# caf\xe9")
    (root / "fakepackage" / "__pycache__").mkdir()
    (root / "fakepackage" / "__pycache__" / "x.py").write_text(f"cache of {root}")


def test_dataset_id_is_the_same_in_another_folder_with_other_newlines_and_build_files(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_version", lambda package: "1.0")
    ids = []
    for place, newline in (("linux", "\n"), ("windows", "\r\n")):
        make_package(tmp_path / place, newline)
        with monkeypatch.context() as m:
            m.syspath_prepend(str(tmp_path / place))
            manifest = corpus.build_builtin(tmp_path / place / "data", packages=("fakepackage",), progress=False)
        ids.append(manifest["dataset_id"])
    assert ids[0] == ids[1]
    texts = [text for split in documents(tmp_path / "linux" / "data").values() for text in split]
    assert not any("built in" in t or "cache of" in t or "caf" in t for t in texts)


def test_local_part_of_a_version_does_not_count(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.13.0+cu130")
    assert corpus._version("torch") == "2.13.0"


def test_missing_package_is_named(tmp_path):
    with pytest.raises(ValueError, match="no_such_package, which is not installed"):
        corpus.build_builtin(tmp_path / "data", packages=("no_such_package",))


# -----------------------------------------------------------------------------
# A user's own text

def test_every_format_gives_the_same_documents(tmp_path):
    texts = [prose(i, 3) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.table({"id": range(60), "text": texts}), tmp_path / "c.parquet", row_group_size=7)
    ids = {corpus.build_from_paths(tmp_path / p.stem, [p], 0, progress=False)["dataset_id"]
           for p in sorted(tmp_path.glob("?.*"))}
    assert len(ids) == 1
    assert sorted(t for d in documents(tmp_path / "c").values() for t in d) == sorted(texts)


def test_big_text_file_is_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_CHARS", 5000)
    (tmp_path / "big.txt").write_text(prose(0, 3000))
    corpus.build_from_paths(tmp_path / "data", [tmp_path / "big.txt"], progress=False)
    docs = documents(tmp_path / "data")
    numbers = sorted(int(n) for d in docs.values() for t in d for n in re.findall(r"0/(\d+)", t))
    assert numbers == list(range(3000))


BAD_INPUTS = {
    "bad.jsonl": (b'{"text": "fine"}\n\n{"body": "no text"}\n', r"bad\.jsonl, line 3: expected an object"),
    "list.jsonl": (b'[1]\n', r"list\.jsonl, line 1: expected an object"),
    "number.jsonl": (b'{"text": 7}\n', r"number\.jsonl, line 1: expected an object"),
    "torn.jsonl": (b'{"text": "fine"}\n{"text": "to', r"torn\.jsonl, line 2: expected an object"),
    "half.jsonl": (rb'{"text": "\ud83d"}', r"half\.jsonl, line 1: half of a surrogate pair \(\\ud83d"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "fine"}\n' * 999)[:-20], r"cut\.jsonl\.gz cannot be read as \.jsonl\.gz"),
    "plain.jsonl.gz": (b'{"text": "fine"}\n', r"plain\.jsonl\.gz cannot be read"),
    "latin.txt": (b"a caf\xe9 " * 99,
                  r"latin\.txt is not UTF-8: byte 0xe9 at offset 5\. Convert it.*iconv -f WINDOWS-1252"),
    "wide.md": ("text".encode("utf-16"),
                r"wide\.md is not UTF-8: byte 0xff at offset 0\. .*as UTF-16 does\): iconv -f UTF-16 "),
    "latin.jsonl": (b'{"text": "fine"}\n{"text": "caf\xe9"}\n', r"latin\.jsonl is not UTF-8: byte 0xe9 at offset 30"),
    "cut.txt": (b"caf\xc3", r"cut\.txt is not UTF-8: byte 0xc3 at offset 3"),
    "x.parquet": (b"PAR1 no", r"x\.parquet cannot be read as \.parquet"),
    "empty.txt": (b"", r"too little text in .*empty\.txt.*: 0 different documents"),
    "blank.md": (b"\n \n", r"too little text"),
    "short.txt": (b"one line",
                  r"too little text .*: 1 different documents \(8 characters\), expected at least 1 to train on"),
    "page.html": (b"<p>", r"page\.html: expected \.txt \.md \.jsonl \.jsonl\.gz \.parquet"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, name):
    content, message = BAD_INPUTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        corpus.build_from_paths(tmp_path / "lab" / "data", [tmp_path / name], progress=False)
    assert not [p for p in (tmp_path / "lab").rglob("*") if p.name != ".data.lock"]


@pytest.mark.skipif(os.name == "nt" or not shutil.which("iconv"), reason="no iconv")
@pytest.mark.parametrize("name, encoding", [
    ("it's.txt", "windows-1252"), ("wide.txt", "utf-16"), ("packed.jsonl.gz", "windows-1252")])
def test_offset_is_of_the_file_and_the_printed_command_converts_it(tmp_path, name, encoding):
    texts = [prose(i, 40) for i in range(50)]
    texts[41] += " caf\xe9"
    lines = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    whole = lines if ".jsonl" in name else "\n\n".join(texts)
    content = whole.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError) as e:
        corpus.build_from_paths(tmp_path / "data", [tmp_path / name], progress=False)
    offset = 0 if encoding == "utf-16" else whole.index("\xe9")
    assert f" at offset {offset}" in str(e.value) and (offset == 0 or offset > 9000)  # a decoder's block has 8192 bytes
    command = re.search(r": ((?:gzip|iconv) .*); or leave it out", str(e.value))[1]
    assert subprocess.run(["sh", "-ec", command]).returncode == 0
    corpus.build_from_paths(tmp_path / "data", [tmp_path / name], progress=False)
    assert any("caf\xe9" in text for docs in documents(tmp_path / "data").values() for text in docs)


def test_parquet_without_text_lists_its_columns(tmp_path):
    pq.write_table(pa.table({"content": ["a"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: expected a column text of strings, got \['content', 'n'\]"):
        corpus.build_from_paths(tmp_path / "data", [tmp_path / "x.parquet"], progress=False)


def test_folder_without_texts_and_missing_path_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "empty: expected .txt"), ("gone", "gone: no such file or folder")):
        with pytest.raises(ValueError, match=message):
            corpus.build_from_paths(tmp_path / "data", [tmp_path / name], progress=False)


def test_one_whole_document_says_that_cutting_would_help(tmp_path):
    (tmp_path / "x.txt").write_text(prose(0))
    with pytest.raises(ValueError, match="a smaller --max-doc-chars makes more"):
        corpus.build_from_paths(tmp_path / "data", [tmp_path / "x.txt"], max_doc_chars=0, progress=False)


# -----------------------------------------------------------------------------
# What is there is not lost

def test_another_corpus_or_unknown_files_are_not_overwritten(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(prose(name, 100))
    data_dir = tmp_path / "data"
    first = corpus.build_from_paths(data_dir, [tmp_path / "a.txt"], progress=False)
    with pytest.raises(ValueError, match=r"holds a dataset made from .*a\.txt"):
        corpus.build_from_paths(data_dir, [tmp_path / "b.txt"], progress=False)
    with pytest.raises(ValueError, match="holds a dataset made from"):
        corpus.build_builtin(data_dir, packages=("numpy",), max_chars=1000)
    assert read_manifest(data_dir) == first
    (tmp_path / "a.txt").write_text(prose("a", 101))
    assert corpus.build_from_paths(data_dir, [tmp_path / "a.txt"], progress=False)["dataset_id"] != first["dataset_id"]
    (data_dir / "manifest.json").unlink()
    with pytest.raises(ValueError, match="holds files that no manifest describes"):
        corpus.build_from_paths(data_dir, [tmp_path / "a.txt"], progress=False)


def test_failed_rebuild_keeps_the_old_dataset(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": prose(i)}) + "\n" for i in range(30)))
    manifest = corpus.build_from_paths(tmp_path / "data", [tmp_path / "a.jsonl"], progress=False)
    before = documents(tmp_path / "data")
    with open(tmp_path / "a.jsonl", "a") as f:
        f.write("{broken\n")
    with pytest.raises(ValueError, match="line 31"):
        corpus.build_from_paths(tmp_path / "data", [tmp_path / "a.jsonl"], progress=False)
    assert read_manifest(tmp_path / "data") == manifest and documents(tmp_path / "data") == before


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "a.txt").write_text(prose(0))
    (tmp_path / "lab").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"cannot write .*lab.*set NANOCHAT_BASE_DIR"):
        corpus.build_from_paths(tmp_path / "lab" / "data", [tmp_path / "a.txt"], progress=False)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write to a read-only folder")
def test_read_only_folder_is_named(tmp_path):
    (tmp_path / "a.txt").write_text(prose(0))
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab").chmod(0o500)
    with pytest.raises(OSError, match=r"cannot write .*lab.*set NANOCHAT_BASE_DIR"):
        corpus.build_from_paths(tmp_path / "lab" / "data", [tmp_path / "a.txt"], progress=False)


def test_second_builder_waits_and_finds_the_work_done(tmp_path, monkeypatch, capsys):
    results, builds, build, building = [], [], corpus._build, threading.Event()

    def slow_build(*args):
        builds.append(args)
        building.set()
        time.sleep(0.3)
        return build(*args)
    monkeypatch.setattr(corpus, "_build", slow_build)

    def work():
        results.append(corpus.build_builtin(tmp_path / "data", packages=("numpy",), max_chars=500_000, progress=False))
    threads = [threading.Thread(target=work) for _ in range(2)]
    threads[0].start()
    assert building.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and results[0] == results[1] and len(builds) == 1
    assert "waiting for the process that is writing" in capsys.readouterr().out


# -----------------------------------------------------------------------------
# Real text

@pytest.mark.parametrize("name", ("tinyshakespeare.txt", "wikitext2_valid.txt"))
def test_a_megabyte_of_real_text(tmp_path, name):
    if not (REAL_TEXT / name).exists():
        pytest.skip(f"{REAL_TEXT / name} is not there")
    manifest = corpus.build_from_paths(tmp_path / "data", [REAL_TEXT / name], progress=False)
    docs = documents(tmp_path / "data")
    text = (REAL_TEXT / name).read_text(encoding="utf-8")
    letters = [sum(map(str.isalpha, t)) for t in (text, "".join(docs["train"] + docs["val"]))]
    assert letters[1] == letters[0] if not manifest["duplicates_dropped"] else letters[1] > 0.97 * letters[0]
    assert len(manifest["shards"]) == 3 and sum(s["row_groups"] for s in manifest["shards"][:2]) >= 8
    assert manifest["packing_share"] >= 0.85
    assert all(t in text for t in docs["val"])


@pytest.mark.slow
def test_sixty_megabytes_of_books(tmp_path):
    path = REAL_TEXT / "classic_books_60mb.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    manifest = corpus.build_from_paths(tmp_path / "data", [path], progress=False)
    assert manifest["packing_share"] >= 0.85 and len(manifest["shards"]) >= 3
    val = next(s for s in manifest["shards"] if s["name"] == manifest["validation_shard"])
    assert 0.03 < val["chars"] / sum(s["chars"] for s in manifest["shards"]) < 0.1
