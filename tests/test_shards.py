"""
python -m pytest tests/test_shards.py

Cutting, packing, splitting, dropping duplicates, writing. Corpora end to end are in test_corpus.py.
"""

import errno
import json
import random
import re
import tracemalloc

import pytest
from corpus_case import documents, prose

from nanochat import corpus, shards
from nanochat.common import REPO_ROOT

# -----------------------------------------------------------------------------
# Cutting

@pytest.mark.parametrize("limit", (1, 7, 80, 1000))
def test_pieces_hold_all_the_text_in_order_and_fit(limit):
    text = (REPO_ROOT / "nanochat" / "config.py").read_text(encoding="utf-8")
    pieces = shards.cut_document(text, limit)
    assert max(map(len, pieces)) <= limit
    lost = re.compile(r"\s" if limit < 80 else r"\n")  # between two tiny pieces a space may be the blank that is cut at
    assert lost.sub("", "".join(pieces)) == lost.sub("", text)


def test_definitions_stay_whole_and_keep_their_decorators():
    functions = [f"@cache\n@other(1)\ndef f{i}(x):\n    y = x * {i}\n\n    return y" for i in range(50)]
    pieces = shards.cut_document("\n".join(functions), 150)
    assert max(map(len, pieces)) <= 150 and len(pieces) > 20
    heads = [p for p in pieces if "@cache" in p]
    assert all("@other(1)\ndef f" in p for p in heads) and sum(p.count("@cache") for p in heads) == 50


def test_a_block_that_fits_is_never_cut_inside():
    blocks = [f"def f{i}():\n" + f"    call({i})\n" * (i % 40 + 1) for i in range(200)]
    pieces = shards.cut_document("\n".join(blocks), 1000)
    assert "".join(blocks).replace("\n", "") == "".join(pieces).replace("\n", "")
    assert all(sum(block.strip("\n") in p for p in pieces) == 1 for block in blocks)


def test_long_blocks_are_cut_at_lines_then_spaces_then_anywhere():
    lines = "\n".join("x" * 30 for _ in range(10))
    assert shards.cut_document(lines, 100) == ["\n".join(["x" * 30] * 3)] * 3 + ["x" * 30]
    assert [len(p) for p in shards.cut_document("word " * 50, 102)] == [100, 100, 50]
    assert [len(p) for p in shards.cut_document("x" * 250, 100)] == [100, 100, 50]


def test_zero_keeps_the_text_as_it_is_and_blank_text_is_no_document():
    assert shards.cut_document("\n\na\n\n\nb\n", 0) == ["\n\na\n\n\nb\n"]
    for blank, limit in ((" \n\n\t\n", 0), (" \n\n\t\n", 100), ("", 100)):
        assert shards.cut_document(blank, limit) == []


# -----------------------------------------------------------------------------
# Packing

def naive_packing_share(lengths, row, buffer_docs):
    """The loader's loop written out over lists, one epoch, as the rule is stated."""
    stream, buffer, used = iter(lengths * 2), [], 0
    consumed = 0
    while consumed < sum(lengths):
        room = row
        while room:
            while len(buffer) < buffer_docs:
                buffer.append(next(stream))
            fitting = [n for n in buffer if n <= room]
            n = max(fitting) if fitting else min(buffer)
            buffer.remove(n)
            used, consumed, room = used + min(n, room), consumed + n, max(0, room - n)
    return used / consumed


@pytest.mark.parametrize("longest", (30, 300, 1500))
def test_packing_share_is_the_loaders_rule(longest):
    rng = random.Random(longest)
    lengths = [rng.randint(2, longest) for _ in range(600)]
    got = shards.packing_share([n - 1 for n in lengths], max_seq_len=127, bytes_per_token=1, buffer_docs=50)
    assert got == naive_packing_share(lengths, 128, 50)


def test_packing_share_of_whole_files_is_small_and_of_fitting_rows_is_one():
    assert shards.packing_share([99] * 40, max_seq_len=99, bytes_per_token=1, buffer_docs=10) == 1
    too_long = shards.packing_share([99_999] * 40, max_seq_len=99, bytes_per_token=1, buffer_docs=10)
    assert too_long == pytest.approx(0.001)


# -----------------------------------------------------------------------------
# Splitting and writing

