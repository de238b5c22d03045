"""
Documents -> packed rows -> batches, with exact resume.

Rows start with BOS and are filled by best fit, as upstream does it. The largest document of a buffer that still fits
into the row is taken. When no document fits, the shortest is cropped to fill the row. There is no padding. The buffer
is kept sorted, so a document is found in O(log n) where a scan would cost O(n), and the result is the same.

Order of documents. "file" is upstream's stream, to the last token. With "seed" the row groups of each epoch are
permuted and read in blocks, and the documents of a block are permuted. Both permutations are functions of (seed,
epoch, block). So a position is three numbers (epoch, block, offset), and no history is needed to find it again.

Several ranks: each rank reads its own row groups, every world_size-th of a file from its rank on, as upstream does.
Together the ranks read every document of an epoch once.

Resume: the state names the position in the order and the documents that wait in the buffer. Those documents are read
and tokenized again. So no document is skipped, and none is trained on twice.
"""

import bisect
import random
from collections import deque

import torch

from nanochat.common import to_paste
from nanochat.manifest import split_paths
from nanochat.ranks import ONE_RANK, Ranks
from nanochat.shards import read_row_group, row_groups

BUFFER_DOCUMENTS = 1000
CHUNK_DOCUMENTS = 128  # documents tokenized at a time
BLOCK_ROW_GROUPS = 16  # row groups whose documents are shuffled together in "seed" order


def dealt(groups, ranks: Ranks) -> list:
    """The row groups (path, index in file, rows) that this rank reads. Raises ValueError where none is left for it.

    >>> dealt([("a", 0, 9), ("a", 1, 9), ("a", 2, 5), ("b", 0, 9), ("b", 1, 4)], Ranks(rank=1, world_size=2))
    [('a', 1, 9), ('b', 1, 4)]
    """
    mine = [group for group in groups if group[1] % ranks.world_size == ranks.rank]
    if groups and not mine:
        raise ValueError(f"rank {ranks.rank} of {ranks.world_size} has no documents: the largest file has "
                         f"{1 + max(index for _, index, _ in groups)} row groups; start at most that many ranks")
    return mine


class DocumentOrder:
    """The endless order of documents as references (row group number, row), by epoch and offset."""

    def __init__(self, groups, data_order: str, seed: int):
        self.groups = groups  # [(path, index in file, rows)]
        self.data_order = data_order
        self.seed = seed
        self.num_documents = sum(rows for _, _, rows in groups)
        if self.num_documents == 0:
            raise ValueError(to_paste("the split has no documents; rebuild it with python -m nanochat.dataset"))
        self._key, self._block = None, None

    def blocks(self, epoch: int) -> list[list[int]]:
        order = list(range(len(self.groups)))
        if self.data_order == "file":
            return [[g] for g in order]
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return [order[i:i + BLOCK_ROW_GROUPS] for i in range(0, len(order), BLOCK_ROW_GROUPS)]

    def block(self, epoch: int, number: int) -> list[tuple[int, int]] | None:
        """References of one block in order; None past the last block of the epoch. The latest block is cached."""
        if self._key != (epoch, number):
            blocks = self.blocks(epoch)
            refs = None
            if number < len(blocks):
                refs = [(g, row) for g in blocks[number] for row in range(self.groups[g][2])]
                if self.data_order == "seed":
                    random.Random(f"{self.seed}/{epoch}/{number}").shuffle(refs)
            self._key, self._block = (epoch, number), refs
        return self._block


