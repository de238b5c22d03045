"""
python -m pytest tests/test_dataloader.py -q
"""

import itertools
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import nanochat.dataloader as module
from nanochat.dataloader import DataLoader
from nanochat.ranks import Ranks
from tests.tiny import make_base, write_shards


@pytest.fixture
def small_buffer(monkeypatch):
    """A buffer that 600 documents do not fill at once."""
    monkeypatch.setattr(module, "BUFFER_DOCUMENTS", 40)
    monkeypatch.setattr(module, "CHUNK_DOCUMENTS", 16)


def naive_best_fit(documents, row_groups_of, T, buffer_size, chunk):
    """Best-fit rows by scanning an unsorted list: the algorithm as one would first write it."""
    def chunks():
        while True:
            for start in range(0, len(documents), row_groups_of):
                group = documents[start:start + row_groups_of]
                for i in range(0, len(group), chunk):
                    yield group[i:i + chunk]
    source, buffer = chunks(), []
    while True:
        row = []
        while len(row) < T + 1:
            while len(buffer) < buffer_size:
                buffer += [doc for doc in next(source) if doc is not None]
            room = T + 1 - len(row)
            fitting = [doc for doc in buffer if len(doc) <= room]
            if fitting:
                doc = max(fitting, key=len)  # the first of the longest
            else:
                doc = min(buffer, key=len)
            buffer.pop(next(i for i, d in enumerate(buffer) if d is doc))
            row += doc[:room]
        yield row


def test_file_order_equals_a_naive_best_fit_packer(base_dir, small_buffer):
    documents, tokenizer = make_base(base_dir)
    tokens = [tokenizer.encode(doc, prepend="<|bos|>") for doc in documents]
    naive = naive_best_fit(tokens, 60, T=48, buffer_size=40, chunk=16)
    loader = DataLoader(tokenizer, B=3, T=48, split="train")
    for _ in range(300):  # past the end of the first epoch
        x, y = next(loader)
        expected = torch.tensor(list(itertools.islice(naive, 3)))
        assert torch.equal(x, expected[:, :-1]) and torch.equal(y, expected[:, 1:])
    assert loader.epoch > 1


def write_nulls(folder, texts, shard=1, rows=60):
    """Shard 1 as somebody else's program writes it: some of its documents are null."""
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), folder / f"shard_{shard:05d}.parquet",
                   row_group_size=rows)


def test_null_documents_are_left_out_of_the_naive_stream(base_dir, small_buffer):
    documents, tokenizer = make_base(base_dir)
    documents[300:] = [None if i % 7 == 0 or 100 < i < 140 else doc for i, doc in enumerate(documents[300:])]
    write_nulls(base_dir / "base_data_climbmix", documents[300:])
    tokens = [None if doc is None else tokenizer.encode(doc, prepend="<|bos|>") for doc in documents]
    naive = naive_best_fit(tokens, 60, T=48, buffer_size=40, chunk=16)
    loader = DataLoader(tokenizer, B=3, T=48, split="train")
    for _ in range(300):
        x, _ = next(loader)
        assert torch.equal(x, torch.tensor(list(itertools.islice(naive, 3)))[:, :-1])
    assert loader.epoch > 1


@pytest.mark.parametrize("data_order", ["seed", "file"])
def test_a_loader_resumes_exactly_among_null_documents(base_dir, small_buffer, data_order):
    documents, tokenizer = make_base(base_dir)
    write_nulls(base_dir / "base_data_climbmix", [None if i % 3 else doc for i, doc in enumerate(documents[300:])])
    kwargs = dict(B=2, T=40, split="train", data_order=data_order, seed=5)
    loader, batches, states = DataLoader(tokenizer, **kwargs), [], []
    for _ in range(130):
        states.append(json.loads(json.dumps(loader.state)))
        batches.append(next(loader))
    for start in range(0, 130, 13):
        restored = DataLoader(tokenizer, **kwargs, state=states[start])
        for batch in batches[start:]:
            assert all(map(torch.equal, batch, next(restored)))
    assert loader.epoch > 1


def test_a_split_of_nulls_alone_is_refused_and_not_searched_for_ever(base_dir):
    _, tokenizer = make_base(base_dir)
    for shard in (0, 1):
        write_nulls(base_dir / "base_data_climbmix", [None] * 50, shard)
    with pytest.raises(ValueError, match="no document in .*base_data_climbmix has a text: an epoch of 100 documents"):
        next(DataLoader(tokenizer, B=2, T=32, split="train"))