def test_pieces_of_a_source_document_go_to_one_split(tmp_path):
    for i in range(150):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{i}.{('txt', 'md')[i % 2]}").write_text(prose(i))
    (tmp_path / "texts" / "picture.png").write_bytes(b"\x89PNG")
    manifest = corpus.build_from_paths(tmp_path / "data", [tmp_path / "texts"], max_doc_chars=300, progress=False)
    docs = documents(tmp_path / "data")
    origin = {split: {m for t in d for m in re.findall(r"(\d+)/\d+", t)} for split, d in docs.items()}
    assert not origin["train"] & origin["val"] and len(origin["train"] | origin["val"]) == 150
    share = sum(map(len, docs["val"])) / sum(map(len, docs["val"] + docs["train"]))
    assert 0.04 < share < 0.07
    assert len(manifest["shards"]) == 3 and sum(s["row_groups"] for s in manifest["shards"][:-1]) >= 8


def test_duplicates_are_dropped_over_both_splits(tmp_path):
    with open(tmp_path / "x.jsonl", "w") as f:
        for i in range(400):
            f.write(json.dumps({"text": prose(i % 100, 1), "other": i}) + "\n\n")
    manifest = corpus.build_from_paths(tmp_path / "data", [tmp_path / "x.jsonl"], progress=False)
    docs = documents(tmp_path / "data")
    assert sorted(docs["train"] + docs["val"]) == sorted(prose(i, 1) for i in range(100))
    assert manifest["duplicates_dropped"] == 300


def test_one_text_gives_two_training_shards_and_its_end_validates(tmp_path):
    text = prose(0, 3000)
    (tmp_path / "one.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    manifest = corpus.build_from_paths(tmp_path / "data", [tmp_path / "one.txt"], progress=False)
    docs = documents(tmp_path / "data")
    assert len(manifest["shards"]) == 3 and sum(s["row_groups"] for s in manifest["shards"][:2]) >= 8
    assert not any("\r" in t or "\ufeff" in t for d in docs.values() for t in d)
    place = {split: [text.index(t.split("\n")[0]) for t in d] for split, d in docs.items()}
    assert max(place["train"]) < min(place["val"]) and min(place["val"]) > 0.93 * len(text)


def test_document_longer_than_two_shards_is_kept_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_CHARS", 1000)
    texts = ["x" * 5000, *(prose(i, 2) for i in range(30))]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    corpus.build_from_paths(tmp_path / "data", [tmp_path / "x.jsonl"], max_doc_chars=0, progress=False)
    assert sorted(t for d in documents(tmp_path / "data").values() for t in d) == sorted(texts)


def test_memory_does_not_grow_with_the_input(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_CHARS", 300_000)
    monkeypatch.setattr(shards, "VAL_CHARS", 100_000)
    for name, lines in (("warm_up", 40), ("big", 1000)):  # the first imports what pyarrow imports late
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{i} " + "word " * 1200}) + "\n" for i in range(lines)))
        tracemalloc.start()
        manifest = corpus.build_from_paths(tmp_path / name, [path], max_doc_chars=0, progress=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert path.stat().st_size > 6e6 and peak < 3e6
    docs = documents(tmp_path / "big")
    assert sorted(int(t.split()[0]) for d in docs.values() for t in d) == list(range(1000))
    assert len(manifest["shards"]) > 10 and sum(map(len, docs["val"])) < 110_000


def test_one_flipped_bit_never_changes_the_text_silently(tmp_path):
    path, rng = tmp_path / "shard_00000.parquet", random.Random(0)
    texts = ["%0200x" % rng.getrandbits(800) for _ in range(40)]
    shards.write_shard(path, texts)
    data, found = path.read_bytes(), 0
    for _ in range(60):
        flipped = bytearray(data)
        flipped[rng.randrange(4, len(data) * 9 // 10)] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert [t for p, i, _ in shards.row_groups([path]) for t in shards.read_row_group(p, i)] == texts
        except ValueError as e:
            assert "shard_00000.parquet cannot be read" in str(e)
            found += 1
    assert found > 40


def test_full_disk_names_the_path_and_leaves_no_shard(tmp_path):
    resource = pytest.importorskip("resource", reason="a limit on file size is our full disk; Windows has none")
    (tmp_path / "a.txt").write_text(" ".join(map(str, random.Random(0).sample(range(10**9), 20_000))))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*shard_00000\.parquet: .*free some space") as e:
            corpus.build_from_paths(tmp_path / "lab" / "data", [tmp_path / "a.txt"], progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert e.value.errno == errno.EFBIG
    assert not [p for p in (tmp_path / "lab").rglob("*") if p.name != ".data.lock"]