class DataLoader:
    """Iterator of (x, y), each int64 [B, T] on `device`; y is x shifted by one token.

    `state` describes the stream right AFTER the batch returned last. A new loader that is given it continues there.
    """

    # Ten parameters: each decides the batches, and a dataclass that holds them would serve only this call.
    def __init__(self, tokenizer, B: int, T: int, split: str, device="cpu", data_order="file", seed=0, state=None,
                 data_dir=None, ranks: Ranks = ONE_RANK):
        assert data_order in ("file", "seed"), data_order
        self.tokenizer, self.B, self.T = tokenizer, B, T
        self.device = torch.device(device)
        self.shards = split_paths(split, data_dir)
        self.groups, self.ranks = dealt(row_groups(self.shards), ranks), ranks
        self.order = DocumentOrder(self.groups, data_order, seed)
        self.bos = tokenizer.get_bos_token_id()
        self.chunk, self.low_water = CHUNK_DOCUMENTS, BUFFER_DOCUMENTS
        if data_order == "seed":  # a buffer that holds much of the corpus would undo the shuffle by sorting it
            most = max(1, min(BUFFER_DOCUMENTS + CHUNK_DOCUMENTS, self.order.num_documents // 20))
            self.chunk = max(1, min(CHUNK_DOCUMENTS, most // 8))
            self.low_water = most - self.chunk + 1
        self.texts: dict[int, list[str]] = {}  # row groups in use
        self.recent = deque()  # row groups in the order in which they were read, oldest first
        self.buffer = []  # sorted [(length, arrival, reference, tokens)]
        self.arrivals = 0
        self.arrivals_before = -1  # those before this epoch; -1 in the first, which a resumed run may begin at its end
        self.epoch, self.block, self.offset = 1, 0, 0
        if state is not None:
            self._restore(state)

    # -- documents

    def _text(self, ref) -> str:
        group, row = ref
        if group not in self.texts:
            path, index, _ = self.groups[group]
            self.texts[group] = read_row_group(path, index)
            self.recent.append(group)
            while len(self.recent) > BLOCK_ROW_GROUPS:
                del self.texts[self.recent.popleft()]
        return self.texts[group][row]

    def _add(self, refs):
        """Documents that are null are left out. They count in positions, so that these stay what metadata says."""
        texts = {ref: text for ref in refs if (text := self._text(ref)) is not None}
        tokens = self.tokenizer.encode([*texts.values()], prepend=self.bos)
        for ref, doc in zip(texts, tokens, strict=True):
            bisect.insort(self.buffer, (len(doc), self.arrivals, ref, doc))
            self.arrivals += 1

    def _end_epoch(self):
        if self.arrivals == self.arrivals_before:
            raise ValueError(f"no document in {self.shards[0].parent} has a text: an epoch of "
                             f"{self.order.num_documents} documents gave none; rebuild the dataset")
        self.epoch, self.arrivals_before = self.epoch + 1, self.arrivals

    def _refill(self):
        """Tokenize the next chunk. Chunks end with their row group in "file" order, as upstream's do."""
        refs = self.order.block(self.epoch, self.block)
        while refs is None or self.offset >= len(refs):
            if refs is None:
                self._end_epoch()
            self.block, self.offset = (0 if refs is None else self.block + 1), 0
            refs = self.order.block(self.epoch, self.block)
        self._add(refs[self.offset:self.offset + self.chunk])
        self.offset = min(self.offset + self.chunk, len(refs))

    def fill(self):
        """Read documents until rows can be made. Changes no row, whenever it is called."""
        while len(self.buffer) < self.low_water:
            self._refill()

    # -- rows

    def _take(self, room: int) -> list[int]:
        """Tokens for at most `room` places: the largest document that fits, else the shortest, cropped.

        Among documents of equal length, the document that entered the buffer first is taken.
        """
        self.fill()
        i = bisect.bisect_right(self.buffer, (room, float("inf")))
        if i == 0:
            return self.buffer.pop(0)[3][:room]
        length = self.buffer[i - 1][0]
        return self.buffer.pop(bisect.bisect_left(self.buffer, (length,)))[3]

    def __iter__(self):
        return self

    def __next__(self):
        rows = []
        for _ in range(self.B):
            row = []
            while len(row) <= self.T:
                row += self._take(self.T + 1 - len(row))
            rows.append(row)
        # a new tensor each time: the previous batch may still be on its way to the device
        batch = torch.tensor(rows, dtype=torch.long, pin_memory=self.device.type == "cuda")
        batch = batch.to(self.device, non_blocking=True)
        return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    # -- state

    def mark(self) -> tuple:
        """Where the stream stands now, for go_back: cheap, so that it is taken before every step."""
        return self.epoch, self.block, self.offset, list(self.buffer)

    def go_back(self, mark: tuple):
        """Stand where the stream stood at that mark(), with the same batches to come."""
        self.epoch, self.block, self.offset, buffer = mark
        self.buffer = list(buffer)

    @property
    def position(self) -> dict:
        """Upstream's three numbers: shard, row group in it and epoch of the document read last."""
        group = self.order.block(self.epoch, self.block)[max(self.offset, 1) - 1][0]
        path, rg_idx, _ = self.groups[group]
        return dict(pq_idx=self.shards.index(path), rg_idx=rg_idx, epoch=self.epoch)

    @property
    def state(self) -> dict:
        """Position and buffer as a dict for JSON. The order of arrival breaks ties in the buffer, so it is kept too."""
        waiting = sorted(self.buffer, key=lambda entry: entry[1])
        return dict(**self.position, block=self.block, offset=self.offset,
                    buffer=[list(ref) for _, _, ref, _ in waiting], data_order=self.order.data_order,
                    seed=self.order.seed, **self._share)

    @property
    def _share(self) -> dict:
        """rank and world_size, for the state of one of several ranks: a position counts only the rank's row groups."""
        one = self.ranks.world_size == 1
        return {} if one else dict(rank=self.ranks.rank, world_size=self.ranks.world_size)

    def _restore(self, state):
        if "buffer" not in state:
            raise ValueError("this checkpoint's data position is upstream's (a row group, no buffer): an exact resume "
                             "is not possible; load its weights under a new --model-tag instead")
        ours = dict(data_order=self.order.data_order, seed=self.order.seed, rank=self.ranks.rank,
                    world_size=self.ranks.world_size)
        for name, value in ours.items():
            stored = state.get(name, {"rank": 0, "world_size": 1}.get(name))
            if stored != value:
                raise ValueError(f"the checkpoint was trained with {name} {stored}, this run asks for {value}; "
                                 "resume with the same value")
        self.epoch, self.block, self.offset = state["epoch"], state["block"], state["offset"]
        # each row group is read once
        by_group = sorted(range(len(state["buffer"])), key=lambda i: state["buffer"][i])
        texts = {i: self._text(tuple(state["buffer"][i])) for i in by_group}
        refs = [tuple(ref) for ref in state["buffer"]]
        tokens = self.tokenizer.encode([texts[i] for i in range(len(refs))], prepend=self.bos) if refs else []
        for ref, doc in zip(refs, tokens, strict=True):
            bisect.insort(self.buffer, (len(doc), self.arrivals, ref, doc))
            self.arrivals += 1

    def epochs_used(self) -> float:
        """Passes over the split so far, by documents read. Documents that wait in the buffer count as read."""
        sizes = [sum(self.groups[g][2] for g in block) for block in self.order.blocks(self.epoch)]
        return self.epoch - 1 + (sum(sizes[:self.block]) + self.offset) / self.order.num_documents