def test_every_row_starts_with_bos_and_targets_are_inputs_shifted(base_dir):
    _, tokenizer = make_base(base_dir)
    x, y = next(DataLoader(tokenizer, B=4, T=32, split="train", data_order="seed", seed=1))
    assert x.shape == y.shape == (4, 32) and x.dtype == torch.int64
    assert (x[:, 0] == tokenizer.get_bos_token_id()).all() and torch.equal(x[:, 1:], y[:, :-1])


@pytest.mark.parametrize("data_order", ["seed", "file"])
@pytest.mark.parametrize("after", [0, 1, 7, 45])
def test_a_loader_restored_from_json_goes_on_to_the_last_token(base_dir, small_buffer, data_order, after):
    _, tokenizer = make_base(base_dir)
    kwargs = dict(B=2, T=40, split="train", data_order=data_order, seed=5)
    loader = DataLoader(tokenizer, **kwargs)
    for _ in range(after):
        next(loader)
    state = json.loads(json.dumps(loader.state))
    restored = DataLoader(tokenizer, **kwargs, state=state)
    assert restored.state == state
    for _ in range(60):
        a, b = next(loader), next(restored)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert loader.state == restored.state and loader.epochs_used() == restored.epochs_used()


def test_an_epoch_in_seed_order_reads_every_document_once(base_dir):
    documents, tokenizer = make_base(base_dir)
    loader = DataLoader(tokenizer, B=1, T=32, split="train", data_order="seed", seed=9)
    for epoch in (1, 2):
        refs = [ref for n in range(len(loader.order.blocks(epoch))) for ref in loader.order.block(epoch, n)]
        assert sorted(loader._text(ref) for ref in refs) == sorted(documents)
    assert loader.order.block(1, 0) != loader.order.block(2, 0)


def documents_of_an_epoch(loader, epoch=1) -> list[str]:
    blocks = range(len(loader.order.blocks(epoch)))
    return [loader._text(ref) for n in blocks for ref in loader.order.block(epoch, n)]


