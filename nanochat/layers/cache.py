"""
Decode state. Each layer keeps its state under its own key: keys and values for attention, the last input and a running
sum for the gate, the last embedding for smear. The cache only holds and copies these tensors.
"""

import torch


class DecodeCache:
    """State of one batch of sequences that all stand at the same position.

    `state[layer]` is a dict of tensors whose first dimension is the batch. `pos` tokens are consumed.
    """

    def __init__(self, batch_size: int, max_seq_len: int):
        self.batch_size = batch_size
        self.max_seq_len = max_seq_len
        self.pos = 0
        self.state: dict[object, dict[str, torch.Tensor]] = {}

    def of(self, layer) -> dict[str, torch.Tensor]:
        return self.state.setdefault(layer, {})

    def expand(self, batch_size: int) -> "DecodeCache":
        """A cache of `batch_size` copies of this one, which must hold a single row: prefill once, sample many."""
        assert self.batch_size == 1, self.batch_size
        new = DecodeCache(batch_size, self.max_seq_len)
        new.pos = self.pos
        new.state = {layer: {name: t.expand(batch_size, *t.shape[1:]).clone() for name, t in tensors.items()}
                     for layer, tensors in self.state.items()}
        return new
