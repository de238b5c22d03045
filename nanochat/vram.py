"""
How much memory training takes, counted on the model itself.

Model, loss and optimizer run one step on the meta device, where tensors have shapes but no storage. Every allocation
and release on the way is counted. A formula could forget a term: earlier formulas counted attention scores that no
kernel stores, and left out the logits. Memory is linear in the batch, so counts at two batch sizes give all others.

The operators are those of eager mode on a CPU. Autograd keeps the same tensors there as on a card, but for norms in
bfloat16: CUDA's fused kernel and compiled code keep fewer copies of those. So for a card the figure should err on the
high side. The figures are checked against the CPU's allocator; not yet against a card.
"""

import weakref
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat.gpt import GPT, make_gpt
from nanochat.gpt_config import GPTConfig
from nanochat.loss import CHUNK_LOGITS
from nanochat.optim import setup_optimizer

# Compiled code does not take the loss in chunks. On a CPU it was seen to save one [BT,V] tensor in the compute dtype;
# the fp32 copies are fused away. The gradient is a second tensor of that size, and both are alive at once.
COMPILED_LOGITS = 2
# Any value does: on the meta device no number is computed.
RATES = dict(unembedding_lr=1.0, embedding_lr=1.0, matrix_lr=1.0, scalar_lr=1.0, weight_decay=1.0)


class MemoryTracker(TorchDispatchMode):
    """Bytes of the tensors made inside the context that are alive: `now`, and `peak` since it was last set.

    It sees the tensors that operators return. Memory that a kernel allocates and frees inside is not counted.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self._add(t.untyped_storage())
        return out

    def _add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:  # else a view, or an operator that works in place
            self.seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key, size):
        self.seen.remove(key)
        self.now -= size


def saved_bytes(model: GPT, loss_of) -> tuple[torch.Tensor, int]:
    """(loss_of(), bytes that autograd keeps for its backward pass, each storage once, parameters left out)."""
    kept, own = {}, {p.untyped_storage()._cdata for p in model.parameters()}

    def note(t):
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # the storage itself: its number must not be given out again meanwhile
        return t
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = loss_of()
    return loss, sum(storage.nbytes() for storage in kept.values())


class FlashAttention(TorchFunctionMode):
    """Inside this context attention on the meta device runs the flash kernel, as real devices do.

    Left alone, the meta device would choose the kernel that stores all attention scores.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        if mask is not None:  # kernels add it, so it is kept in the dtype of q
            mask = torch.zeros_like(mask, dtype=args[0].dtype).masked_fill_(~mask, float("-inf"))
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(*args, 0.0, kwargs.get("is_causal", False), attn_mask=mask)[0]


@dataclass
class Memory:
    """Bytes that training takes at one batch size. Weights, gradients and optimizer do not grow with the batch."""
    batch_size: int
    weights: int  # parameters and buffers
    gradients: int
    optimizer: int
    activations: int  # tensors that autograd keeps between forward and backward
    # Peaks of everything alive, gradients of an earlier micro-step included
    forward: int
    loss_backward: int  # until the gradient reaches the last block
    backward: int
    update: int

    @property
    def peak(self) -> int:
        return max(self.forward, self.loss_backward, self.backward, self.update)

    @property
    def temporaries(self) -> int:
        return self.peak - self.weights - self.gradients - self.optimizer - self.activations


def measure(model: GPT, batch_size: int, tracker: MemoryTracker, matrix_optimizer="muon") -> Memory:
    """One training step with accumulated gradients, inside the tracker. The model must be fresh, and made inside it."""
    def phase_ends() -> int:
        peak, tracker.peak = tracker.peak, tracker.now
        return peak
    found = dict(weights=tracker.now)
    optimizer = setup_optimizer(model, polar_dtype=model.update_dtype, matrix_optimizer=matrix_optimizer, **RATES)
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    found["gradients"] = tracker.now - sum(found.values())
    optimizer.step()  # makes the state
    found["optimizer"] = tracker.now - sum(found.values())
    ids = torch.zeros(batch_size, model.config.sequence_len, dtype=torch.long)
    model.transformer.h[-1].register_forward_hook(
        lambda module, args, out: out[0].register_hook(lambda grad: found.update(loss_backward=phase_ends())) and None)
    phase_ends()
    loss, found["activations"] = saved_bytes(model, lambda: model.objective(*model(ids, ids, with_aux=True)))
    found["forward"] = phase_ends()
    loss.backward()
    found["backward"] = phase_ends()
    optimizer.step()
    return Memory(batch_size, update=phase_ends(), **found)


def predict(config: GPTConfig, dtype, batch_size: int, matrix_optimizer="muon") -> Memory:
    """`measure` on the meta device: nothing is allocated or computed."""
    with torch.device("meta"), MemoryTracker() as tracker, FlashAttention():
        model = make_gpt(config, dtype)
        model.init_tables()
        return measure(model, batch_size, tracker, matrix_optimizer)


@dataclass
class Estimate:
    """Memory at any batch size, from the two that were measured."""
    config: GPTConfig
    dtype: torch.dtype
    compile: bool
    small: Memory
    large: Memory

    def _linear(self, name: str, batch_size: int) -> int:
        a, b = self.small, self.large
        slope = (getattr(b, name) - getattr(a, name)) / (b.batch_size - a.batch_size)
        return round(getattr(a, name) + slope * (batch_size - a.batch_size))

    def logits(self, batch_size: int) -> int:
        """Bytes of whole logits: only compiled code has them."""
        tokens = batch_size * self.config.sequence_len
        return self.compile * COMPILED_LOGITS * tokens * self.config.vocab_size * self.dtype.itemsize

    def at(self, batch_size: int) -> Memory:
        memory = Memory(batch_size, **{f.name: self._linear(f.name, batch_size) for f in fields(Memory)[1:]})
        memory.loss_backward += self.logits(batch_size)
        return memory

    def largest_batch(self, budget: int) -> int:
        """Largest batch size whose peak is within budget bytes; 0 where none is."""
        if self.at(1).peak > budget:
            return 0
        low, high = 1, 2
        while self.at(high).peak <= budget:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle).peak <= budget else (low, middle)
        return low


def estimate(config: GPTConfig, dtype, compile: bool, matrix_optimizer="muon") -> Estimate:
    """Measure at two batch sizes of several chunks of the loss each, from where on memory is linear in the batch."""
    rows_per_chunk = max(1, CHUNK_LOGITS // config.vocab_size)
    small = -(-3 * rows_per_chunk // config.sequence_len)
    memory = [predict(config, dtype, batch_size, matrix_optimizer) for batch_size in (small, 2 * small)]
    return Estimate(config, dtype, compile, *memory)