@pytest.mark.parametrize("data_order", ["seed", "file"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_read_every_document_of_an_epoch_once(base_dir, data_order, world_size):
    documents, tokenizer = make_base(base_dir)
    loaders = [DataLoader(tokenizer, B=1, T=32, split="train", data_order=data_order, seed=9,
                          ranks=Ranks(rank, rank, world_size)) for rank in range(world_size)]
    for epoch in (1, 2):
        seen = [documents_of_an_epoch(loader, epoch) for loader in loaders]
        assert all(seen) and sorted(itertools.chain(*seen)) == sorted(documents)
    assert not torch.equal(next(loaders[0])[0], next(loaders[1])[0])


def test_ranks_share_row_groups_by_the_naive_rule_of_upstream(base_dir):
    """Every file on its own: row group rank, rank + world_size, and so on."""
    documents, tokenizer = make_base(base_dir)
    per_file = [[documents[300 * file + 60 * group:][:60] for group in range(5)] for file in range(2)]
    for rank in range(3):
        naive = [doc for groups in per_file for number in range(rank, 5, 3) for doc in groups[number]]
        loader = DataLoader(tokenizer, B=1, T=32, split="train", ranks=Ranks(rank, rank, 3))
        assert documents_of_an_epoch(loader) == naive


@pytest.mark.parametrize("data_order", ["seed", "file"])
def test_one_rank_reads_the_stream_of_a_loader_that_knows_no_ranks(base_dir, small_buffer, data_order):
    _, tokenizer = make_base(base_dir)
    kwargs = dict(B=2, T=40, split="train", data_order=data_order, seed=5)
    plain, one = DataLoader(tokenizer, **kwargs), DataLoader(tokenizer, **kwargs, ranks=Ranks(0, 0, 1))
    for _ in range(60):
        assert all(map(torch.equal, next(plain), next(one)))
    assert plain.state == one.state and "world_size" not in one.state


def test_the_order_of_a_seed_never_changes_or_old_checkpoints_would_resume_elsewhere(base_dir):
    """References (row group, row) as they were before there were ranks."""
    _, tokenizer = make_base(base_dir)
    order = DataLoader(tokenizer, B=1, T=32, split="train", data_order="seed", seed=9).order
    assert order.block(1, 0)[:6] == [(0, 58), (0, 31), (5, 19), (6, 55), (9, 42), (5, 58)]
    assert order.block(2, 0)[:4] == [(9, 49), (4, 5), (0, 21), (0, 42)]


def test_a_rank_resumes_its_own_stream_and_refuses_that_of_another(base_dir, small_buffer):
    _, tokenizer = make_base(base_dir)
    kwargs = dict(B=2, T=40, split="train", data_order="seed", seed=5)
    loader = DataLoader(tokenizer, **kwargs, ranks=Ranks(1, 1, 2))
    for _ in range(7):
        next(loader)
    state = json.loads(json.dumps(loader.state))
    restored = DataLoader(tokenizer, **kwargs, ranks=Ranks(1, 1, 2), state=state)
    for _ in range(30):
        assert all(map(torch.equal, next(loader), next(restored)))
    with pytest.raises(ValueError, match="with rank 1, this run asks for 0"):
        DataLoader(tokenizer, **kwargs, ranks=Ranks(0, 0, 2), state=state)
    with pytest.raises(ValueError, match="with world_size 2, this run asks for 3"):
        DataLoader(tokenizer, **kwargs, ranks=Ranks(1, 1, 3), state=state)
    del state["rank"], state["world_size"]  # one rank's
    with pytest.raises(ValueError, match="with rank 0, this run asks for 1"):
        DataLoader(tokenizer, **kwargs, ranks=Ranks(1, 1, 2), state=state)


def test_a_rank_without_documents_is_refused(base_dir):
    _, tokenizer = make_base(base_dir)
    with pytest.raises(ValueError, match="rank 5 of 6 has no documents: the largest file has 5 row groups"):
        DataLoader(tokenizer, B=1, T=32, split="train", ranks=Ranks(5, 5, 6))


def test_the_order_depends_on_the_seed_only(base_dir):
    _, tokenizer = make_base(base_dir)
    first = [next(DataLoader(tokenizer, B=2, T=32, split="train", data_order="seed", seed=seed))[0]
             for seed in (1, 1, 2)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def first_documents(base_dir, tokenizer, seed, rows, monkeypatch) -> set[str]:
    """Documents that end up in the first `rows` rows."""
    loader, used = DataLoader(tokenizer, B=1, T=32, split="train", data_order="seed", seed=seed), []
    pop = loader._take

    def take(room):
        before = {entry[1]: entry[2] for entry in loader.buffer}
        doc = pop(room)
        after = {entry[1] for entry in loader.buffer}
        used.extend(ref for arrival, ref in before.items() if arrival not in after)
        return doc
    monkeypatch.setattr(loader, "_take", take)
    for _ in range(rows):
        next(loader)
    return {loader._text(ref) for ref in used}


def test_two_seeds_share_less_than_30_percent_of_their_first_200_rows(base_dir, monkeypatch):
    """200 rows are a tenth of this corpus, as of the built-in one. A shuffle within files, or a big buffer, would
    fail."""
    write = dict(train_shards=2, documents=2000, rows_per_group=250)
    _, tokenizer = make_base(base_dir, **write)
    sets = [first_documents(base_dir, tokenizer, seed, 200, monkeypatch) for seed in (1337, 2026, 7)]
    for a, b in itertools.combinations(sets, 2):
        assert len(a & b) / min(len(a), len(b)) < 0.30
    assert all(len(s) > 100 for s in sets)


def test_the_buffer_holds_at_most_5_percent_of_the_corpus(base_dir):
    _, tokenizer = make_base(base_dir)
    loader = DataLoader(tokenizer, B=1, T=32, split="train", data_order="seed", seed=0)
    most = 0
    for _ in range(80):
        next(loader)
        most = max(most, len(loader.buffer))
    assert 0 < most <= 0.05 * loader.order.num_documents


def test_an_upstream_position_or_another_seed_is_refused(base_dir):
    _, tokenizer = make_base(base_dir)
    kwargs = dict(B=1, T=32, split="train", data_order="seed", seed=1)
    with pytest.raises(ValueError, match="exact resume is not possible"):
        DataLoader(tokenizer, **kwargs, state={"pq_idx": 0, "rg_idx": 3, "epoch": 1})
    state = DataLoader(tokenizer, **{**kwargs, "seed": 2}).state
    with pytest.raises(ValueError, match="seed 2, this run asks for 1"):
        DataLoader(tokenizer, **kwargs, state=state)


def test_a_corrupt_shard_is_named(base_dir):
    _, tokenizer = make_base(base_dir)
    path = base_dir / "base_data_climbmix" / "shard_00000.parquet"
    data = bytearray(path.read_bytes())
    data[50:3000] = random.Random(0).randbytes(2950)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="shard_00000.parquet"):
        loader = DataLoader(tokenizer, B=1, T=32, split="train")
        for _ in range(50):
            next(loader)


def test_position_names_shard_row_group_and_epoch(base_dir, small_buffer):
    write_shards(base_dir)
    _, tokenizer = make_base(base_dir)
    loader = DataLoader(tokenizer, B=1, T=32, split="train")
    next(loader)
    assert loader.position == {"pq_idx": 0, "rg_idx": 0, "epoch": 1}
    while loader.epoch == 1 and loader.position["pq_idx"] == 0:
        next(loader)
    assert loader.position == {"pq_idx": 1, "rg_idx": 0, "epoch": 1}
